"""Sparse weights: single weights become zero, those that are left make good for it, and the file says only where and what they are.

Runs on the float graph behind clean-up and channel pruning, before the rest is packed by ``quantize_weights``. In comes a model, out goes one with the same inputs,
outputs and shapes. Runtimes compute with dense matrices, zeros and all: this buys bytes of the file, no speed and no memory, except where TensorRT is told of 2:4
(``form=dense``). Convolutions without groups, Gemm and MatMul count; everything else stays as it is.

Settings (all optional):

- ``pattern`` unstructured | n:m, such as 2:4: n are left of each m neighbouring inputs
- ``ratio``   share of the weights that go, without a pattern
- ``method``  sparsegpt (needs calibration samples) | magnitude | found: the zeros that are there, say behind ``distill``; see ``calibrate.sparsify``
- ``scope``   local: every layer loses the same share; global: LAMP's shares
- ``bits``    8 | 6 | 5 | 4 | 3 | 2 for the weights that are left, on levels of their own; 0: float32
- ``noise``   largest noise-to-signal power of a layer's output (of the weight itself with magnitude): a layer that misses it stays dense; 0: no limit
- ``small``   share of these layers' weights, smallest first, that stays dense
- ``form``    masked: a bit a weight (less with a pattern) and the weights that are left, unpacked at load | dense: zeros in place
- ``skip``    JSON list of names of weights or nodes that stay dense
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate import codebook, compensate, gram, masks, packing, sparsify
from edgeopt.calibrate.codebook import Grid, Rows
from edgeopt.calibrate.gram import Moments
from edgeopt.calibrate.masks import Mask
from edgeopt.calibrate.scheme import read_names, read_settings
from edgeopt.calibrate.sparse_scheme import SparseScheme
from edgeopt.calibrate.sparsify import Removal
from edgeopt.errors import PassFailed
from edgeopt.graph import compact, edit, opset, portable, quantizable
from edgeopt.graph.compact import Weight
from edgeopt.graph.sparse import FIRST_OPSET, Coded, Masked, SparseWriter
from edgeopt.graph.unpack import Packed
from edgeopt.protocols import Evidence, Settings
from edgeopt.records import Signature, Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeopt.protocols import Model

_BYTE = 8
_LEAST_ELEMENTS = 1024
"""A smaller weight has no zeros to spare, and the nodes that undo its mask take as much as they save."""
_LEAST_FOUND = 0.1
"""Share of zeros below which a layer counts as dense."""
Kind = TypeVar("Kind", bound=np.generic)


@dataclass(frozen=True, slots=True)
class _Sparse:
    """A layer's weight after the removal: its rows with zeros, and the levels of those that are left."""

    weight: Weight
    kept: Mask
    rows: Rows
    grid: Grid | None


class PruneWeights:
    """Dense weights in, sparse ones out, stored as what is left of them."""

    name = "prune_weights"
    lossless = False
    needs_data = False

    def refuse(self, signature: Signature, target: Target) -> str | None:
        """A quantized model, or one without layers that read a matrix."""
        del target
        if signature.quantized:
            return "the model is quantized already"
        if not signature.count("Conv", "Gemm", "MatMul"):
            return "the model has no layer whose weights could be sparse"
        return None

    def apply(self, model: Model, settings: Settings, evidence: Evidence) -> Model:
        """The sparse model; raises :class:`~edgeopt.errors.PassFailed` where no layer can be, or samples are missing."""
        scheme = read_settings(SparseScheme, settings, technique=self.name)
        scheme.check()
        if scheme.form == "masked":
            _check_form(model, evidence.target)
        own = edit.copy(model)
        found = _weights(own, scheme)
        moments = _moments(model, scheme, evidence)
        if scheme.method == "sparsegpt":
            found = [weight for weight in found if weight.name in moments]
        removals = _removals(found, scheme)
        made = [
            _pruned(weight, removals[weight.name], scheme, moments.get(weight.name))
            for weight in found
            if weight.name in removals
        ]
        kept = [sparse for sparse in made if sparse is not None]
        if not kept:
            lacks = "has zeros enough" if scheme.method == "found" else f"keeps the noise of {scheme.noise:g}"
            raise PassFailed(
                f"no layer became sparse: {len(found)} are large enough, the pattern {scheme.pattern} fits "
                f"{len(removals)}, none {lacks}",
                hint="Allow more noise, or leave this technique out for this model.",
            )
        writer = SparseWriter(own)
        for sparse in kept:
            if scheme.form == "dense":
                edit.set_constant(sparse.weight.value, sparse.weight.from_rows(sparse.rows))
            else:
                writer.masked(sparse.weight, _stored(sparse, scheme))
        edit.prune(own)
        return own

    def layers(self, model: Model) -> tuple[str, ...]:
        """Names of the layers that would be sparse by default, in graph order: what ``skip`` may list."""
        return tuple(quantizable.layer_name(weight.reader) for weight in _weights(model, SparseScheme()))


