"""An ONNX graph as a differentiable module, whose parameters carry the names of the graph's own constants.

Stands under the passes that train: a model comes in, its outputs for given inputs come out with gradients, and
:func:`write_back` puts trained weights into a copy of that very model. No converter is in between: of 13 real models the best
one got 5 right, since each export writes graphs in its own dialect. Here each node is executed as ONNX defines it.

Samples go through together where the graph allows it; :func:`~edgeopt.training.capacity.batchable` finds out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import cast

import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgeopt.errors import PassFailed
from edgeopt.graph import edit
from edgeopt.training import parameters
from edgeopt.training.operators import CONTROLLERS, OPERATORS
from edgeopt.training.parameters import write_back
from edgeopt.training.program import Program, Step, compiled, constant

__all__ = ["Replay", "Transform", "write_back"]

Transform = Callable[[str, Tensor], Tensor]
_HALVES = (torch.float16, torch.bfloat16)


@dataclass(slots=True)
class _Frame:
    """One run: the values that exist at this moment, and those that the caller asked for."""

    wanted: frozenset[str] = frozenset()
    transform: Transform | None = None
    batch: int = 1
    values: dict[ir.Value, Tensor] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)


class Replay(nn.Module):
    """``model`` in torch. float16 and bfloat16 are computed in float32; integers are exact.

    ``trainable`` narrows what is trained: weights whose name it denies are kept in :attr:`weights` but need no gradient.
    Raises PassFailed where the graph holds an operator or a type that is not replayed; the first one is named.
    """

    weight_transform: Transform | None
    """Applied to each weight by name before its first use in a run: fake quantization, pruning masks."""
    value_transform: Transform | None
    """Applied to each float value by name after it is made, the graph's inputs included: fake quantization, dropout."""

    def __init__(self, model: ir.Model, *, trainable: Callable[[str], bool] | None = None) -> None:
        super().__init__()
        self.weight_transform = self.value_transform = None
        self._program = compiled(model)
        self._inputs = tuple(edit.required_inputs(model))
        self._overridable = {value: str(value.name) for value in model.graph.inputs if value.is_initializer()}
        self._weights: dict[str, str] = {}
        self._homes: dict[ir.Value, str] = {}
        self._names: dict[ir.Value, str] = {}
        weights = parameters.weights(model)
        for name, value in weights.items():
            self._add_weight(name, value, needs_gradient=trainable is None or trainable(name))
        self._add_constants(model, set(weights.values()))
        self._program.release()

    @property
    def weights(self) -> Mapping[str, nn.Parameter]:
        """The weights by their constants' names, in the graph's order."""
        held = self._parameters
        return MappingProxyType({name: p for name, home in self._weights.items() if (p := held[home]) is not None})

    def forward(self, feeds: Mapping[str, Tensor], *, also: Sequence[str] = ()) -> dict[str, Tensor]:
        """The graph's outputs by name, and the values named in ``also`` (of any graph; the last one where a name repeats).

        Raises PassFailed for a missing input, an unknown value, or a node that these inputs do not fit.
        """
        first = next(iter(feeds.values()), None)
        batch = int(first.shape[0]) if first is not None and first.dim() else 1
        frame = _Frame(frozenset(also), self.value_transform, batch)
        for value in (*self._inputs, *self._overridable):
            name = str(value.name)
            if name in feeds:
                self._hold(frame, value, _wide(feeds[name]))
            elif value not in self._overridable:
                raise PassFailed(f"the input {name!r} is missing", hint="Feed every input of the model.")
        self._run(self._program, frame)
        outputs = {str(value.name): _declared(value, self._read(frame, value)) for value in self._program.outputs}
        return outputs | {name: self._asked(frame, name) for name in also}

    # ------------------------------------------------------------ constants
    def _add_weight(self, name: str, value: ir.Value, *, needs_gradient: bool) -> None:
        tensor = parameters.tensor_of(value)
        if tensor is None:
            raise ValueError(f"{name!r} is no constant")
        home = f"weight_{len(self._weights)}"  # names of constants hold dots and slashes, which torch does not allow
        self.register_parameter(home, nn.Parameter(constant(tensor), requires_grad=needs_gradient))
        self._weights[name] = self._homes[value] = home
        self._names[value] = name

    def _add_constants(self, model: ir.Model, weights: set[ir.Value]) -> None:
        """Constants that are no weights, and everything that depends on nothing else, computed here once."""
        read = self._program.reads | set(self._overridable)
        fixed: dict[ir.Value, Tensor] = {}
        for value in parameters.constants(model).values():
            tensor = parameters.tensor_of(value)
            if value in read and value not in weights and tensor is not None:
                fixed[value] = constant(tensor)
        with torch.no_grad():
            self._fold(self._program, fixed)
        read = self._program.reads | set(self._overridable)
        for value, result in fixed.items():
            if value in read:
                home = f"constant_{len(self._homes)}"
                self.register_buffer(home, result, persistent=False)
                self._homes[value] = home

    def _fold(self, program: Program, fixed: dict[ir.Value, Tensor]) -> None:
        left: list[Step] = []
        for step in program.steps:
            for body in step.bodies.values():
                self._fold(body, fixed)
            known = fixed.keys() - self._overridable.keys()
            if not step.reads <= known:
                left.append(step)
                continue
            frame = _Frame(values={value: fixed[value] for value in step.reads})
            try:
                self._execute(step, frame)
            except PassFailed:  # it may stand in a branch that is never taken
                left.append(step)
                continue
            fixed.update((value, frame.values[value]) for value in step.outputs if value in frame.values)
        program.steps = left

    # ------------------------------------------------------------ running
    def _run(self, program: Program, frame: _Frame) -> None:
        for step in program.steps:
            self._execute(step, frame)
            for value in step.done:
                frame.values.pop(value, None)

    def _execute(self, step: Step, frame: _Frame) -> None:
        arguments = [None if value is None else self._read(frame, value) for value in step.inputs]
        while arguments and arguments[-1] is None:  # optional inputs at the end may be there and empty
            arguments.pop()
        if step.rebatch and frame.batch > 1:
            arguments = _for_all_samples(arguments, frame.batch)
        try:
            results = self._results(step, frame, arguments)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise PassFailed(
                f"the {step.call.kind} node {step.name!r} cannot be replayed: {str(error).strip().partition(chr(10))[0]}",
                hint="Leave training out for this model.",
            ) from error
        for value, result in zip(step.outputs, results, strict=False):
            if value.name:
                self._hold(frame, value, result)

    def _results(self, step: Step, frame: _Frame, arguments: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        if not step.bodies:
            result = OPERATORS[step.call.kind](step.call, *arguments)
            return result if isinstance(result, tuple) else (result,)

        def run(body: str, *values: Tensor) -> list[Tensor]:
            program = step.bodies[body]
            for value, tensor in zip(program.inputs, values, strict=True):
                self._hold(frame, value, tensor)
            self._run(program, frame)
            return [self._read(frame, value) for value in program.outputs]

        return CONTROLLERS[step.call.kind](step.call, run, *arguments)

    def _read(self, frame: _Frame, value: ir.Value) -> Tensor:
        if (held := frame.values.get(value)) is not None:
            return held
        home = self._homes[value]
        fixed, weight = self._buffers.get(home), self._parameters.get(home)
        if weight is None:
            return cast("Tensor", fixed)
        if self.weight_transform is not None:
            frame.values[value] = self.weight_transform(self._names[value], weight)
            return frame.values[value]
        return weight

    def _hold(self, frame: _Frame, value: ir.Value, tensor: Tensor) -> None:
        name = str(value.name)
        if frame.transform is not None and tensor.is_floating_point():
            tensor = frame.transform(name, tensor)
        frame.values[value] = tensor
        if name in frame.wanted:
            frame.kept[name] = tensor

    def _asked(self, frame: _Frame, name: str) -> Tensor:
        if name in frame.kept:
            return frame.kept[name]
        for value in self._homes:
            if value.name == name:
                return self._read(frame, value)
        raise PassFailed(
            f"no value called {name!r} was made", hint="Name values that the model makes for these inputs."
        )


def _for_all_samples(arguments: list[Tensor | None], batch: int) -> list[Tensor | None]:
    """A Reshape of one sample, asked to reshape ``batch`` of them."""
    data, target = arguments
    if data is None or target is None or data.shape[0] != batch:
        return arguments
    return [data, torch.cat([target.new_tensor([batch]), target.reshape(-1)[1:]])]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALVES else tensor


def _declared(value: ir.Value, tensor: Tensor) -> Tensor:
    """An output that the model declares to be integer but is computed as a float: the codes of a QuantizeLinear."""
    whole = value.dtype is not None and value.dtype.is_integer()
    return tensor.to(torch.int64) if whole and tensor.is_floating_point() else tensor
