"""Is a candidate still right: its outputs against the original's on the eval samples, as a drop with a 95 % bound.

Input: a :class:`Reference` and the candidate's runner. Output: a :class:`~edgeopt.records.Quality`. Agreement with the
original is never called accuracy. What is measured for which output, and why, is docs/quality.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import BadData, MeasureFailed
from edgeopt.records import Goal, Quality, QualityKind
from edgeopt.stages import judges
from edgeopt.stages.bounds import binomial_interval, mean_interval
from edgeopt.stages.forms import OutputForm
from edgeopt.stages.reference import Reference, RunOne, sequence

if TYPE_CHECKING:
    from edgeopt.protocols import Array

Floats = NDArray[np.float64]


@dataclass(slots=True)
class Tally:
    """Numbers per sample of one output, by name of the number."""

    form: OutputForm
    rows: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, **numbers: float) -> None:
        for name, number in numbers.items():
            self.rows[name].append(number)

    def values(self, name: str) -> Floats:
        return np.asarray(self.rows[name], dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One metric of one output; ``drop`` with its interval."""

    metric: str
    output: str
    value: float
    drop: float
    ci95: tuple[float, float]


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
    findings = [finding for tally in _judged(tallies) for finding in _findings(tally, goal, seed)]
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
        details=tuple(_details(tallies)),
    )


def _judged(tallies: list[Tally]) -> list[Tally]:
    """The outputs that decide: a class index beside the class scores is their shadow, and states are carried."""
    scored = any(tally.form.kind == "classes" for tally in tallies)
    return [tally for tally in tallies if tally.form.kind != "state" and not (scored and tally.form.kind == "discrete")]


def _kind(metric: str, reference: Reference) -> QualityKind:
    if reference.synthetic:
        return "synthetic"
    return "accuracy" if metric == "accuracy" else "agreement"


def _findings(tally: Tally, goal: Goal, seed: int) -> Iterator[Finding]:
    """What one output says under ``goal.metric``; under ``auto`` the metric that fits its form."""
    metrics = (goal.metric,) if goal.metric != "auto" else _FITTING[tally.form.kind]
    for metric in metrics:
        if measured := _MEASURES[metric](tally, seed):
            yield Finding(metric=metric, output=tally.form.name, **measured)


_FITTING: dict[str, tuple[str, ...]] = {
    "classes": ("accuracy", "expected_drop"),
    "embedding": ("cosine",),
    "detection": ("nsr",),
    "dense": ("nsr",),
    "discrete": ("agreement",),
    "state": (),
}


def _decisive(findings: list[Finding], goal: Goal, samples: int) -> Finding:
    """The worst finding; with labels accuracy alone, unless they are too few to prove anything.

    Fewer labels than that, all of them right, would leave a bound above ``goal.max_drop``: then the expected drop is
    what can be proved, and accuracy may only veto by a drop that was seen.
    """
    accuracy = next((finding for finding in findings if finding.metric == "accuracy"), None)
    if accuracy is not None:
        enough = binomial_interval(0, samples)[1] <= goal.max_drop
        if enough or goal.metric == "accuracy" or accuracy.drop > goal.max_drop:
            return accuracy
        findings = [finding for finding in findings if finding.metric != "accuracy"]
    return max(findings, key=lambda finding: (finding.ci95[1], finding.drop))


def _accuracy(tally: Tally, seed: int) -> dict[str, Any]:
    if "right_original" not in tally.rows:
        return {}
    original, candidate = tally.values("right_original"), tally.values("right_candidate")
    risk = judges.flip_risk(tally.values("margin"), tally.values("margin_change"))
    modelled = risk * (original - tally.values("right_runner_up"))
    return {
        "value": float(candidate.mean()),
        "drop": float((original - candidate).mean()),
        "ci95": _wider(original - candidate, modelled, seed),
    }


def _expected_drop(tally: Tally, seed: int) -> dict[str, Any]:
    if "flip_cost" not in tally.rows:
        return {}
    drops = tally.values("drop")
    modelled = judges.flip_risk(tally.values("margin"), tally.values("margin_change")) * tally.values("flip_cost")
    drop = float(drops.mean())
    return {"value": 1.0 - drop, "drop": drop, "ci95": _wider(drops, modelled, seed)}


def _wider(seen: Floats, modelled: Floats, seed: int) -> tuple[float, float]:
    """The interval of what was seen, its upper end not below that of what the margins make likely."""
    low, high = mean_interval(seen, seed=seed)
    return low, max(high, mean_interval(modelled, seed=seed)[1])


def _agreement(tally: Tally, seed: int) -> dict[str, Any]:
    del seed
    if tally.form.kind == "classes":
        wrong = 1.0 - tally.values("same_top1")
    elif tally.form.kind == "discrete":
        wrong = tally.values("mismatch")
    else:
        return {}
    drop = float(wrong.mean())
    low, high = binomial_interval(round(float(wrong.sum())), len(wrong))
    return {"value": 1.0 - drop, "drop": drop, "ci95": (low, high)}


def _cosine(tally: Tally, seed: int) -> dict[str, Any]:
    if tally.form.kind in ("discrete", "state"):
        return {}
    drops = tally.values("cosine_drop")
    drop = float(drops.mean())
    return {"value": 1.0 - drop, "drop": drop, "ci95": mean_interval(drops, seed=seed)}


def _noise_to_signal(tally: Tally, seed: int) -> dict[str, Any]:
    """Noise power over signal power; of a detector's parts the worse one."""
    if tally.form.kind in ("discrete", "state"):
        return {}
    prefixes = ("scores_", "boxes_") if "scores_noise" in tally.rows else ("",)
    ratios = max((_power_ratio(tally, prefix) for prefix in prefixes), key=lambda values: float(values.mean()))
    drop = float(ratios.mean())
    return {"value": 1.0 - drop, "drop": drop, "ci95": mean_interval(ratios, seed=seed)}


def _power_ratio(tally: Tally, prefix: str) -> Floats:
    noise, signal = tally.values(prefix + "noise"), float(tally.values(prefix + "signal").mean())
    return noise / signal if signal > 0 else np.where(noise > 0, 1.0, 0.0)


_MEASURES: dict[str, Callable[[Tally, int], dict[str, Any]]] = {
    "accuracy": _accuracy,
    "expected_drop": _expected_drop,
    "agreement": _agreement,
    "cosine": _cosine,
    "nsr": _noise_to_signal,
}


def _details(tallies: list[Tally]) -> Iterator[tuple[str, float]]:
    """What is reported beside the decisive number; names of outputs only where there are several."""
    judged = [tally for tally in tallies if tally.form.kind != "state"]
    for tally in judged:
        suffix = f"[{tally.form.name}]" if len(judged) > 1 else ""
        if tally.form.kind == "discrete":
            yield f"mismatch{suffix}", float(tally.values("mismatch").mean())
            continue
        yield f"cosine{suffix}", 1.0 - float(tally.values("cosine_drop").mean())
        yield f"nsr{suffix}", float(_power_ratio(tally, "").mean())
        if tally.form.kind == "classes":
            yield f"top1_agreement{suffix}", float(tally.values("same_top1").mean())
            yield f"kl{suffix}", float(tally.values("kl").mean())
            yield f"expected_drop{suffix}", float(tally.values("drop").mean())
        if "right_original" in tally.rows:
            yield f"accuracy{suffix}", float(tally.values("right_candidate").mean())
            yield f"accuracy_original{suffix}", float(tally.values("right_original").mean())
        if "mask_iou" in tally.rows:
            yield f"mask_iou{suffix}", float(tally.values("mask_iou").mean())
