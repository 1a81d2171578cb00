"""Weights in 8 bits down to 1.6, activations in float: what a model costs on disk.

Runs after the graph is clean. In comes a float32 model, out goes the same model whose weights are packed codes with the nodes that unpack
them; ONNX Runtime folds those at load. So this buys bytes of the file only: latency and memory stay the original's, except for
lookup tables in 8 bits, which stay packed in memory as well. Every kind of reader counts: Conv, Gemm, MatMul, lookup tables, LSTM and GRU.
With ``form=kernel`` MatMul and Gemm keep their packed weights in memory, and the runtime's kernel for them decides on speed;
``form=portable`` is for other runtimes.

Settings (all optional):

- ``bits``         8 | 6 | 5 | 4 | 3 | 2, the least for each weight
- ``levels``       integer | affine (a zero for each block, HQQ) | palette (k-means) | ternary (three levels, 1.6 bits)
- ``block``        inputs that share a scale within an output channel; 0: all of them
- ``table_bits``   bits of lookup tables; 0: as ``bits``
- ``compensation`` none | gptq, see ``calibrate.compensate``; needs calibration samples | hqq: as ``levels=affine``, needs none
- ``small``        share of all weights, smallest tensors first, that stay in 8 bits: they are cheap and often the most sensitive
- ``noise``        largest noise-to-signal power of a layer's output (of the weight itself without samples): a weight that misses it gets more bits
- ``mean_bits``    bits a weight on average, spent where the outputs need them (see ``calibrate.allocation``) from ``bits`` up; 0: all the same
- ``form``         unpacked | kernel (MatMul and Gemm as com.microsoft MatMulNBits: 2, 4 or 8 bits, integer levels, or 2 or 4 affine ones, a block of 16 to 256, 0: 32) |
                   portable (Conv, MatMul and Gemm behind DequantizeLinear: int8 by channel, or int4, by block where the weight is a matrix; opset 21, the rest stays float)
- ``accuracy_level`` of MatMulNBits: 0 (float) or 4 (int8 activations)
- ``skip``         JSON list of names of weights or nodes that stay float
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate import allocation, codebook, compensate, gram, packing
from edgeopt.calibrate.codebook import Codes, Grid, Rows
from edgeopt.calibrate.collect import fingerprint
from edgeopt.calibrate.gram import Moments
from edgeopt.calibrate.scheme import read_names, read_settings
from edgeopt.calibrate.weight_scheme import WIDTHS, WeightScheme
from edgeopt.errors import PassFailed
from edgeopt.graph import compact, edit, nbits, portable, quantizable
from edgeopt.graph.compact import Weight
from edgeopt.graph.nbits import KernelWriter
from edgeopt.graph.portable import PortableWriter
from edgeopt.graph.unpack import Levels, Packed, Unpacker
from edgeopt.protocols import Evidence, Settings
from edgeopt.records import Signature, Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeopt.protocols import Model

_BYTE = 8
_MEASURED_BITS = 4
_LEAST_BYTES = 1024
"""A weight below this many bytes of codes stays in 8 bits: unpacking it takes more nodes than it saves."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What decides how each weight is coded."""

    scheme: WeightScheme
    whole: frozenset[str]
    """Names of the weights that stay in 8 bits."""
    grams: dict[str, Moments] = field(default_factory=dict)
    allocated: dict[str, int] = field(default_factory=dict)
    """The least bits of single weights, where they are not all the same."""

    def widths(self, weight: Weight) -> list[int]:
        """The bits to try, fewest first; the last is a byte."""
        if weight.name in self.whole:
            return [_BYTE]
        least = self.scheme.table_bits if weight.is_table and self.scheme.table_bits else self.scheme.bits
        return [bits for bits in WIDTHS if bits >= self.allocated.get(weight.name, least)]


