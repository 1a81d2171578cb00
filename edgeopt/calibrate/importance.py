"""Importance: one score for each unit of a family, by one of ten criteria; the lowest goes first.

Stands between ``graph.groups`` and ``removal``. In come a model, its families and, for most criteria, calibration samples; out goes an array of scores for each
family that the criterion can judge. Families it cannot judge are missing from the answer: no batch norm, no reader whose inputs are understood. ``variance`` and ``obs`` add up
what readers lose, so one reader that they do not understand (an LSTM's own recurrence, say) leaves its family out: its units would look cheaper than they are.
``readers.unjudged`` says why.

- ``l1``, ``l2``: norm of the weights that make the unit (H. Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv:1608.08710)
- ``group_l2``: norm of all weights that go with the unit, its readers' columns and a depthwise filter between among them (G. Fang et al., "DepGraph: Towards Any
  Structural Pruning", CVPR 2023, arXiv:2301.12900)
- ``batch_norm``: scale of the batch norm behind it (Z. Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, arXiv:1708.06519)
- ``entropy`` of its activations (J.-H. Luo and J. Wu, "An Entropy-based Pruning Method for CNN Compression", arXiv:1706.05791; there of pooled activations, here
  of single ones, in bins that all channels share)
- ``apoz``: how often it is not zero (H. Hu et al., "Network Trimming", arXiv:1607.03250)
- ``variance`` of what it adds to its readers' outputs, each input on its own
- ``obs``: what its readers lose when it goes and the others make good what they can, see ``saliency``
- ``random``: the control
- ``taylor``: the square of weight x gradient, summed over the columns that read the unit (P. Molchanov et al., "Importance Estimation for Neural Network Pruning",
  CVPR 2019, arXiv:1906.10771; there over the filter that makes it, which behind a ReLU is the same number). Gradients come from ``Evidence.gradients``
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.calibrate import activity, gram, readers
from edgeopt.calibrate.activity import Activity
from edgeopt.calibrate.collect import fingerprint
from edgeopt.calibrate.consumers import Consumer
from edgeopt.calibrate.deadline import require_time
from edgeopt.calibrate.ranges import not_finite
from edgeopt.calibrate.real import has_real_samples
from edgeopt.calibrate.regression import Sums
from edgeopt.calibrate.saliency import Reader, greedy, output_power
from edgeopt.errors import PassFailed
from edgeopt.graph import tensors
from edgeopt.graph.groups import Family, Slot
from edgeopt.protocols import Evidence

if TYPE_CHECKING:
    from edgeopt.protocols import Model

CRITERIA = ("l1", "l2", "group_l2", "batch_norm", "taylor", "entropy", "apoz", "variance", "obs", "random")
WITHOUT_SAMPLES = ("l1", "l2", "group_l2", "batch_norm", "random")
Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """What is asked."""

    criterion: str
    depths: Mapping[str, int]
    """How many units of each family may go at most: ``obs`` ranks no deeper."""
    seed: int = 0
    """Of ``random``."""


def scores(model: Model, families: Sequence[Family], ranking: Ranking, evidence: Evidence) -> dict[str, Scores]:
    """By the family's name: a score for each unit, lowest first to go.

    Raises :class:`~edgeopt.errors.PassFailed` for an unknown criterion, one that needs what is not there, or where a tensor is not finite.
    """
    criterion = ranking.criterion
    _check(criterion, evidence)
    if criterion in ("l1", "l2", "group_l2"):
        return {family.name: _norms(model, family, criterion) for family in families}
    if criterion == "random":
        return {family.name: _random(family, ranking.seed) for family in families}
    if criterion == "batch_norm":
        return _batch_norm_scales(model, families)
    if criterion == "taylor":
        return _first_order(model, families, evidence)
    if criterion == "obs":
        return _second_order(model, families, evidence, ranking.depths)
    return _activities(model, families, criterion, evidence)


def _check(criterion: str, evidence: Evidence) -> None:
    if criterion not in CRITERIA:
        raise PassFailed(f"criterion is {criterion!r}", hint=f"Use one of {', '.join(CRITERIA)}.")
    if criterion == "taylor" and evidence.gradients is None:
        raise PassFailed(
            "criterion taylor needs gradients, and torch is not installed",
            hint="Install it with pip install 'edgeopt[train]', or use criterion=obs.",
        )
    if criterion not in WITHOUT_SAMPLES and not has_real_samples(evidence):
        raise PassFailed(
            f"criterion {criterion} needs real calibration samples, and there are none",
            hint=f"Drop samples, or use one of {', '.join(WITHOUT_SAMPLES)}.",
        )


# ---------------------------------------------------------------- from the weights
def _norms(model: Model, family: Family, criterion: str) -> Scores:
    order = 1 if criterion == "l1" else 2
    constants = _constants(model)
    powers = np.zeros(family.units)
    for slot in family.slots:
        if slot.constant not in constants or not (slot.role == "producer" or criterion == "group_l2"):
            continue
        weight = np.asarray(tensors.array(constants[slot.constant]), np.float64)
        if criterion == "group_l2" and weight.ndim < 2:
            continue  # biases and scales say where an activation lies, not how large it is
        each = np.abs(np.moveaxis(weight, slot.axis, 0)).reshape(weight.shape[slot.axis], -1) ** order
        powers += _of_units(each.sum(axis=1), slot)
    return np.asarray(powers ** (1.0 / order), np.float64)


def _random(family: Family, seed: int) -> Scores:
    return np.random.default_rng([seed, zlib.crc32(family.name.encode())]).random(family.units)


def _batch_norm_scales(model: Model, families: Sequence[Family]) -> dict[str, Scores]:
    scales = {
        str(node.inputs[1].name): np.abs(np.asarray(tensors.array(node.inputs[1]), np.float64))
        for node in model.graph
        if node.op_type == "BatchNormalization" and node.inputs[1] is not None and tensors.constant(node.inputs[1])
    }
    found: dict[str, Scores] = {}
    for family in families:
        slots = [slot for slot in family.slots if slot.constant in scales]
        if slots:
            found[family.name] = np.sum([_of_units(scales[slot.constant], slot) for slot in slots], axis=0)
    if not found:
        raise PassFailed(
            "criterion batch_norm finds no batch norm behind a prunable layer: the model has none, or they are folded",
            hint="Put prune_channels before fold_batch_norm, or use another criterion.",
        )
    return found


def _of_units(values: Scores, slot: Slot) -> Scores:
    """Sums of one value an index over each unit's indices."""
    return np.asarray([values[list(indices)].sum() for indices in slot.indices], np.float64)


