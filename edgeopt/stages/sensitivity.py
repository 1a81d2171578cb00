"""Which layers a quantization hurts, and what each costs on this device: measured, one layer at a time.

Stands before ``mixed``. Each group of layers alone is quantized and run through the target's own kernels on a few calibration samples:
the noise that comes out at the model's outputs is the group's damage (``noises``). Simulating the rounding in float would miss
what saturating kernels do. The cost of keeping a group in float is the time that the original spends in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from edgeopt.calibrate import noises
from edgeopt.calibrate.noises import Damage
from edgeopt.graph import apart, quantizable
from edgeopt.protocols import Evidence, Quantizer
from edgeopt.records import Step

if TYPE_CHECKING:
    from edgeopt.protocols import Model

MOST_GROUPS = 96
"""Beyond it neighbours share a group, and errors that they have in common count twice."""
_MOST_ALONE = 40
"""A group that cannot be taken apart costs a whole model."""
_SMALLEST_SHARE = 1 / 64
_FUSED_SUFFIXES = ("/", "_", ":")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Neighbouring layers that keep or lose their precision together."""

    layers: tuple[str, ...]
    damage: float
    """Noise-to-signal power at the worst output when only this group is quantized."""
    noise: float = 0.0
    """The same at the group's own worst layer; 0 where it could not be looked at."""
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
    costs = shares(layer_seconds(model, layers, seconds))
    members = _members(model, layers)
    share = [sum(costs[name] for name in group) for group in members]
    found = _together(model, step, quantizer, evidence, members=members, share=share)
    for index in set(range(len(members))) - set(found):
        found[index] = _alone(model, step, quantizer, evidence, members=members[index])
    return [
        Group(layers=group, damage=found[index].at_outputs, noise=found[index].at_layers, share=share[index])
        for index, group in enumerate(members)
    ]


def _members(model: Model, layers: Sequence[str]) -> list[tuple[str, ...]]:
    """Every layer a group where all can be looked at in one go, fewer groups where each costs a whole model."""
    at_once = len(apart.pieces(model, set(layers))) == len(layers)
    return together(layers, MOST_GROUPS if at_once else _MOST_ALONE)


def _together(  # noqa: PLR0913 - what is measured, on what, and what it costs
    model: Model,
    step: Step,
    quantizer: Quantizer,
    evidence: Evidence,
    *,
    members: Sequence[tuple[str, ...]],
    share: Sequence[float],
) -> dict[int, Damage]:
    """The damage of each group whose layers can be taken apart, all measured in one go; by the group's index."""
    pieces = {piece.layer: piece for piece in apart.pieces(model, {name for group in members for name in group})}
    whole = [index for index, group in enumerate(members) if all(name in pieces for name in group)]
    if not whole:
        return {}
    found = [[pieces[name] for name in members[index]] for index in whole]
    settings = dict(skipping(step, []).settings)
    damages = noises.measured(
        model,
        found,
        lambda layers, seen: quantizer.apply(layers, settings, seen),
        evidence,
        shares=[share[index] for index in whole],
    )
    return dict(zip(whole, damages, strict=True))


def _alone(model: Model, step: Step, quantizer: Quantizer, evidence: Evidence, *, members: tuple[str, ...]) -> Damage:
    """The damage of one group in the whole model: for layers in bodies of If and Loop, and for fused ones."""
    rest = [name for name in quantizer.layers(model) if name not in set(members)]
    changed = quantizer.apply(model, dict(skipping(step, rest).settings), evidence)
    return noises.between(model, changed, evidence)


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
