"""The original as a candidate: opened, run, timed and judged before anything else, since everything is held against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeopt.errors import BadData, MeasureFailed
from edgeopt.graph import save
from edgeopt.layout import ARTIFACT_FILE
from edgeopt.policy import Goal, Policy
from edgeopt.protocols import Samples
from edgeopt.records import Artifact, Interval, Measurement, Recipe, Trial
from edgeopt.stages import measure, quality, teachers
from edgeopt.stages.reference import Reference, RunOne
from edgeopt.stages.runners import Runner

if TYPE_CHECKING:
    from edgeopt.protocols import Feeds, Model

_TIMED_SAMPLES_LOOKED_AT = 64


def whole(path: Path, model: Model, folder: Path) -> Path:
    """The original's file in the form of an artifact: ``path`` itself, or where its weights lie in files of other names, a copy in ``folder``.

    An artifact is one file and at most the one that ``integrity.model_files`` knows; what else belonged to the drop would
    neither be counted nor published. Raises OSError where the disk does.
    """
    if save.external_names(model) <= {f"{path.name}.data"}:
        return path
    file = folder / "original" / ARTIFACT_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    save.save(model, file)
    return file


def typical(reference: Reference) -> Feeds:
    """The sample that is timed: the first of the median size, for models whose inputs vary."""
    indices = reference.indices[:_TIMED_SAMPLES_LOOKED_AT]
    sizes = [sum(array.size for array in reference.samples.feeds(index).values()) for index in indices]
    middle = int(np.argsort(sizes, kind="stable")[len(sizes) // 2])
    return reference.samples.feeds(indices[sizes.index(sizes[middle])])


def made_up(original: Runner, sets: Sequence[Samples]) -> Samples:
    """The first of ``sets`` that the model takes; :class:`~edgeopt.errors.BadData` where it takes none.

    A model does not say which lengths of its open dimensions it can run.
    """
    reasons = []
    for samples in sets:
        try:
            original.run(samples.feeds(0))
        except MeasureFailed as error:
            reasons.append(error.message)
        else:
            return samples
    raise BadData(
        f"no samples were dropped beside the model, and it takes none of {len(sets)} made-up inputs: {reasons[0]}",
        hint="Drop NAME.calibration.npz beside it, or state the shapes under inputs in NAME.yaml.",
    )


@dataclass(frozen=True, slots=True)
class Held:
    """The original, measured: the one inference that is timed, its own trial, and the goal that candidates are held to."""

    timed: Feeds
    trial: Trial
    goal: Goal


def held(original: Runner, artifact: Artifact, reference: Reference, policy: Policy) -> Held:
    """Give ``original`` the feeds to time and measure it over ``reference``; a taught student's goal is the lenient one."""
    timed = typical(reference)
    original.hold(timed)
    trial = measured(original, artifact, reference, policy.goal, seed=policy.search.seed)
    assert trial.measurement is not None  # noqa: S101  # the baseline is always measured
    lenient = reference.taught
    return Held(timed, trial, teachers.lenient(policy.goal, trial.measurement.quality) if lenient else policy.goal)


def measured(original: Runner, artifact: Artifact, reference: Reference, goal: Goal, *, seed: int) -> Trial:
    """The original's own trial: by definition neither faster nor smaller than itself, and as right as it is.

    ``original`` must hold the timed feeds. It runs once more where the reference is not its own: a teacher's answers, or another runtime's.
    """
    stored = reference.outputs()
    run: RunOne = (lambda _feeds: next(stored)) if reference.own else original.run
    own = quality.judge(reference, run, goal, seed=seed)
    latency = measure.alone(original)
    measurement = Measurement(
        latency=latency,
        speedup=Interval(value=1.0, low=1.0, high=1.0),
        bytes=artifact.bytes,
        bytes_ratio=1.0,
        peak_memory_bytes=original.peak_memory_bytes(),
        memory_ratio=1.0,
        quality=own,
        conditions=original.conditions(),
    )
    return Trial(recipe=Recipe(), artifact=artifact, measurement=measurement)