def _constants(model: Model) -> dict[str, ir.Value]:
    found = dict(model.graph.initializers)
    for node in model.graph:
        if node.op_type == "Constant":
            found[str(node.outputs[0].name)] = node.outputs[0]
    return found


# ---------------------------------------------------------------- from what the units do
def _activities(model: Model, families: Sequence[Family], criterion: str, evidence: Evidence) -> dict[str, Scores]:
    pairs = readers.by_family(model, families, criterion)
    read = [consumer.layer for each in pairs.values() for consumer, _ in each]
    if not read:
        return {}
    tensors_read = {str(layer.weight.name): (str(layer.data.name), layer.channel_axis) for layer in read}
    seen = activity.observe(model, tensors_read, evidence)
    return {
        name: np.asarray(
            np.sum([_of_units(_measured(c, seen[c.name], criterion), slot) for c, slot in each], axis=0), np.float64
        )
        for name, each in pairs.items()
    }


def _measured(consumer: Consumer, seen: Activity, criterion: str) -> Scores:
    """One value for each index of the consumer's input axis; the blocks of a grouped convolution together."""
    if criterion == "entropy":
        return _by_block(consumer, seen.entropy)
    if criterion == "apoz":
        return _by_block(consumer, 1.0 - seen.zeros)
    rows = consumer.rows().astype(np.float64)
    power = np.square(rows).reshape(consumer.blocks, rows.shape[0] // consumer.blocks, -1, consumer.kernel)
    contributions = _by_block(consumer, seen.variance * power.sum(axis=(1, 3)).reshape(-1))
    total = float(contributions.sum())
    # Relative to the consumer's own output, so that the readers of one unit can be added up.
    return np.asarray(contributions / total, np.float64) if total > 0 else contributions


def _by_block(consumer: Consumer, values: Scores) -> Scores:
    """Sums over the same places of all blocks."""
    return np.asarray(values.reshape(consumer.blocks, -1).sum(axis=0), np.float64)


def _first_order(model: Model, families: Sequence[Family], evidence: Evidence) -> dict[str, Scores]:
    """The mean over the samples of what first order says a unit's columns do, squared."""
    assert evidence.gradients is not None  # noqa: S101  # _check() asked
    constants = _constants(model)
    weights = {
        slot.constant: np.asarray(tensors.array(constants[slot.constant]), np.float64)
        for family in families
        for slot in family.slots
        if slot.role == "consumer" and slot.constant in constants
    }
    found: dict[str, Scores] = {}
    for seen, slopes in enumerate(evidence.gradients(model, list(weights), evidence)):
        parts = {name: weights[name] * np.asarray(slope, np.float64) for name, slope in slopes.items()}
        for family in families:
            read = [slot for slot in family.slots if slot.role == "consumer" and slot.constant in parts]
            if read:
                moved = np.sum([_of_units(_along(parts[slot.constant], slot.axis), slot) for slot in read], axis=0)
                before = found.get(family.name, np.zeros(family.units))
                found[family.name] = before + (np.square(moved) - before) / (seen + 1)
    return found


def _along(values: Scores, axis: int) -> Scores:
    """Sums of everything but ``axis``."""
    return np.asarray(np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).sum(axis=1), np.float64)


