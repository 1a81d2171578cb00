"""What the student's weights and values pass through: int8's rounding always, where it is wished, and dropout while it is trained.

Stands between the course and the replay, whose two transforms it sets. Dropout stands before each output's last layer, where it was in most networks when they were
trained (N. Srivastava et al., "Dropout", JMLR 2014); in the middle of a trained network it would mostly undo batch norms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir
from torch.nn import functional

from edgeopt.graph import tensors
from edgeopt.training.course import Course
from edgeopt.training.fake_quantize import FakeQuantizer, prepare

if TYPE_CHECKING:
    from torch import Tensor

    from edgeopt.protocols import Evidence
    from edgeopt.training.replay import Replay

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_DEPTH = 16
"""How far behind an output its last layer is looked for."""


@dataclass(slots=True)
class Mode:
    """Whether the student is trained or judged."""

    quantizer: FakeQuantizer
    dropped: frozenset[str]
    """Values that dropout thins out."""
    share: float
    training: bool = False

    def set(self, training: bool) -> None:
        self.training = training

    def value(self, name: str, tensor: Tensor) -> Tensor:
        """The value that the operators behind will read."""
        if self.training and name in self.dropped and tensor.is_floating_point():
            tensor = functional.dropout(tensor, self.share)
        return self.quantizer.value(name, tensor)


def enter(model: ir.Model, student: Replay, course: Course, evidence: Evidence) -> Mode:
    """Set the transforms of ``student``; it is judged until :meth:`Mode.set` says otherwise."""
    rounds = course.fake_quantize != "off"
    quantizer = prepare(model, evidence, reduced_range=course.reduced_range) if rounds else FakeQuantizer()
    dropped = frozenset(inputs_of_last_layers(model)) if course.dropout else frozenset()
    mode = Mode(quantizer, dropped, course.dropout)
    student.weight_transform = quantizer.weight if rounds else None
    student.value_transform = mode.value if rounds or dropped else None
    return mode


def inputs_of_last_layers(model: ir.Model) -> list[str]:
    """For each output, what the last layer with weights before it reads; inputs of the model are left out."""
    found: dict[str, None] = {}
    for output in model.graph.outputs:
        value: ir.Value | None = output
        for _ in range(_DEPTH):
            node = value.producer() if value is not None else None
            if node is None:
                break
            data = next((item for item in node.inputs if item is not None and tensors.constant(item) is None), None)
            if node.op_type in _LAYERS and any(tensors.constant(item) is not None for item in node.inputs[1:2]):
                if data is not None and not data.is_graph_input():
                    found[str(data.name)] = None
                break
            value = data
    return list(found)
