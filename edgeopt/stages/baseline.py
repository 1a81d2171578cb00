"""The original as a candidate: opened, run, timed and judged before anything else, since everything is held against it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgeopt.records import Artifact, Goal, Interval, Measurement, Recipe, Trial
from edgeopt.stages import measure, quality
from edgeopt.stages.reference import Reference
from edgeopt.stages.runners import Runner

if TYPE_CHECKING:
    from edgeopt.protocols import Feeds

_TIMED_SAMPLES_LOOKED_AT = 64


def typical(reference: Reference) -> Feeds:
    """The sample that is timed: the first of the median size, for models whose inputs vary."""
    indices = reference.indices[:_TIMED_SAMPLES_LOOKED_AT]
    sizes = [sum(array.size for array in reference.samples.feeds(index).values()) for index in indices]
    middle = int(np.argsort(sizes, kind="stable")[len(sizes) // 2])
    return reference.samples.feeds(indices[sizes.index(sizes[middle])])


def measured(original: Runner, artifact: Artifact, reference: Reference, goal: Goal, *, seed: int) -> Trial:
    """The original's own trial: by definition neither faster nor smaller than itself, and as right as it is.

    ``original`` must hold the timed feeds.
    """
    stored = reference.outputs()
    own = quality.judge(reference, lambda _feeds: next(stored), goal, seed=seed)
    latency = measure.alone(original)
    measurement = Measurement(
        latency=latency,
        speedup=Interval(value=1.0, low=1.0, high=1.0),
        bytes=artifact.bytes,
        bytes_ratio=1.0,
        peak_memory_bytes=original.peak_memory_bytes(),
        memory_ratio=1.0,
        quality=own,
    )
    return Trial(recipe=Recipe(), artifact=artifact, measurement=measurement)