def _moments(model: ir.Model, scheme: SparseScheme, evidence: Evidence) -> dict[str, Moments]:
    """What removing and rounding are made good with: needed by sparsegpt, welcome where zeros are there and the rest is rounded."""
    rounds = scheme.method == "found" and scheme.bits and evidence.sample_count
    if scheme.method != "sparsegpt" and not rounds:
        return {}
    return gram.collect(model, quantizable.layers(model.graph), evidence)


def _check_form(model: ir.Model, target: Target) -> None:
    if target.name.startswith("tensorrt"):
        raise PassFailed("TensorRT does not unpack masked weights", hint="Use form=dense.")
    if opset.opset(model) < FIRST_OPSET:
        raise PassFailed(
            f"opset {opset.opset(model)} is older than {FIRST_OPSET}, the first with CumSum",
            hint=f"Export the model again with opset_version={FIRST_OPSET} or newer.",
        )


def _weights(model: ir.Model, scheme: SparseScheme) -> list[Weight]:
    """Weights of plain layers of the main graph, without the smallest and those to skip."""
    layers = {layer.node: layer for layer in quantizable.layers(model.graph) if gram.width(layer)}
    skip = read_names(scheme.skip)
    found = [
        weight
        for weight in compact.weights(model.graph)
        if weight.size >= _LEAST_ELEMENTS
        and portable.suits(weight, layers)
        and skip.isdisjoint({weight.name, quantizable.layer_name(weight.reader)})
    ]
    small = 0.0 if scheme.method == "found" else scheme.small
    dense = sparsify.smallest({weight.name: weight.size for weight in found}, small)
    return [weight for weight in found if weight.name not in dense]


def _removals(found: list[Weight], scheme: SparseScheme) -> dict[str, Removal]:
    """What goes from each weight; those whose inputs do not come out even with the pattern have none."""
    pattern = scheme.groups
    if pattern is not None:
        grouped = {weight.name: sparsify.column_groups(weight.shape, weight.axis, pattern) for weight in found}
        return {
            name: Removal(pattern.sparsity, pattern, groups) for name, groups in grouped.items() if groups is not None
        }
    if scheme.method == "found":
        # A mask takes a bit from every weight and spares the bits of those that are zero.
        least = max(_LEAST_FOUND, 1 / scheme.bits if scheme.bits else 0.0)
        return {weight.name: Removal(least) for weight in found}
    if scheme.scope == "global" and found:
        shares = sparsify.layer_shares({weight.name: weight.rows() for weight in found}, scheme.ratio)
        return {name: Removal(share) for name, share in shares.items() if share}
    return {weight.name: Removal(scheme.ratio) for weight in found}


def _pruned(weight: Weight, removal: Removal, scheme: SparseScheme, moments: Moments | None) -> _Sparse | None:
    """The sparse weight; None where it misses the noise."""
    rows = weight.rows()
    kept: Mask | None
    if scheme.method == "sparsegpt" and moments is not None:
        kept, left = sparsify.reconstructed(rows, moments, removal)
    else:
        kept = sparsify.found(rows, removal) if scheme.method == "found" else sparsify.magnitude(rows, removal)
        if kept is None:
            return None
        left = np.where(kept, rows, np.float32(0))
    grid = None
    if scheme.bits:
        grid = _grid(left, kept, scheme.bits)
        left = left if moments is None else sparsify.rounded(rows, moments, kept, grid)
        left = np.where(kept, grid.decode(grid.encode(left)), np.float32(0))
    if scheme.noise and compensate.noise(rows, left, moments) > scheme.noise:
        return None
    return _Sparse(weight, kept, left, grid)


def _grid(left: Rows, kept: Mask, bits: int) -> Grid:
    """Levels of the weights that are left: none of them is spent on zero."""
    columns = left.shape[1]
    if bits == _BYTE:
        return codebook.fit_levels(left, codebook.integer_levels(bits), block=columns)
    return codebook.fit_palette(left, 1 << bits, block=columns, weights=kept.astype(np.float32))


def _stored(sparse: _Sparse, scheme: SparseScheme) -> Masked:
    weight, pattern, grid = sparse.weight, scheme.groups, sparse.grid
    # What a pattern counts has to lie side by side: the inputs last.
    axes = tuple(range(len(weight.shape)))
    if pattern is not None:
        others = [side for side in axes if side != weight.axis]
        axes = (weight.axis, *others[1:], others[0])
    mask = _ordered(weight.from_rows(sparse.kept.astype(np.uint8)), axes).astype(np.bool_)
    packed = Packed(*masks.pack(mask, pattern))
    if grid is None:
        values = _ordered(weight.from_rows(sparse.rows), axes)[mask]
        return Masked(packed, values, values.size, axes)
    codes = _ordered(weight.from_rows(grid.encode(sparse.rows)), axes)[mask]
    planes = tuple(Packed(packing.pack(codes, plane), plane.table()) for plane in packing.planes(grid.levels))
    scale = grid.scale.reshape(weight.row_sides)
    return Masked(packed, Coded(planes, grid.codebook, scale), codes.size, axes)


def _ordered(data: NDArray[Kind], axes: tuple[int, ...]) -> NDArray[Kind]:
    """``data`` in storage order, flat."""
    return np.ascontiguousarray(data.transpose(axes)).reshape(-1)
