"""One candidate from recipe to measured trial: compress, compile, judge, time.

The original is opened once in a runner of its own that stays for the whole job; each candidate gets a fresh runner. This
is the only place where a :class:`CandidateError` is caught: it ends the candidate, not the job.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.errors import CandidateError, EdgeoptError
from edgeopt.graph import bare, check, save
from edgeopt.layout import ARTIFACT_FILE
from edgeopt.policy import Goal
from edgeopt.protocols import Pass, Runtime
from edgeopt.records import Artifact, Measurement, Quality, Recipe, Signature, Step, Target, Trial
from edgeopt.stages import asked, measure, pairs, quality
from edgeopt.stages.events import Emit, staged
from edgeopt.stages.evidence import CalibrationEvidence
from edgeopt.stages.measure import Effort, Timing
from edgeopt.stages.reference import Reference
from edgeopt.stages.runners import Runner

if TYPE_CHECKING:
    from edgeopt.protocols import Feeds, Model

StartRunner = Callable[[Artifact], Runner]
Examine = Callable[[Artifact, "Workbench"], tuple[Artifact, Measurement]]
"""What becomes of a candidate that opens: the artifact to serve, and how good it is."""
_HOPELESS = 4.0
"""A bound this many times beyond max_drop: the latency is only noted, not measured to the last digit."""
_LONGEST_LOOK_S, _SHORTEST_LOOK_S = 6.0, 1.0
_LOOKS_IN_BUDGET = 40
_GLANCE, _SECOND_LOOK = 0.25, 1.5
"""Shares of a look: for a candidate that lost already, and for the winner's confirmation."""
_SHARED_STEPS = 3
"""Longer recipes share nothing with others; remembering their models would only hold memory."""
_LONG_S = 5.0
"""What took longer is remembered in any case: who rehearsed a training should not train again to attempt it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """What every attempt of a job needs."""

    model: Model
    signature: Signature
    ends: dict[str, tuple[str, ...]]
    """The operators that lead to each output; see ``endings.final_operators``."""
    evidence: CalibrationEvidence
    passes: Mapping[str, Pass]
    runtime: Runtime
    target: Target
    goal: Goal
    reference: Reference
    original: Runner
    baseline: Trial
    timed: Feeds
    """The one inference that is timed; ``original`` holds it already."""
    folder: Path
    emit: Emit
    seed: int
    look_s: float
    """How long one candidate is timed at most; see :func:`look_s`."""
    start: StartRunner = Runner
    examine: Examine = field(default=lambda artifact, bench: (artifact, measured(artifact, bench)))
    made: dict[tuple[Step, ...], Model] = field(default_factory=dict)
    """Models by the steps that made them: candidates share what they have in common."""


@contextmanager
def hurried(bench: Workbench, deadline_s: float) -> Iterator[None]:
    """What takes long meanwhile ends at ``deadline_s``: a training with the best it has, pruning without a result."""
    before = bench.evidence.deadline_s
    bench.evidence.deadline_s = deadline_s if before is None else min(before, deadline_s)
    try:
        yield
    finally:
        bench.evidence.deadline_s = before


def look_s(budget_s: float) -> float:
    """Seconds to time one candidate: a fortieth of the search's budget, between one and six seconds."""
    return min(_LONGEST_LOOK_S, max(_SHORTEST_LOOK_S, budget_s / _LOOKS_IN_BUDGET))


def attempt(recipe: Recipe, bench: Workbench) -> Trial:
    """Make and measure one candidate; a refusal is a trial with its reason."""
    started = time.monotonic()
    try:
        with staged("compress", bench.emit):
            model = compress(recipe, bench)
        with staged("compile", bench.emit):
            artifact = compile_recipe(model, recipe, bench)
        with staged("measure", bench.emit):
            artifact, measurement = bench.examine(artifact, bench)
        return Trial(
            recipe=recipe,
            artifact=artifact,
            measurement=measurement,
            refused=_unproven(recipe, bench),
            seconds=time.monotonic() - started,
        )
    except CandidateError as error:
        refused = error.refusal
    except (EdgeoptError, OSError, MemoryError):
        raise  # the job's trouble, not the candidate's
    except Exception as error:  # noqa: BLE001  # a library's surprise costs one candidate; its traceback is in the log
        traceback.print_exc()
        refused = f"unexpected: {type(error).__name__}: {str(error)[:300]}"
    return Trial(recipe=recipe, refused=refused, seconds=time.monotonic() - started)