class QuantizeWeights:
    """Float32 in, packed weights and float arithmetic out."""

    name = "quantize_weights"
    lossless = False
    needs_data = False

    def refuse(self, signature: Signature, target: Target) -> str | None:
        """Quantized already."""
        del target
        if signature.quantized:
            return "the model is quantized already"
        return None

    def apply(self, model: Model, settings: Settings, evidence: Evidence) -> Model:
        """The packed model; raises :class:`~edgeopt.errors.PassFailed` where nothing can be packed."""
        scheme = read_settings(WeightScheme, settings, technique=self.name)
        scheme.check()
        if evidence.target.name.startswith("tensorrt") and scheme.form != "portable":
            raise PassFailed(f"TensorRT has no kernel for form={scheme.form}", hint="Use form=portable.")
        skip = read_names(scheme.skip)
        packed = edit.copy(model)
        if scheme.form == "portable":
            packed = portable.prepared(packed)
        found = [weight for weight in compact.weights(packed.graph) if skip.isdisjoint(_names(weight))]
        if not found:
            raise PassFailed(
                f"no float32 weight of {compact.LEAST_ELEMENTS} elements or more is left to pack ({len(skip)} skipped)",
                hint="Leave this technique out for this model.",
            )
        grams: dict[str, Moments] = {}
        if scheme.compensation == "gptq":
            grams = gram.collect(model, quantizable.layers(model.graph), evidence)
        whole = _small(found, scheme)
        spent = _allocated(model, [weight for weight in found if weight.name not in whole], scheme, evidence)
        plan = _Plan(scheme, whole, grams, spent)
        if scheme.form == "kernel":
            found = _write_kernels(packed, found, plan)
        if scheme.form == "portable":
            _write_portable(packed, found, plan)
            found = []
        unpacker = Unpacker(packed)
        for weight in found:
            _write(weight, plan, unpacker)
        edit.prune(packed)
        return packed

    def layers(self, model: Model) -> tuple[str, ...]:
        """Names of the first readers of the weights that would be packed, in graph order: what ``skip`` may list."""
        return tuple(dict.fromkeys(quantizable.layer_name(weight.reader) for weight in compact.weights(model.graph)))


def _names(weight: Weight) -> set[str]:
    return {weight.name, quantizable.layer_name(weight.reader)}


def _small(found: list[Weight], scheme: WeightScheme) -> frozenset[str]:
    """The smallest weights, up to the share that ``small`` allows, and those not worth the nodes."""
    left = scheme.small * sum(weight.size for weight in found)
    names = []
    for weight in sorted(found, key=lambda each: each.size):
        left -= weight.size
        if left >= 0 or weight.size * scheme.bits < _LEAST_BYTES * 8:
            names.append(weight.name)
    return frozenset(names)


def _allocated(model: Model, found: list[Weight], scheme: WeightScheme, evidence: Evidence) -> dict[str, int]:
    """Bits for each of the weights; empty where all get the same."""
    if not scheme.mean_bits or not found:
        return {}
    sizes = {weight.name: weight.size for weight in found}
    groups = allocation.groups(list(sizes))
    others = {weight.name for weight in compact.weights(model.graph)}
    key = f"{QuantizeWeights.name}.damages:{fingerprint(model)}:{groups}:{scheme.levels}:{scheme.block}"

    def packed(wanted: Collection[str], layers: Model, seen: Evidence) -> Model:
        skip = json.dumps(sorted(others - set(wanted)))
        settings: Settings = {
            "bits": _MEASURED_BITS,
            "levels": scheme.levels,
            "block": scheme.block,
            "small": 0.0,
            "skip": skip,
        }
        return QuantizeWeights().apply(layers, settings, seen)

    together = [sum(sizes[name] for name in group) for group in groups]
    damage = evidence.memo.get(key)
    if not isinstance(damage, list):
        readers = {weight.name: [use.node for use in weight.value.uses()] for weight in found}
        nodes = [[node for name in group for node in readers[name]] for group in groups]
        damage = allocation.damages_at_once(model, nodes, partial(packed, sizes), evidence, sizes=together)
        if damage is None:
            damage = allocation.damages(model, groups, lambda group: packed(group, model, evidence), evidence)
        evidence.memo[key] = damage
    bits = allocation.allocate(
        damage,
        together,
        [width for width in WIDTHS if width >= scheme.bits],
        measured_bits=_MEASURED_BITS,
        mean_bits=scheme.mean_bits,
    )
    return {name: width for group, width in zip(groups, bits, strict=True) for name in group}


def _write_kernels(model: ir.Model, found: list[Weight], plan: _Plan) -> list[Weight]:
    """Writes what MatMulNBits takes; the weights that are left."""
    scheme, block = plan.scheme, plan.scheme.kernel_block
    layers = {layer.node: layer for layer in quantizable.layers(model.graph)}
    writer = KernelWriter(model, accuracy_level=scheme.accuracy_level)
    left = []
    for weight in found:
        if not nbits.suits(weight, layers, block):
            left.append(weight)
            continue
        rows, moments = weight.rows(), plan.grams.get(weight.name)
        if scheme.has_zeros:
            grid = codebook.fit_affine(rows, scheme.bits, block=block)
        else:
            grid = codebook.fit_levels(rows, codebook.integer_levels(scheme.bits), block=block)
        codes = _codes(rows, grid, moments)
        # the kernel counts codes, the grid's zero counts levels
        zero = None if grid.zero is None else grid.zero.astype(np.float32) / grid.step
        writer.write(weight, codes, grid.scale.astype(np.float32) * grid.step, bits=scheme.bits, zero=zero)
    return left


