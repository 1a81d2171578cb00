"""The pass ``learn_rounding``: weights move onto the int8 grid in the way that was learned, layer after layer, behind layers that are quantized already.

Runs on the float graph, last before static or dynamic int8 with one scale a channel, in the place of ``round_weights``, which needs no torch. In comes a float32 model and the
evidence, out goes a float32 model whose weights are codes times scale, so that a quantizer that rounds to nearest finds exactly these codes. Each layer is taught
what the original's gave (``training.rounding``), from what it reads once the weights before it are rounded: so it also makes good what those lost. A layer that is not
better than rounding to nearest on rows that were held out stays as it is, and so do those that the time does not last for.

Settings (all optional):

- ``reduced_range`` weights that no kernel without VNNI saturates on; must be what the quantizer behind uses
- ``steps``         of the descent, for each layer
- ``rows``          of a batch
- ``learning_rate`` of Adam, on the weights' places between two codes
- ``samples``       calibration samples that are read at most
- ``skip``          JSON list of names of nodes whose weights stay
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.calibrate import gram
from edgeopt.calibrate.consumers import Consumer, bias_of
from edgeopt.calibrate.relay import Relay
from edgeopt.calibrate.rounding import Grid, grid
from edgeopt.calibrate.scheme import read_names, read_settings
from edgeopt.calibrate.shapes import observed_shapes
from edgeopt.errors import PassFailed
from edgeopt.graph import edit, quantizable, tensors
from edgeopt.graph.quantizable import Layer
from edgeopt.protocols import Evidence, Settings
from edgeopt.records import Signature, Target

if TYPE_CHECKING:
    from edgeopt.protocols import Model

Floats = NDArray[np.float32]

_NO_TORCH = "learned rounding by descent needs torch, which is not installed: pip install 'edgeopt[train]'"
_HELD_OUT_EVERY = 4
_INFINITE = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """The settings, checked."""

    reduced_range: bool = False
    steps: int = 500
    rows: int = 512
    learning_rate: float = 0.02
    samples: int = 64
    skip: str = "[]"


@dataclass(frozen=True, slots=True)
class _Task:
    """One layer, in the model whose weights are rounded one after the other."""

    layer: Layer
    consumer: Consumer
    grid: Grid

    @property
    def made(self) -> str:
        return str(self.layer.node.outputs[0].name)


class LearnRounding:
    """Float32 in, float32 on the int8 grid out."""

    name = "learn_rounding"
    lossless = False
    needs_data = True

    def refuse(self, signature: Signature, target: Target) -> str | None:  # noqa: ARG002 - the protocol's; torch trains on any CPU
        """A quantized model, one without layers that would be, or a device without torch."""
        if signature.quantized:
            return "the model is quantized already"
        if not signature.count(*quantizable.LAYERS):
            return "the model has no Conv, Gemm or MatMul"
        return None if find_spec("torch") is not None else _NO_TORCH

    def apply(self, model: Model, settings: Settings, evidence: Evidence) -> Model:
        """The rounded model; raises :class:`~edgeopt.errors.PassFailed` where no weight can be, or nothing is learned from."""
        scheme = read_settings(Scheme, settings, technique=self.name)
        if scheme.steps < 1 or scheme.rows < 1 or scheme.samples < 1 or not 0.0 < scheme.learning_rate < _INFINITE:
            raise PassFailed(
                f"steps {scheme.steps}, rows {scheme.rows}, samples {scheme.samples} or learning_rate {scheme.learning_rate:g} is out of its range",
                hint="Give numbers above zero.",
            )
        if find_spec("torch") is None:
            raise PassFailed(_NO_TORCH, hint="Install torch, or use round_weights.")
        if not evidence.sample_count:
            raise PassFailed("there are no calibration samples", hint="Drop calibration samples beside the model.")
        rounded = edit.copy(model)
        tasks = list(_tasks(rounded, scheme))
        if not tasks:
            raise PassFailed(
                "no Conv, Gemm or MatMul that reads all channels has a constant float32 weight of its own",
                hint="Leave this technique out for this model.",
            )
        _learn(model, rounded, tasks, scheme, evidence)
        edit.prune(rounded)
        return rounded


def _tasks(model: ir.Model, scheme: Scheme) -> Iterator[_Task]:
    """The layers that would be quantized, that share their weight with nobody, and whose outputs read all inputs; in graph order."""
    for layer in quantizable.place(model.graph, skip=read_names(scheme.skip)).layers:
        if tensors.is_shared(layer.weight) or gram.width(layer) == 0:
            continue
        weight = np.asarray(tensors.array(layer.weight), np.float32)
        yield _Task(
            layer,
            Consumer.of(layer),
            grid(weight, layer.weight_axis, reduced_range=scheme.reduced_range),
        )


def _learn(model: Model, rounded: Model, tasks: Sequence[_Task], scheme: Scheme, evidence: Evidence) -> None:
    """Round the weights of ``rounded`` in place, in order."""
    from edgeopt.training.loop import steady

    samples = min(scheme.samples, evidence.sample_count)
    relay = Relay(rounded, observed_shapes(model, evidence), evidence, samples=samples)
    positions = relay.positions([task.consumer.name for task in tasks])
    done = 0
    with steady(evidence.target.threads):
        for group in gram.rounds(tasks, lambda task: 4 * samples * gram.ROWS_PER_SAMPLE * task.consumer.outputs):
            targets = _targets(model, group, samples, evidence)
            for task in group:
                if evidence.deadline_s is not None and time.monotonic() > evidence.deadline_s:
                    return
                _round(task, targets.pop(task.made), relay, positions[task.consumer.name], scheme)
                done += 1
                if evidence.progress is not None:
                    evidence.progress(done / len(tasks), f"layer {done}/{len(tasks)}")


def _targets(model: Model, tasks: Sequence[_Task], samples: int, evidence: Evidence) -> dict[str, Floats]:
    """What the original's layers give, (rows, outputs); the places are those of ``gram.patches``."""
    axes = {task.made: task.layer.channel_axis for task in tasks}
    found: dict[str, list[Floats]] = {name: [] for name in axes}
    for _, arrays in zip(range(samples), evidence.observe(model, list(axes)), strict=False):
        for name, axis in axes.items():
            data = np.moveaxis(np.asarray(arrays[name], np.float32), axis, -1)
            found[name].append(gram.thinned(data.reshape(-1, data.shape[-1])))
    return {name: np.concatenate(rows) for name, rows in found.items()}


