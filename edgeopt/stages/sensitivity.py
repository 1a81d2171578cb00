"""Which layers a quantization hurts, and what each costs on this device: measured, one layer at a time.

Stands before ``mixed``. For each group of layers a model is made in which only that group is quantized, and run through
the target's own kernels on a few calibration samples: the noise at the model's outputs is the group's damage. Simulating the
rounding in float would miss what saturating kernels do. The cost of keeping a group in float is the time that the
original spends in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.graph import quantizable
from edgeopt.protocols import Evidence, Quantizer
from edgeopt.records import Scalar, Step
from edgeopt.stages.judges import noise_and_signal

if TYPE_CHECKING:
    from edgeopt.protocols import Model

MOST_GROUPS = 40
_SMALLEST_SHARE = 1 / 64
_FUSED_SUFFIXES = ("/", "_", ":")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Neighbouring layers that keep or lose their precision together."""

    layers: tuple[str, ...]
    damage: float
    """Noise-to-signal power at the worst output when only this group is quantized."""
    share: float
    """Its share of the layers' time, rounded to a power of two so that clocks do not decide ties."""

    @property
    def worth(self) -> float:
        """Damage undone for the time lost by keeping the group in float."""
        return self.damage / self.share


def together(layers: Sequence[str], most: int = MOST_GROUPS) -> list[tuple[str, ...]]:
    """``layers`` in order, divided into at most ``most`` runs of nearly equal length."""
    count = min(most, len(layers))
    ends = [round(number * len(layers) / count) for number in range(count + 1)] if count else []
    return [tuple(layers[start:end]) for start, end in pairwise(ends)]


def groups(
    model: Model, step: Step, quantizer: Quantizer, evidence: Evidence, seconds: Mapping[str, float]
) -> list[Group]:
    """Every group of ``model``'s layers with its damage under ``step`` and its share of the time.

    ``model`` is what the step is applied to; ``seconds`` are the original's, by node. Raises
    :class:`~edgeopt.errors.PassFailed` where the step cannot be applied.
    """
    layers = quantizer.layers(model)
    names = [str(output.name) for output in model.graph.outputs]
    original = [list(outputs.values()) for outputs in evidence.observe(model, names)]
    costs = shares(layer_seconds(model, layers, seconds))
    found = []
    for members in together(layers):
        changed = quantizer.apply(model, _only(step, members, layers), evidence)
        outputs = [list(outputs.values()) for outputs in evidence.observe(changed, names)]
        share = sum(costs[name] for name in members)
        found.append(Group(layers=members, damage=damage(original, outputs), share=share))
    return found


def skipping(step: Step, layers: Sequence[str]) -> Step:
    """``step`` with ``layers`` left in float."""
    settings = {**dict(step.settings), "skip": json.dumps(list(layers))}
    return Step.of(step.technique, **settings)


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Each one's share of the sum as a power of two, at least 1/64; what took no measurable time gets the least."""
    total = math.fsum(seconds.values())
    return {name: _power_of_two(value / total if total > 0 else 0.0) for name, value in seconds.items()}


def _power_of_two(share: float) -> float:
    return max(_SMALLEST_SHARE, 2.0 ** round(math.log2(share))) if share > 0 else _SMALLEST_SHARE


def _only(step: Step, members: Sequence[str], layers: Sequence[str]) -> dict[str, Scalar]:
    rest = [name for name in layers if name not in set(members)]
    return dict(skipping(step, rest).settings)


def damage(original: Sequence[Sequence[NDArray[Any]]], changed: Sequence[Sequence[NDArray[Any]]]) -> float:
    """Noise over signal power, summed over the samples, of the worst floating-point output."""
    worst = 0.0
    for index in range(len(original[0])):
        if original[0][index].dtype.kind != "f":
            continue
        pairs = [_noise(first[index], second[index]) for first, second in zip(original, changed, strict=True)]
        noise, signal = np.sum(pairs, axis=0)
        worst = max(worst, float(noise / signal) if signal > 0 else float(noise > 0))
    return worst if math.isfinite(worst) else math.inf


def _noise(original: NDArray[Any], changed: NDArray[Any]) -> tuple[float, float]:
    if original.shape != changed.shape:
        return noise_and_signal(original, np.zeros_like(original))
    return noise_and_signal(original, changed)


def layer_seconds(model: Model, layers: Sequence[str], seconds: Mapping[str, float]) -> dict[str, float]:
    """The layers' own times; one that the runtime renamed beyond recognition counts as the median."""
    aliases = {name: {name} for name in layers}
    for node in model.graph:
        name = quantizable.layer_name(node)
        if name in aliases:
            output = node.outputs[0]
            aliases[name] |= {str(output.name), str(quantizable.absorbed(output).name)}
    known = {
        name: sum(spent for event, spent in seconds.items() if any(_is_of(event, alias) for alias in aliases[name]))
        for name in layers
    }
    middle = float(np.median([spent for spent in known.values() if spent > 0] or [0.0]))
    return {name: spent or middle for name, spent in known.items()}


def _is_of(event: str, alias: str) -> bool:
    """A kernel carries the name of what it was made of, with a suffix where it was fused or laid out anew."""
    return event == alias or (event.startswith(alias) and event[len(alias)] in _FUSED_SUFFIXES)
