"""Optimization profiles: between which shapes an engine must work, and for which it is made.

In come the model's inputs, the shapes that its samples have, and the lengths that job.yaml states for open dimensions; out goes one profile. What is stated holds
for every dimension of that name, and for sums such as ``past + 1``; all else spans the smallest and the largest length seen. The typical
shapes are those of one sample, the one of the median size: dimensions of one name must not come from different samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import TypeAlias

from edgeopt.errors import CompileFailed
from edgeopt.policy import InputHint, Span
from edgeopt.records import TensorSpec
from edgeopt.runtimes.trt.order import Range

Shapes = Mapping[str, tuple[int, ...]]
"""Input name to the shape of one inference."""
Stated: TypeAlias = Sequence[tuple[str, InputHint]]
"""What a job file says of inputs, by name."""
_NAMELESS = "?"


def profile(inputs: Sequence[TensorSpec], seen: Iterable[Shapes], *, stated: Stated = ()) -> tuple[Range, ...]:
    """A range for each input with open dimensions.

    Raises :class:`~edgeopt.errors.CompileFailed` where no sample tells a length, or one lies beyond what is stated.
    """
    opened = [spec for spec in inputs if any(isinstance(dim, str) for dim in spec.shape)]
    if not opened:
        return ()
    samples = _whole(opened, list(seen))
    usual = sorted(samples, key=lambda shapes: sum(prod(shapes[spec.name]) for spec in opened))[len(samples) // 2]
    spans = {(spec.name, axis): _seen(spec, axis, samples, usual) for spec in opened for axis in range(len(spec.shape))}
    by_place, by_name = _stated(opened, stated)
    lengths = {str(dim): spans[spec.name, axis] for spec in opened for axis, dim in enumerate(spec.shape)}
    lengths |= {name: _within(span, lengths[name], name) for name, span in by_name.items()}
    for spec in opened:
        for axis, dim in enumerate(spec.shape):
            place, told = (spec.name, axis), spans[spec.name, axis]
            if (span := by_place.get(place) or by_name.get(str(dim))) is not None:
                spans[place] = _within(span, told, f"{dim} of input {spec.name!r:.120}")
            elif isinstance(dim, str) and (parts := _parts(dim)) & by_name.keys() and parts <= lengths.keys():
                spans[place] = _summed(dim, lengths)
    return tuple(_range(spec, spans) for spec in opened)


def _whole(opened: Sequence[TensorSpec], samples: Sequence[Shapes]) -> list[Shapes]:
    """The samples that have every open input, each in the model's rank."""
    for spec in opened:
        shapes = [tuple(each[spec.name]) for each in samples if spec.name in each]
        if not shapes:
            dims = ", ".join(str(dim) for dim in spec.shape)
            raise CompileFailed(
                f"input {spec.name!r:.120} has open dimensions [{dims}] and no sample tells their lengths",
                hint="Drop calibration samples beside the model, or state its shape under inputs in the job file.",
            )
        if wrong := [shape for shape in shapes if len(shape) != len(spec.shape)]:
            raise CompileFailed(
                f"samples of input {spec.name!r:.120} have {len(wrong[0])} axes, the model has {len(spec.shape)}",
                hint="Give samples in the model's shape.",
            )
    found = [each for each in samples if all(spec.name in each for spec in opened)]
    if not found:
        raise CompileFailed("no sample has all inputs with open dimensions", hint="Give every sample all inputs.")
    return found


def _seen(spec: TensorSpec, axis: int, samples: Sequence[Shapes], usual: Shapes) -> Span:
    lengths = [shapes[spec.name][axis] for shapes in samples]
    return Span(least=min(lengths), typical=usual[spec.name][axis], most=max(lengths))


def _stated(opened: Sequence[TensorSpec], stated: Stated) -> tuple[dict[tuple[str, int], Span], dict[str, Span]]:
    """The spans that a job file states: by input and axis where the model has no name for the dimension, else by that name."""
    by_place: dict[tuple[str, int], Span] = {}
    by_name: dict[str, Span] = {}
    hints = dict(stated)
    for spec in opened:
        shape = hints.get(spec.name, InputHint()).shape or ()
        for axis, (dim, hinted) in enumerate(zip(spec.shape, shape, strict=False)):
            if not isinstance(hinted, Span) or isinstance(dim, int):
                continue
            if dim == _NAMELESS:
                by_place[spec.name, axis] = hinted
            else:
                by_name[dim] = hinted
    return by_place, by_name


def _within(span: Span, seen: Span, what: str) -> Span:
    """What is stated, with the usual sample's length as the typical one where none is."""
    if seen.least < span.least or seen.most > span.most:
        beyond = seen.most if seen.most > span.most else seen.least
        raise CompileFailed(
            f"a sample has the length {beyond} in dimension {what}, and the job file states {span}",
            hint="State a wider range under inputs in the job file, or leave that sample out.",
        )
    return Span(least=span.least, typical=span.typical or seen.typical, most=span.most)


def _parts(dim: str) -> set[str]:
    """The names in a sum such as ``past + 1``; empty for a dimension that is none."""
    parts = [part.strip() for part in dim.split("+")]
    return {part for part in parts if not part.isdigit()} if len(parts) > 1 else set()


def _summed(dim: str, lengths: Mapping[str, Span]) -> Span:
    parts = [part.strip() for part in dim.split("+")]
    spans = [Span(least=int(p), typical=int(p), most=int(p)) if p.isdigit() else lengths[p] for p in parts]
    return Span(
        least=sum(span.least for span in spans),
        typical=sum(span.typical or span.most for span in spans),
        most=sum(span.most for span in spans),
    )


def _range(spec: TensorSpec, spans: Mapping[tuple[str, int], Span]) -> Range:
    own = [spans[spec.name, axis] for axis in range(len(spec.shape))]
    return Range(
        input=spec.name,
        least=tuple(span.least for span in own),
        typical=tuple(span.typical or span.most for span in own),
        most=tuple(span.most for span in own),
    )