def _round(task: _Task, targets: Floats, relay: Relay, position: int, scheme: Scheme) -> None:
    """Learn one layer's weight and take the mean of what is still missing off its bias."""
    from edgeopt.training import rounding

    data = str(task.layer.data.name)
    seen = relay.observe([data], final=position)
    inputs = np.concatenate([gram.patches(np.asarray(each[data], np.float32), task.layer) for each in seen])
    if not np.isfinite(inputs).all() or not np.isfinite(targets).all():
        raise PassFailed(f"tensor {data!r} is not finite in a calibration sample", hint="Check the calibration data.")
    rows = task.consumer.rows()
    bias = bias_of(task.layer) if task.layer.node.op_type != "MatMul" else None
    offset = (
        np.zeros(len(rows), np.float32) if bias is None else np.asarray(tensors.array(bias), np.float32).reshape(-1)
    )
    reading = rounding.Reading(inputs=inputs, targets=targets, bias=offset, bounds=_bounds(task.layer))
    fit, held = reading.split(_HELD_OUT_EVERY)
    descent = rounding.Descent(steps=scheme.steps, rows=scheme.rows, rate=scheme.learning_rate, seed=position)
    usual = rounding.nearest(rows, task.grid)
    made = rounding.learned(rows, task.grid, fit, descent) if len(held.inputs) else usual
    if len(held.inputs) and held.error(made) >= held.error(usual):
        made = usual
    edit.set_constant(task.layer.weight, task.consumer.as_weight(made))
    if bias is not None:
        shift = (targets - inputs @ made.T - offset).mean(axis=0, dtype=np.float64)
        edit.set_constant(bias, (offset + shift).astype(np.float32).reshape(np.asarray(tensors.array(bias)).shape))


def _bounds(layer: Layer) -> tuple[float, float]:
    """Between what the activation lets through that the quantizer absorbs into the layer."""
    if layer.output is layer.node.outputs[0]:
        return -_INFINITE, _INFINITE
    activation = layer.output.producer()
    if activation is None or activation.op_type != "Clip":
        return 0.0, _INFINITE
    low, high = (tensors.constant(value) for value in (*activation.inputs[1:3], None, None)[:2])
    return (
        -_INFINITE if low is None else float(low.numpy()),
        _INFINITE if high is None else float(high.numpy()),
    )