def _second_order(
    model: Model, families: Sequence[Family], evidence: Evidence, depths: Mapping[str, int]
) -> dict[str, Scores]:
    pairs = readers.by_family(model, families, "obs")
    # A deeper ranking begins with the shallower one, so it serves both.
    ranked = evidence.memo.setdefault(f"calibrate.importance:{fingerprint(model)}", {})
    if not isinstance(ranked, dict):
        raise TypeError(f"the memo of rankings is a {type(ranked).__name__}")
    deep = {family.name: depths.get(family.name, family.units - 1) for family in families}
    missing = [f for f in families if f.name in pairs and ranked.get(f.name, (-1,))[0] < deep[f.name]]
    for group in gram.rounds(missing, lambda family: sum(8 * c.blocks * c.width**2 for c, _ in pairs[family.name])):
        wanted = {consumer.name: consumer for family in group for consumer, _ in pairs[family.name]}
        covariances = _covariances(model, list(wanted.values()), evidence)
        for family in group:
            require_time(evidence, "ranking channels")
            blocks = [each for c, slot in pairs[family.name] for each in _blocks(c, slot, covariances[c.name])]
            ranked[family.name] = deep[family.name], greedy(blocks, family.units, deep[family.name])
    return {name: ranked[name][1] for name in pairs}


def _blocks(consumer: Consumer, slot: Slot, covariances: Sequence[Scores]) -> list[Reader]:
    """A reader for each block, whose damage counts relative to the output of all."""
    rows = [consumer.rows()[consumer.block(number)] for number in range(consumer.blocks)]
    power = sum(output_power(own, covariance) for own, covariance in zip(rows, covariances, strict=True))
    columns = [consumer.columns(indices) for indices in slot.indices]
    return [Reader.of(own, covariance, columns, power) for own, covariance in zip(rows, covariances, strict=True)]


def _covariances(model: Model, wanted: Sequence[Consumer], evidence: Evidence) -> dict[str, list[Scores]]:
    """By the weight's name: of the columns of each block."""
    blocks = [(consumer, number) for consumer in wanted for number in range(consumer.blocks)]
    sums = [Sums.empty(consumer.width, 0, constant=True) for consumer, _ in blocks]
    centres: dict[int, NDArray[np.float32]] = {}
    names = list(dict.fromkeys(str(consumer.layer.data.name) for consumer in wanted))
    for arrays in islice(evidence.observe(model, names), activity.MOST_SAMPLES):
        for place, (consumer, number) in enumerate(blocks):
            rows = consumer.patches(np.asarray(arrays[str(consumer.layer.data.name)], np.float32), number)
            # Nearly centred rows: squares of large means would drown the variance in float32's rounding.
            with np.errstate(over="ignore", invalid="ignore"):
                centre = centres.setdefault(place, rows.mean(axis=0))
                sums[place].add(rows - centre, np.zeros((len(rows), 0), np.float32))
    found: dict[str, list[Scores]] = {}
    for (consumer, _), seen in zip(blocks, sums, strict=True):
        if not np.isfinite(seen.gram).all():
            raise not_finite(consumer.name)
        mean = seen.gram[-1, :-1] / seen.rows
        found.setdefault(consumer.name, []).append(seen.gram[:-1, :-1] / seen.rows - np.outer(mean, mean))
    return found
