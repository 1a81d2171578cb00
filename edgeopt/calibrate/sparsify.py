"""Which weights go, and how those that are left make good for it.

Stands under ``passes.prune_weights``. In come a weight's rows and the second moments of its inputs (see ``gram``), out go the mask and the weights that are left.

- ``magnitude`` removes the smallest and touches nothing else; ``found`` takes the zeros that an earlier pass left.
- ``sparsegpt`` goes through the columns: what removing (or rounding) a weight does to the output, the columns behind it make good along the inverse of
  ``X^T X``, and who goes next is decided on weights that have made good already (E. Frantar and D. Alistarh, "SparseGPT: Massive Language Models Can Be Accurately
  Pruned in One-Shot", ICML 2023, arXiv:2301.00774). Unlike the paper, columns with the largest inputs go first, as in ``compensate``, and each block of columns loses
  what it would lose by one threshold for the whole layer instead of the same share.
- The layers' shares under one global share are those of LAMP: a weight counts by its square over the squares of all weights of its layer that are no smaller
  (J. Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021, arXiv:2010.07611).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate import gram
from edgeopt.calibrate.codebook import Grid, Rows, nearest
from edgeopt.calibrate.gram import Moments
from edgeopt.calibrate.masks import Mask, Pattern

Order = NDArray[np.intp]
"""Columns in the order in which they are gone through; with a pattern, group after group."""
_LAZY = 128
"""Columns whose effect on the rest is applied at once; also those that compete with each other without a pattern."""
_MOST_LEFT_OUT = 0.95
"""Of one layer under a global share: a layer without weights passes nothing on."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What goes from each layer's rows: ``share`` of all, or a pattern within each of ``groups`` (columns, [groups, size])."""

    share: float
    pattern: Pattern | None = None
    groups: Order | None = None


def magnitude(rows: Rows, removal: Removal) -> Mask:
    """Without the smallest weights of the layer, or of each group."""
    size = np.abs(rows)
    if removal.pattern is None or removal.groups is None:
        return _without_least(size, round(removal.share * rows.size))
    kept = np.empty(rows.shape, np.bool_)
    kept[:, removal.groups.reshape(-1)] = _within_groups(size[:, removal.groups], removal.pattern).reshape(rows.shape)
    return kept


def found(rows: Rows, removal: Removal) -> Mask | None:
    """Without the zeros that are there already; None where they are fewer than the share, or do not follow the pattern."""
    if removal.pattern is None:
        kept = rows != 0
        return kept if kept.mean() <= 1 - removal.share else None
    # A pattern keeps its number from every group, be it a zero.
    kept = magnitude(rows, removal)
    return None if rows[~kept].any() else kept


def reconstructed(rows: Rows, moments: Moments, removal: Removal) -> tuple[Mask, Rows]:
    """The mask under which the layer's output changes least, and the weights with zeros where they went."""
    order, factor = _factored(moments, removal)
    work = rows[:, order]
    power = np.diag(factor)
    if removal.pattern is None:
        limits = _block_counts(np.square(work / power), removal.share)
        choose = _unstructured(limits, power)
        stride = _LAZY
    else:
        choose, stride = _patterned(removal.pattern, power), removal.pattern.size
    kept, values = _swept(work, factor, choose, stride=stride)
    back = np.argsort(order)
    return kept[:, back], values[:, back]


def rounded(rows: Rows, moments: Moments, kept: Mask, grid: Grid) -> Rows:
    """``rows`` on the levels of ``grid`` where ``kept`` and zero elsewhere, both errors made good."""
    order, factor = moments.factored()
    scales, mask = grid.scales()[:, order], kept[:, order]

    def level(column: int, values: NDArray[np.float32]) -> NDArray[np.float32]:
        scale = scales[:, column]
        found: NDArray[np.float32] = grid.codebook[nearest(values, scale, grid.codebook)] * scale
        return found

    _, values = _swept(rows[:, order], factor, lambda _, start, end: mask[:, start:end], stride=_LAZY, level=level)
    return values[:, np.argsort(order)]


def column_groups(shape: tuple[int, ...], axis: int, pattern: Pattern) -> Order | None:
    """Which columns of a weight's rows a pattern takes together: those of neighbouring input channels at one place of the kernel.

    That is what TensorRT's sparse kernels read. None where the channels do not come out even.
    """
    sides = [side for index, side in enumerate(shape) if index != axis]
    channels, places = sides[0], int(np.prod(sides[1:]))
    if channels % pattern.size:
        return None
    columns = np.arange(channels * places).reshape(channels, places)
    return columns.T.reshape(-1, pattern.size)


