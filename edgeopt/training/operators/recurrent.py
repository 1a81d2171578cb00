"""LSTM, GRU and RNN over [time, batch, features], step by step: forward, reverse and both.

torch's own recurrences order their gates differently and know neither ONNX' activations nor its peepholes, so the steps are
spelled out. The inputs' share of all gates is one product for all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edgeopt.training.operators.call import Call

Activation = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]
Step = Callable[["Direction", Tensor, State], State]

_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


@dataclass(frozen=True, slots=True)
class Direction:
    """One direction's weights, already without their leading axis."""

    call: Call
    weight: Tensor
    """[gates * hidden, features]"""
    recurrence: Tensor
    """[gates * hidden, hidden]"""
    input_bias: Tensor
    recurrence_bias: Tensor
    peepholes: Tensor | None
    activations: tuple[Activation, ...]
    reverse: bool

    def recalled(self, hidden: Tensor) -> Tensor:
        """The previous state's share of all gates."""
        return hidden @ self.recurrence.t() + self.recurrence_bias


def lstm(call: Call, x: Tensor, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    """LSTM; gates in the order input, output, forget, cell. Gives all outputs, the last one and the last cell."""
    inputs = _filled(inputs, 7)
    return _run(call, x, (*inputs[:4], inputs[6]), inputs[4:6], _lstm_step)


def gru(call: Call, x: Tensor, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    """GRU; gates in the order update, reset, hidden."""
    inputs = _filled(inputs, 5)
    return _run(call, x, (*inputs[:4], None), inputs[4:5], _gru_step)


def rnn(call: Call, x: Tensor, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    """RNN with one activation."""
    inputs = _filled(inputs, 5)
    return _run(call, x, (*inputs[:4], None), inputs[4:5], _rnn_step)


def _run(
    call: Call,
    x: Tensor,
    inputs: Sequence[Tensor | None],
    states: Sequence[Tensor | None],
    step: Step,
) -> tuple[Tensor, ...]:
    """All directions; ``inputs`` are weight, recurrence, bias, the samples' lengths and peepholes."""
    batch_first = bool(call.integer("layout"))
    x = x.transpose(0, 1) if batch_first else x
    starts = [state.transpose(0, 1) if batch_first and state is not None else state for state in states]
    outputs, lasts = [], []
    for index, direction in enumerate(_directions(call, inputs)):
        state = tuple(_start(x, direction, start, index) for start in starts)
        made, state = _walk(direction, x, state, inputs[3], step)
        outputs.append(made)
        lasts.append(state)
    everything = torch.stack(outputs, 1)  # [time, directions, batch, hidden]
    ends = [torch.stack(each) for each in zip(*lasts, strict=True)]
    if batch_first:
        return (everything.permute(2, 0, 1, 3), *(end.transpose(0, 1) for end in ends))
    return (everything, *ends)


def _walk(direction: Direction, x: Tensor, state: State, lengths: Tensor | None, step: Step) -> tuple[Tensor, State]:
    """One direction over all steps; behind a sample's length its state stays and its output is zero."""
    shares = x @ direction.weight.t() + direction.input_bias
    order = range(x.shape[0] - 1, -1, -1) if direction.reverse else range(x.shape[0])
    outputs: list[Tensor] = []
    for time in order:
        made = step(direction, shares[time], state)
        if lengths is None:
            state = made
            outputs.append(made[0])
            continue
        alive = (lengths > time).reshape(-1, 1)
        state = tuple(torch.where(alive, new, old) for new, old in zip(made, state, strict=True))
        outputs.append(torch.where(alive, made[0], torch.zeros_like(made[0])))
    return torch.stack(outputs[::-1] if direction.reverse else outputs), state


def _lstm_step(direction: Direction, share: Tensor, state: State) -> State:
    hidden, cell = state
    gates = share + direction.recalled(hidden)
    into, out, forget, fresh = gates.chunk(4, -1)
    if direction.peepholes is not None:
        from_input, from_output, from_forget = direction.peepholes.chunk(3, -1)
        into, forget = into + from_input * cell, forget + from_forget * cell
    into, out, forget, fresh = (_clipped(direction, gate) for gate in (into, out, forget, fresh))
    gate, inner, outer = direction.activations
    into = gate(into)
    forget = 1 - into if direction.call.integer("input_forget") else gate(forget)
    cell = forget * cell + into * inner(fresh)
    if direction.peepholes is not None:
        out = _clipped(direction, out + from_output * cell)
    return gate(out) * outer(cell), cell


def _gru_step(direction: Direction, share: Tensor, state: State) -> State:
    (hidden,) = state
    width = hidden.shape[-1]
    gate, inner = direction.activations
    weights, biases = direction.recurrence, direction.recurrence_bias
    both = share[..., : 2 * width] + hidden @ weights[: 2 * width].t() + biases[: 2 * width]
    update, reset = gate(_clipped(direction, both)).chunk(2, -1)
    last, shift = weights[2 * width :].t(), biases[2 * width :]
    if direction.call.integer("linear_before_reset"):
        recalled = reset * (hidden @ last + shift)
    else:
        recalled = (reset * hidden) @ last + shift
    fresh = inner(_clipped(direction, share[..., 2 * width :] + recalled))
    return ((1 - update) * fresh + update * hidden,)


def _rnn_step(direction: Direction, share: Tensor, state: State) -> State:
    return (direction.activations[0](_clipped(direction, share + direction.recalled(state[0]))),)


def _directions(call: Call, inputs: Sequence[Tensor | None]) -> Iterator[Direction]:
    weights, recurrences, biases, _, peepholes = inputs
    if weights is None or recurrences is None:
        raise call.refusal("without weights is not replayed")
    activations = _activations(call, weights.shape[0])
    each = len(activations) // weights.shape[0]
    for index, (weight, recurrence) in enumerate(zip(weights, recurrences, strict=True)):
        half = weight.shape[0]
        bias = biases[index] if biases is not None else weight.new_zeros(2 * half)
        yield Direction(
            call=call,
            weight=weight,
            recurrence=recurrence,
            input_bias=bias[:half],
            recurrence_bias=bias[half:],
            peepholes=None if peepholes is None else peepholes[index],
            activations=activations[index * each : (index + 1) * each],
            reverse=index == 1 or call.text("direction", "forward") == "reverse",
        )


def _activations(call: Call, directions: int) -> tuple[Activation, ...]:
    defaults = _DEFAULTS[call.kind] * directions
    names = [str(name) for name in call.attributes.get("activations", defaults)]
    if "activation_alpha" in call.attributes or "activation_beta" in call.attributes:
        raise call.refusal("with settings for its activations is not replayed")
    if unknown := sorted({name.lower() for name in names} - set(_ACTIVATIONS)):
        raise call.refusal(f"with the activations {unknown} is not replayed")
    return tuple(_ACTIVATIONS[name.lower()] for name in names)


def _start(x: Tensor, direction: Direction, given: Tensor | None, index: int) -> Tensor:
    """The state before the first step; one for all samples where the model was exported for one sample."""
    width = direction.recurrence.shape[-1]
    return x.new_zeros(x.shape[1], width) if given is None else given[index].expand(x.shape[1], width)


def _clipped(direction: Direction, gate: Tensor) -> Tensor:
    bound = direction.call.number("clip", 0.0)
    return gate.clamp(-bound, bound) if bound else gate


def _filled(inputs: tuple[Tensor | None, ...], count: int) -> tuple[Tensor | None, ...]:
    return (*inputs, *[None] * (count - len(inputs)))


_ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": functional.relu,
    "leakyrelu": functional.leaky_relu,
    "elu": functional.elu,
    "softsign": functional.softsign,
    "softplus": functional.softplus,
    "hardsigmoid": lambda gate: torch.clamp(0.2 * gate + 0.5, 0.0, 1.0),
}
