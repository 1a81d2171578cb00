"""Optimization profiles: between which shapes an engine must work, and for which it is made.

In come the model's inputs and the shapes that its samples have, out goes one profile: the smallest and the largest length of each open dimension seen, and the
middle sample's shape as the typical one. Samples are made or dropped with the job's shapes, so a hint in job.yaml arrives here as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from edgeopt.errors import CompileFailed
from edgeopt.records import TensorSpec
from edgeopt.runtimes.trt.order import Range

Shapes = Mapping[str, tuple[int, ...]]
"""Input name to the shape of one inference."""


def profile(inputs: Sequence[TensorSpec], seen: Iterable[Shapes]) -> tuple[Range, ...]:
    """A range for each input with open dimensions; raises :class:`~edgeopt.errors.CompileFailed` where no sample tells it."""
    samples = list(seen)
    return tuple(_range(spec, samples) for spec in inputs if any(isinstance(dim, str) for dim in spec.shape))


def _range(spec: TensorSpec, samples: Sequence[Shapes]) -> Range:
    shapes = [tuple(shapes[spec.name]) for shapes in samples if spec.name in shapes]
    if not shapes:
        opened = ", ".join(str(dim) for dim in spec.shape)
        raise CompileFailed(
            f"input {spec.name!r:.120} has open dimensions [{opened}] and no sample tells their lengths",
            hint="Drop calibration samples beside the model, or state its shape under inputs in the job file.",
        )
    if any(len(shape) != len(spec.shape) for shape in shapes):
        raise CompileFailed(
            f"samples of input {spec.name!r:.120} have {len(shapes[0])} axes, the model has {len(spec.shape)}",
            hint="Give samples in the model's shape.",
        )
    ordered = sorted(shapes, key=_volume)
    columns = list(zip(*shapes, strict=True))
    return Range(
        input=spec.name,
        least=tuple(min(column) for column in columns),
        typical=ordered[len(ordered) // 2],
        most=tuple(max(column) for column in columns),
    )


def _volume(shape: tuple[int, ...]) -> int:
    volume = 1
    for side in shape:
        volume *= side
    return volume