def layer_shares(weights: Mapping[str, Rows], share: float) -> dict[str, float]:
    """What each layer loses when ``share`` of all weights go, those with the least LAMP score first."""
    scores = {name: _lamp(rows) for name, rows in weights.items()}
    together = np.concatenate(list(scores.values()))
    count = round(share * together.size)
    limit = np.partition(together, count)[count] if count < together.size else np.inf
    return {name: min(_MOST_LEFT_OUT, float((each < limit).mean())) for name, each in scores.items()}


def smallest(sizes: Mapping[str, int], share: float) -> frozenset[str]:
    """Names of the smallest, up to ``share`` of all: they cost almost nothing and are often the most sensitive."""
    left, names = share * sum(sizes.values()), []
    for name in sorted(sizes, key=lambda each: sizes[each]):
        left -= sizes[name]
        if left < 0:
            break
        names.append(name)
    return frozenset(names)


Choose = Callable[[Rows, int, int], Mask]
"""Which of the columns ``start:end`` are left, given the weights as they are now."""
Level = Callable[[int, NDArray[np.float32]], NDArray[np.float32]]
"""What a column's weights become before they are stored."""


def _swept(rows: Rows, factor: Rows, choose: Choose, *, stride: int, level: Level | None = None) -> tuple[Mask, Rows]:
    """``rows`` (in the factor's order) column by column: those not chosen become zero, the later columns make good for it."""
    work = rows.astype(np.float32)
    kept, values = np.empty(rows.shape, np.bool_), np.zeros(rows.shape, np.float32)
    width = _LAZY - _LAZY % stride
    for start in range(0, rows.shape[1], width):
        end = min(start + width, rows.shape[1])
        errors = np.empty((rows.shape[0], end - start), np.float32)
        for column in range(start, end):
            if (column - start) % stride == 0:
                kept[:, column : column + stride] = choose(work, column, min(column + stride, end))
            left = work[:, column] if level is None else level(column, work[:, column])
            values[:, column] = np.where(kept[:, column], left, 0)
            error = (work[:, column] - values[:, column]) / factor[column, column]
            work[:, column + 1 : end] -= np.outer(error, factor[column, column + 1 : end])
            errors[:, column - start] = error
        work[:, end:] -= errors @ factor[start:end, end:]
    return kept, values


def _factored(moments: Moments, removal: Removal) -> tuple[Order, Rows]:
    if removal.groups is None:
        return moments.factored()
    power = np.diag(moments.matrix)[removal.groups].sum(axis=1)
    order = removal.groups[np.argsort(-power, kind="stable")].reshape(-1)
    return order, gram.factor(moments.matrix, order)


def _unstructured(counts: list[int], power: NDArray[np.float32]) -> Choose:
    def choose(work: Rows, start: int, end: int) -> Mask:
        return _without_least(np.square(work[:, start:end] / power[start:end]), counts[start // _LAZY])

    return choose


def _patterned(pattern: Pattern, power: NDArray[np.float32]) -> Choose:
    def choose(work: Rows, start: int, end: int) -> Mask:
        return _within_groups(np.square(work[:, start:end] / power[start:end]), pattern)

    return choose


def _block_counts(scores: NDArray[np.float32], share: float) -> list[int]:
    """How many of each block of columns lie among the ``share`` with the least scores of the whole layer."""
    kept = _without_least(scores, round(share * scores.size))
    return [int((~kept[:, start : start + _LAZY]).sum()) for start in range(0, scores.shape[1], _LAZY)]


def _without_least(scores: NDArray[np.float32], count: int) -> Mask:
    """False for exactly ``count`` of the least scores, ties by position."""
    kept = np.ones(scores.size, np.bool_)
    kept[np.argsort(scores, axis=None, kind="stable")[:count]] = False
    return kept.reshape(scores.shape)


def _within_groups(scores: NDArray[np.float32], pattern: Pattern) -> Mask:
    """True for the ``pattern.kept`` largest along the last axis."""
    order = np.argsort(-scores, axis=-1, kind="stable")[..., : pattern.kept]
    kept = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(kept, order, True, axis=-1)
    return kept


def _lamp(rows: Rows) -> NDArray[np.float64]:
    """Scores of all weights of a layer, ascending."""
    squares = np.sort(np.square(rows.astype(np.float64)), axis=None)
    rest = np.cumsum(squares[::-1])[::-1]
    scores: NDArray[np.float64] = np.divide(squares, rest, out=np.zeros_like(squares), where=rest > 0)
    return scores
