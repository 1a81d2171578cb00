"""The layers that read a family's units: which columns of which weight are whose, and which bias goes with them.

Stands between ``graph.groups`` and ``importance`` and ``reconstruct``. In come a model and its groups, out go :class:`Consumer` records. A weight's
*rows* are its outputs, its *columns* what meets one output (for a convolution: channels times kernel), as in ``gram.patches``. A grouped convolution has as many
*blocks* as groups, each with rows of its own that read channels of their own; all lose the same columns. Left out, so that removal stays
plain: grouped ConvTranspose, weights that several layers share, and readers other than Conv, ConvTranspose, Gemm and MatMul.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.calibrate import gram
from edgeopt.graph import edit, quantizable, tensors
from edgeopt.graph.groups import ChannelGroups, Family, Slot
from edgeopt.graph.quantizable import Layer

Columns = NDArray[np.intp]
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class Consumer:
    """A layer whose columns belong to units."""

    layer: Layer
    inputs_axis: int
    """The weight's axis that meets what the layer reads."""

    @staticmethod
    def of(layer: Layer) -> Consumer:
        """The consumer that ``layer`` is, whatever loses columns."""
        return Consumer(layer, 1 if layer.node.op_type == "Conv" else 1 - layer.weight_axis)

    @property
    def name(self) -> str:
        """The weight's name."""
        return str(self.layer.weight.name)

    @property
    def sides(self) -> tuple[int, ...]:
        tensor = tensors.constant(self.layer.weight)
        return tuple(int(side) for side in tensor.shape.numpy()) if tensor is not None else ()

    @property
    def kernel(self) -> int:
        """Columns an input channel has."""
        return int(np.prod(self.sides[2:]))

    @property
    def width(self) -> int:
        return self.sides[self.inputs_axis] * self.kernel

    @property
    def outputs(self) -> int:
        """Of all blocks together; a transposed weight holds only those of one group."""
        node = self.layer.node
        groups = node.attributes.get_int("group", 1) if node.op_type == "ConvTranspose" else 1
        return self.sides[self.layer.weight_axis] * groups

    @property
    def blocks(self) -> int:
        """The groups of a convolution; 1 for every other layer."""
        return self.layer.node.attributes.get_int("group", 1) if self.layer.node.op_type == "Conv" else 1

    def block(self, number: int) -> slice:
        """The outputs of a block."""
        each = self.outputs // self.blocks
        return slice(number * each, (number + 1) * each)

    def patches(self, data: NDArray[np.float32], number: int) -> NDArray[np.float32]:
        """The vectors that meet a block's rows: (places, columns), see ``gram.patches``."""
        if self.blocks > 1:
            channels = self.sides[self.inputs_axis]
            data = data[:, number * channels : (number + 1) * channels]
        return gram.patches(data, self.layer)

    def columns(self, indices: Collection[int]) -> Columns:
        """The columns of these indices of the weight's input axis."""
        chosen = np.asarray(sorted(indices), np.intp)
        return (chosen[:, None] * self.kernel + np.arange(self.kernel, dtype=np.intp)).reshape(-1)

    def rows(self) -> NDArray[np.float32]:
        """The weight as (outputs, columns)."""
        weight = np.asarray(tensors.array(self.layer.weight), np.float32)
        return np.moveaxis(weight, self.layer.weight_axis, 0).reshape(self.outputs, -1)

    def as_weight(self, rows: NDArray[np.floating]) -> NDArray[np.float32]:
        """``rows`` in the weight's own shape."""
        shape = np.moveaxis(np.empty(self.sides, np.bool_), self.layer.weight_axis, 0).shape
        weight = np.moveaxis(rows.reshape(shape), 0, self.layer.weight_axis)
        return np.ascontiguousarray(weight, np.float32)


def consumers(model: ir.Model) -> dict[str, Consumer]:
    """By the weight's name, in graph order: the layers of ``model`` that can be refitted."""
    found = {}
    for layer in quantizable.layers(model.graph, operators=LAYERS):
        reads_all = gram.width(layer) > 0 or layer.node.op_type == "Conv"
        if reads_all and not tensors.is_shared(layer.weight):
            found[str(layer.weight.name)] = Consumer.of(layer)
    return found


def of_family(family: Family, known: Mapping[str, Consumer]) -> list[tuple[Consumer, Slot]]:
    """The family's consumers among ``known``, each with where the units lie in its weight."""
    return [(known[slot.constant], slot) for slot in family.slots if slot.role == "consumer" and is_read(slot, known)]


def is_read(slot: Slot, known: Mapping[str, Consumer]) -> bool:
    """Whether one of ``known`` reads the units of ``slot``."""
    return slot.constant in known and slot.axis == known[slot.constant].inputs_axis


def removed_columns(
    groups: ChannelGroups, removed: Mapping[str, Collection[int]], known: Mapping[str, Consumer]
) -> dict[str, Columns]:
    """By the weight's name: the columns that go; only weights that lose some."""
    gone: dict[str, set[int]] = {}
    for family in groups.families:
        units = removed.get(family.name, ())
        for consumer, slot in of_family(family, known) if units else ():
            columns = (consumer.columns(slot.indices[unit]) for unit in units)
            gone.setdefault(consumer.name, set()).update(int(column) for each in columns for column in each)
    return {name: np.asarray(sorted(columns), np.intp) for name, columns in gone.items() if columns}


def losing(groups: ChannelGroups, removed: Mapping[str, Collection[int]]) -> list[str]:
    """Names of the weights that lose columns, whoever reads them."""
    slots = [slot for family in groups.families if removed.get(family.name) for slot in family.slots]
    return sorted({slot.constant for slot in slots if slot.role == "consumer"})


def bias_of(layer: Layer) -> ir.Value | None:
    """The constant vector, read nowhere else, that is added to every output of ``layer``; None where there is none."""
    if layer.node.op_type != "MatMul":
        return _own_vector(layer.bias, layer)
    output = layer.node.outputs[0]
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output():
        return None
    reader = uses[0].node
    if reader.op_type != "Add" or reader.domain not in ("", "ai.onnx") or reader.graph is not output.graph:
        return None
    return _own_vector(next((value for value in reader.inputs if value is not output), None), layer)


def with_biases(model: ir.Model, names: Collection[str]) -> ir.Model:
    """A copy in which the named weights' convolutions and Gemms have a bias, of zeros where there was none.

    Removing a channel shifts the mean of whoever read it, and only a bias can take that up.
    """
    own = edit.copy(model)
    fresh = edit.fresh_names(own)
    for layer in quantizable.layers(own.graph, operators=LAYERS):
        node = layer.node
        if str(layer.weight.name) not in names or node.op_type == "MatMul" or layer.bias is not None:
            continue
        zeros = np.zeros(Consumer.of(layer).outputs, np.float32)
        bias = edit.add_initializer(own.graph, fresh.fresh(f"{layer.weight.name}_bias"), zeros)
        node.resize_inputs(3)
        node.replace_input_with(2, bias)
    return own


def _own_vector(value: ir.Value | None, layer: Layer) -> ir.Value | None:
    tensor = tensors.constant(value)
    outputs = Consumer.of(layer).outputs
    if value is None or tensor is None or tensor.dtype != ir.DataType.FLOAT or tensors.is_shared(value):
        return None
    shape = tuple(tensor.shape.numpy())
    return value if tensor.size == outputs and shape[-1:] == (outputs,) else None
