"""Is a candidate still right: its outputs against the original's on the eval samples, as a drop with a 95 % bound.

Input: a :class:`Reference` and the candidate's runner. Output: a :class:`~edgeopt.records.Quality`. Agreement with the
original is never called accuracy. What is measured for which output, and why, is docs/quality.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgeopt.errors import BadData, MeasureFailed
from edgeopt.policy import Goal
from edgeopt.records import Quality, QualityKind
from edgeopt.stages import judges, metrics
from edgeopt.stages.bounds import binomial_interval
from edgeopt.stages.forms import OutputForm
from edgeopt.stages.metrics import Finding, Tally
from edgeopt.stages.reference import Reference, RunOne, sequence

if TYPE_CHECKING:
    from edgeopt.protocols import Array


def judge(reference: Reference, run: RunOne, goal: Goal, *, seed: int) -> Quality:
    """Run a candidate over the reference's samples and hold its outputs against the original's.

    Raises :class:`MeasureFailed` where an output is not finite or does not run, :class:`BadData` where ``goal.metric``
    cannot be measured with these samples.
    """
    tallies = [Tally(form) for form in reference.forms]
    outputs = sequence(run, reference.samples, reference.signature, reference.indices)
    labels = reference.labels
    for position, (original, candidate) in enumerate(zip(reference.outputs(), outputs, strict=True)):
        label = None if labels is None else int(labels[position])
        for tally in tallies:
            _tally(tally, original[tally.form.index], candidate[tally.form.index], position, label)
    return _conclude(tallies, reference, goal, seed)


# ---------------------------------------------------------------- one sample
def _tally(tally: Tally, original: Array, candidate: Array, position: int, label: int | None) -> None:
    form = tally.form
    if form.kind == "state":
        return
    if form.kind == "discrete":
        tally.add(mismatch=judges.mismatch(original, candidate))
        return
    if original.shape != candidate.shape:
        original, candidate = _padded(form, original, candidate)
    original, candidate = _finite(form.name, original, candidate, position)
    noise, signal = judges.noise_and_signal(original, candidate)
    tally.add(noise=noise, signal=signal, cosine_drop=judges.cosine_drop(original, candidate))
    if form.kind == "classes":
        _tally_classes(tally, original, candidate, label)
    elif form.kind == "detection" and form.layout is not None:
        parts = judges.detection_noise(form.layout, original, candidate)
        for name, (part_noise, part_signal) in parts.items():
            tally.add(**{f"{name}_noise": part_noise, f"{name}_signal": part_signal})
    elif _looks_like_mask(original):
        tally.add(mask_iou=judges.mask_overlap(original, candidate))


def _tally_classes(tally: Tally, original: Array, candidate: Array, label: int | None) -> None:
    first = judges.class_probabilities(original, tally.form.scores)
    second = judges.class_probabilities(candidate, tally.form.scores)
    change = judges.class_change(first, second)
    tally.add(
        drop=change.drop,
        same_top1=change.same_top1,
        confidence=change.confidence,
        kl=change.divergence,
        margin=change.margin,
        margin_change=change.margin_change,
        flip_cost=change.flip_cost,
    )
    if label is not None:
        order = np.argsort(-first[0])
        tally.add(
            right_original=float(order[0] == label),
            right_candidate=float(second[0].argmax() == label),
            right_runner_up=float(order[1] == label),
        )


def _finite(name: str, original: Array, candidate: Array, position: int) -> tuple[Array, Array]:
    """Both arrays with the places masked where the original itself is not finite."""
    known = np.isfinite(original)
    if not np.isfinite(candidate[known]).all():
        raise MeasureFailed(f"output {name} is not finite on sample {position}")
    if known.all():
        return original, candidate
    return np.where(known, original, 0), np.where(known, candidate, 0)


def _padded(form: OutputForm, original: Array, candidate: Array) -> tuple[Array, Array]:
    """Both filled up with zeros to one shape: a detector that finds one box fewer has lost that box."""
    if form.kind in ("classes", "detection") or original.ndim != candidate.ndim:
        raise MeasureFailed(f"output {form.name} has shape {candidate.shape} where the original's is {original.shape}")
    shape = tuple(max(sizes) for sizes in zip(original.shape, candidate.shape, strict=True))

    def fill(array: Array) -> Array:
        return np.pad(array, [(0, size - length) for size, length in zip(shape, array.shape, strict=True)])

    return fill(original), fill(candidate)


def _looks_like_mask(original: Array) -> bool:
    return original.ndim >= 3 and bool(original.min() >= 0.0) and bool(original.max() <= 1.0)


# ---------------------------------------------------------------- all samples
def _conclude(tallies: list[Tally], reference: Reference, goal: Goal, seed: int) -> Quality:
    findings = [finding for tally in _judged(tallies) for finding in metrics.findings(tally, goal, seed)]
    if not findings:
        raise BadData(
            f"metric {goal.metric} cannot be measured on the outputs {[form.name for form in reference.forms]}",
            hint="Set goal.metric to auto, or give an eval file with labels.",
        )
    decisive = _decisive(findings, goal, len(reference.indices))
    return Quality(
        kind=_kind(decisive.metric, reference),
        metric=decisive.metric,
        value=decisive.value,
        drop=decisive.drop,
        ci95=decisive.ci95,
        samples=len(reference.indices),
        details=tuple(metrics.details(tallies)),
    )


def _judged(tallies: list[Tally]) -> list[Tally]:
    """The outputs that decide: a class index beside the class scores is their shadow, and states are carried."""
    scored = any(tally.form.kind == "classes" for tally in tallies)
    return [tally for tally in tallies if tally.form.kind != "state" and not (scored and tally.form.kind == "discrete")]


def _kind(metric: str, reference: Reference) -> QualityKind:
    if reference.synthetic:
        return "synthetic"
    return "accuracy" if metric == "accuracy" else "agreement"


def _decisive(findings: list[Finding], goal: Goal, samples: int) -> Finding:
    """The worst finding; with labels accuracy alone, unless they are too few to prove anything.

    Fewer labels than that, all of them right, would leave a bound above ``goal.max_drop``: then the expected drop is
    what can be proved, and accuracy may only veto: by a drop beyond it that is more than its own standard error, since
    two answers among a hundred that the original itself hardly preferred turn over as often as not.
    """
    accuracy = next((finding for finding in findings if finding.metric == "accuracy"), None)
    if accuracy is not None:
        enough = binomial_interval(0, samples)[1] <= goal.max_drop
        is_seen = accuracy.drop - accuracy.deviation > goal.max_drop
        if enough or goal.metric == "accuracy" or is_seen:
            return accuracy
        findings = [finding for finding in findings if finding.metric != "accuracy"]
    return max(findings, key=lambda finding: (finding.ci95[1], finding.drop))