def _unproven(recipe: Recipe, bench: Workbench) -> str | None:
    """Why a measured candidate may not win whatever it measured: what pruning costs shows on real samples alone."""
    if not bench.evidence.synthetic or not any(asked.is_from_weights_alone(step) for step in recipe.steps):
        return None
    return "made from weights alone: no real samples say what that costs. Drop NAME.calibration.npz beside the model."


def confirm(trial: Trial, bench: Workbench) -> Trial:
    """Measure a would-be winner again, in several pairs of fresh processes: the best of many is partly the luckiest."""
    assert trial.artifact is not None  # noqa: S101  # only measured trials are confirmed
    assert trial.measurement is not None  # noqa: S101
    artifact, first = trial.artifact, trial.measurement
    if not first.measured:
        return trial  # its device is not here; there is nothing to repeat
    effort = Effort(seed=bench.seed + 1, longest_s=bench.look_s * _SECOND_LOOK, bar=_bar(bench, first.quality))
    try:
        found = pairs.compare(bench.baseline.artifact or artifact, artifact, bench.timed, effort, start=bench.start)
    except CandidateError as error:
        return replace(trial, measurement=None, refused=error.refusal)
    again = replace(
        first,
        latency=found.timing.candidate,
        original_latency=found.timing.original,
        speedup=found.timing.speedup,
        memory_ratio=min(first.memory_ratio, found.original_peak_bytes / max(1, found.candidate_peak_bytes)),
    )
    return replace(trial, measurement=again)


def compress(recipe: Recipe, bench: Workbench) -> Model:
    """Apply the recipe's passes in order; every step's result is checked and remembered."""
    model = bench.model
    for index, step in enumerate(recipe.steps):
        done = recipe.steps[: index + 1]
        if done not in bench.made:
            started_s = time.monotonic()
            changed = bench.passes[step.technique].apply(model, dict(step.settings), bench.evidence)
            check.verify(changed, like=bench.model)
            took_long = time.monotonic() - started_s > _LONG_S
            if len(done) < _SHARED_STEPS or done == recipe.steps[:_SHARED_STEPS] or took_long:
                bench.made[done] = changed
            model = changed
        else:
            model = bench.made[done]
    return model


def compile_recipe(model: Model, recipe: Recipe, bench: Workbench) -> Artifact:
    """Save what ``recipe`` made and let the runtime take it; :class:`~edgeopt.errors.CompileFailed` where it does not."""
    file = bench.folder / "candidates" / recipe.id / ARTIFACT_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    save.save(bare.stripped(model) if bench.goal.objective == "size" else model, file)
    return bench.runtime.compile(file, recipe, bench.target)


def measured(artifact: Artifact, bench: Workbench) -> Measurement:
    """How right ``artifact`` is and how fast, alone in its process and in turns with the original."""
    with bench.start(artifact) as candidate:
        verdict = quality.judge(bench.reference, candidate.run, bench.goal, seed=bench.seed)
        hopeless = verdict.ci95[1] > _HOPELESS * bench.goal.max_drop
        effort = Effort(
            seed=bench.seed, longest_s=bench.look_s * (_GLANCE if hopeless else 1.0), bar=_bar(bench, verdict)
        )
        candidate.hold(bench.timed)
        timing = measure.compare(bench.original, candidate, effort)
        found = _measurement(artifact, timing, verdict, candidate.peak_memory_bytes(), bench.baseline)
        return replace(found, conditions=candidate.conditions())


def _bar(bench: Workbench, verdict: Quality) -> float | None:
    """The speedup that decides, for a candidate that is right enough to win by it."""
    decides = bench.goal.objective == "latency" and verdict.ci95[1] <= bench.goal.max_drop
    return bench.goal.min_speedup if decides else None


def _measurement(artifact: Artifact, timing: Timing, verdict: Quality, peak_bytes: int, baseline: Trial) -> Measurement:
    original = baseline.measurement
    assert original is not None  # noqa: S101  # the baseline is measured before any candidate
    return Measurement(
        latency=timing.candidate,
        original_latency=timing.original,
        speedup=timing.speedup,
        bytes=artifact.bytes,
        bytes_ratio=original.bytes / artifact.bytes,
        peak_memory_bytes=peak_bytes,
        memory_ratio=original.peak_memory_bytes / max(1, peak_bytes),
        quality=verdict,
    )
