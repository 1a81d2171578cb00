"""Weights in 8 bits down to 1.6, arithmetic in float: what a model costs on disk, and nothing else.

Runs after the graph is clean. In comes a float32 model, out goes the same model whose weights are packed codes with the nodes that unpack
them; ONNX Runtime folds those at load. So this buys bytes of the file only: latency and memory stay the original's, except
for lookup tables in 8 bits, which stay packed in memory as well. Every kind of reader counts: Conv, Gemm, MatMul, lookup
tables, LSTM and GRU.

Settings (all optional):

- ``bits``       8 | 6 | 5 | 4 | 3 | 2, the least for each weight
- ``levels``     integer | palette (k-means) | ternary (three levels, 1.6 bits)
- ``block``      inputs that share a scale within an output channel; 0: all of them
- ``table_bits`` bits of lookup tables; 0: as ``bits``
- ``noise``      largest power of a weight's error over the weight's own: one that misses it gets more bits; 0: no limit
- ``skip``       JSON list of names of weights or nodes that stay float
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.calibrate import codebook, packing, qparams
from edgeopt.calibrate.codebook import Codes, Grid, Rows
from edgeopt.calibrate.scheme import read_names, read_settings
from edgeopt.errors import PassFailed
from edgeopt.graph import compact, edit
from edgeopt.graph.compact import Weight
from edgeopt.graph.quantizable import layer_name
from edgeopt.graph.unpack import Packed, Unpacker
from edgeopt.protocols import Evidence, Settings
from edgeopt.records import Signature, Target

if TYPE_CHECKING:
    from edgeopt.protocols import Model

WIDTHS = (2, 3, 4, 5, 6, 8)
LEVELS = ("integer", "palette", "ternary")
_WHOLE_BYTE = 8
_LEAST_BYTES = 1024
"""A weight below this many bytes of codes stays in 8 bits: unpacking it takes more nodes than it saves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightScheme:
    """The settings, checked."""

    bits: int = 8
    levels: str = "integer"
    block: int = 0
    table_bits: int = 0
    noise: float = 0.0
    skip: str = "[]"

    def check(self) -> None:
        """Raises :class:`~edgeopt.errors.PassFailed` for what has no representation."""
        if self.bits not in WIDTHS or self.table_bits not in (0, *WIDTHS):
            raise PassFailed(
                f"weights in {self.bits} bits, tables in {self.table_bits} have no representation",
                hint=f"Use one of {', '.join(map(str, WIDTHS))} bits.",
            )
        if self.levels not in LEVELS:
            raise PassFailed(f"{self.levels!r} is no kind of levels", hint=f"Use one of {', '.join(LEVELS)}.")
        if self.block < 0 or self.noise < 0:
            raise PassFailed(
                f"block {self.block} or noise {self.noise:g} is negative", hint="Leave the setting out, or give 0."
            )


class QuantizeWeights:
    """Float32 in, packed weights and float arithmetic out."""

    name = "quantize_weights"
    lossless = False
    needs_data = False

    def refuse(self, signature: Signature, target: Target) -> str | None:
        """Quantized already, or a target that cannot unpack."""
        if signature.quantized:
            return "the model is quantized already"
        if target.name.startswith("tensorrt"):
            return "a TensorRT engine stores its weights unpacked"
        return None

    def apply(self, model: Model, settings: Settings, evidence: Evidence) -> Model:  # noqa: ARG002 - needs no data
        """The packed model; raises :class:`~edgeopt.errors.PassFailed` where nothing can be packed."""
        scheme = read_settings(WeightScheme, settings, technique=self.name)
        scheme.check()
        skip = read_names(scheme.skip)
        packed = edit.copy(model)
        found = [
            weight
            for weight in compact.weights(packed.graph)
            if weight.name not in skip and layer_name(weight.reader) not in skip
        ]
        if not found:
            raise PassFailed(
                f"no float32 weight of {compact.LEAST_ELEMENTS} elements or more is left to pack ({len(skip)} skipped)",
                hint="Leave this technique out for this model.",
            )
        unpacker = Unpacker(packed)
        for weight in found:
            _write(weight, scheme, unpacker)
        edit.prune(packed)
        return packed


def _write(weight: Weight, scheme: WeightScheme, unpacker: Unpacker) -> None:
    rows = weight.rows()
    for bits in _widths(weight, scheme):
        if bits == _WHOLE_BYTE:
            break
        grid = _grid(weight, rows, scheme, bits)
        codes = grid.encode(rows)
        if not scheme.noise or _noise(rows, grid.decode(codes)) <= scheme.noise:
            _write_levels(weight, grid, codes, unpacker)
            return
    _write_bytes(weight, rows, unpacker)


def _widths(weight: Weight, scheme: WeightScheme) -> list[int]:
    """The bits to try, fewest first; the last is a whole byte."""
    least = scheme.table_bits if weight.is_table and scheme.table_bits else scheme.bits
    if weight.size * least < _LEAST_BYTES * 8:
        return [_WHOLE_BYTE]
    return [bits for bits in WIDTHS if bits >= least]


def _grid(weight: Weight, rows: Rows, scheme: WeightScheme, bits: int) -> Grid:
    block = codebook.block_of(rows.shape[1], scheme.block if weight.may_block else 0)
    if scheme.levels == "palette":
        return codebook.fit_palette(rows, 1 << bits, block=block)
    if scheme.levels == "ternary" and bits == min(WIDTHS):
        return codebook.fit_levels(rows, codebook.ternary_levels(), block=block)
    return codebook.fit_levels(rows, codebook.integer_levels(bits), block=block)


def _noise(rows: Rows, decoded: Rows) -> float:
    """Power of the error over the weight's own."""
    power = float(np.square(rows).sum(dtype=np.float64))
    return float(np.square(decoded - rows).sum(dtype=np.float64)) / power if power else 0.0


def _write_levels(weight: Weight, grid: Grid, codes: Codes, unpacker: Unpacker) -> None:
    ordered = weight.from_rows(codes)
    planes = [Packed(packing.pack(ordered, plane), plane.table()) for plane in packing.planes(grid.levels)]
    view, _ = weight.view(grid.block)
    unpacker.levels(weight, planes, grid.codebook, scale=weight.scale_view(grid.scale, grid.block), view=view)


def _write_bytes(weight: Weight, rows: Rows, unpacker: Unpacker) -> None:
    parameters = qparams.weight_qparams(rows, axis=0)
    codes: NDArray[np.int8] = qparams.quantize(rows, parameters).astype(np.int8)
    ordered = weight.from_rows(codes)
    if weight.is_table and _only_looked_up(weight):
        sides = (weight.shape[0], *[1] * (len(weight.shape) - 1))
        unpacker.looked_up(weight, ordered, parameters.scale.reshape(sides))
    else:
        # One scale a row: the shape in which it broadcasts over the weight itself.
        unpacker.scaled(weight, ordered, parameters.scale.reshape(weight.row_sides))


def _only_looked_up(weight: Weight) -> bool:
    """Whether all readers take whole rows out of it."""
    for use in weight.value.uses():
        axis = use.node.attributes.get("axis")
        if use.node.op_type != "Gather" or use.idx != 0 or (axis is not None and axis.as_int() != 0):
            return False
        if use.node.graph is not weight.reader.graph:
            return False
    return True