def _write_portable(model: ir.Model, found: list[Weight], plan: _Plan) -> None:
    """Writes what DequantizeLinear takes; the rest stays float, since TensorRT unpacks nothing else."""
    layers = {layer.node: layer for layer in quantizable.layers(model.graph)}
    writer = PortableWriter(model)
    suited = [weight for weight in found if portable.suits(weight, layers)]
    if not suited:
        raise PassFailed(
            f"none of {len(found)} weights is read by Conv, Gemm or MatMul alone",
            hint="Use form=unpacked, or leave this technique out for this model.",
        )
    for weight in suited:
        bits = _BYTE if weight.name in plan.whole else plan.scheme.bits
        rows, moments = weight.rows(), plan.grams.get(weight.name)
        block = portable.block_of(weight, plan.scheme.block if bits < _BYTE else 0)
        grid = codebook.fit_symmetric(rows, bits, block=block)
        codes = weight.from_rows(_signed(_codes(rows, grid, moments), grid))
        writer.write(weight, codes, grid.scale.astype(np.float32) * grid.step, bits=bits)


def _signed(codes: Codes, grid: Grid) -> NDArray[np.int8]:
    """Codes around zero, where the levels are evenly spaced."""
    return (codes.astype(np.int16) - grid.levels // 2).astype(np.int8)


def _codes(rows: Rows, grid: Grid, moments: Moments | None) -> Codes:
    return grid.encode(rows) if moments is None else compensate.compensated(rows, moments, grid)


def _write(weight: Weight, plan: _Plan, unpacker: Unpacker) -> None:
    rows, moments = weight.rows(), plan.grams.get(weight.name)
    for bits in plan.widths(weight):
        grid = _grid(weight, rows, plan.scheme, bits)
        codes = _codes(rows, grid, moments)
        if bits == _BYTE:
            _write_bytes(weight, grid, codes, unpacker)
        elif not plan.scheme.noise or compensate.noise(rows, grid.decode(codes), moments) <= plan.scheme.noise:
            _write_levels(weight, grid, codes, unpacker)
            return


def _grid(weight: Weight, rows: Rows, scheme: WeightScheme, bits: int) -> Grid:
    if bits == _BYTE:
        return codebook.fit_levels(rows, codebook.integer_levels(bits), block=rows.shape[1])
    block = codebook.block_of(rows.shape[1], scheme.block if weight.may_block else 0)
    if scheme.levels == "palette":
        return codebook.fit_palette(rows, 1 << bits, block=block)
    if scheme.has_zeros:
        return codebook.fit_affine(rows, bits, block=block)
    if scheme.levels == "ternary" and bits == min(WIDTHS):
        return codebook.fit_levels(rows, codebook.ternary_levels(), block=block)
    return codebook.fit_levels(rows, codebook.integer_levels(bits), block=block)


def _write_levels(weight: Weight, grid: Grid, codes: Codes, unpacker: Unpacker) -> None:
    ordered = weight.from_rows(codes)
    planes = [Packed(packing.pack(ordered, plane), plane.table()) for plane in packing.planes(grid.levels)]
    view, _ = weight.view(grid.block)
    scale, zero = (None if part is None else weight.scale_view(part, grid.block) for part in (grid.scale, grid.zero))
    assert scale is not None  # noqa: S101 - a grid always has scales
    unpacker.levels(weight, Levels(tuple(planes), grid.codebook, scale, zero, view))


def _write_bytes(weight: Weight, grid: Grid, codes: Codes, unpacker: Unpacker) -> None:
    """Signed bytes times one float32 scale a row, into which the codebook's step goes."""
    ordered = weight.from_rows(_signed(codes, grid))
    scale = grid.scale.astype(np.float32) * grid.step
    sides = weight.row_sides
    if weight.is_table and _only_looked_up(weight):
        unpacker.looked_up(weight, ordered, scale.reshape(sides))
    else:
        unpacker.scaled(weight, ordered, scale.reshape(sides))


def _only_looked_up(weight: Weight) -> bool:
    """Whether all readers take whole rows out of it."""
    for use in weight.value.uses():
        axis = use.node.attributes.get("axis")
        if use.node.op_type != "Gather" or use.idx != 0 or (axis is not None and axis.as_int() != 0):
            return False
        if use.node.graph is not weight.reader.graph:
            return False
    return True
