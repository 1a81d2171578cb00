"""Real models with a quarter of every family cut out: they run, are smaller, and compute what they compute with those units silenced."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import builders
import corpus
import numpy as np
import pytest

from edgeopt.calibrate.shapes import observed_shapes
from edgeopt.graph import check, tensors
from edgeopt.graph.groups import ChannelGroups, find
from edgeopt.graph.shrink import shrink, unshared, zeroed
from edgeopt.passes import PruneChannels

pytestmark = [pytest.mark.corpus, pytest.mark.slow]


class Real:
    """A clean corpus model, what can be cut out of it, and two eval samples."""

    def __init__(self, name: str) -> None:
        clean, self.evidence = corpus.cleaned(name)
        folder, self.model = corpus.folder_of(name), unshared(clean)
        self.evidence._samples = self._rows(folder / "calib.npz", 3)
        self.evidence.sample_count = 3
        self.feeds = self._rows(folder / "eval.npz", 2)
        self.groups: ChannelGroups = find(self.model, observed_shapes(self.model, self.evidence))

    def _rows(self, file: Path, count: int) -> list[builders.Arrays]:
        """Samples lie along a first axis: the batch, or one that the input does not have."""
        arrays, rows = np.load(file), []
        for index in range(count):
            row = {}
            for value in self.model.graph.inputs:
                array = arrays[value.name]
                whole = array.ndim > len(value.shape or ())
                row[str(value.name)] = np.asarray(array[index]) if whole else array[index : index + 1]
            rows.append(row)
        return rows


@cache
def real_model(name: str) -> Real:
    return Real(name)


FOUND = {
    "efficientnet_lite0": {"channels": (24, 11024)},
    "all_minilm_l6_v2": {"heads": (6, 72), "neurons": (6, 9216)},
    "ppocr_v4_det": {"channels": (36, 3768)},
    "ddddocr_det": {"channels": (67, 8208)},
    "silero_vad": {"channels": (8, 706)},
    "magika_v3_3": {"neurons": (1, 64)},
    "digits_mlp": {"neurons": (2, 96)},
}
"""Families and units of each kind."""


@pytest.mark.parametrize("name", sorted(FOUND))
def test_quarter_of_every_family_of_a_real_model_can_go(name: str) -> None:
    real = real_model(name)
    families = real.groups.families
    counts = Counter(family.kind for family in families)
    units = {kind: sum(family.units for family in families if family.kind == kind) for kind in counts}
    assert {kind: (counts[kind], units[kind]) for kind in counts} == FOUND[name]

    random = np.random.default_rng(0)
    removed = {
        family.name: sorted(random.choice(family.units, max(1, family.units // 4), replace=False).tolist())
        for family in families
    }
    smaller, silenced = shrink(real.model, real.groups, removed), zeroed(real.model, real.groups, removed)
    check.verify(smaller, like=real.model)
    assert tensors.parameter_bytes(smaller) < 0.9 * tensors.parameter_bytes(real.model)
    for feeds in real.feeds:
        pairs = zip(builders.run(smaller, feeds, optimized=True), builders.run(silenced, feeds), strict=True)
        for ours, theirs in pairs:
            if ours.dtype.kind == "f":
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_every_frozen_layer_of_a_real_model_says_which_node_or_value_holds_it() -> None:
    for frozen in real_model("all_minilm_l6_v2").groups.frozen:
        assert frozen.reason == "LayerNormalization 'node_layer_norm' mixes all of it"


def test_transposed_convolutions_of_a_real_head_make_good_what_they_no_longer_read() -> None:
    """PaddlePaddle's text detector ends in two of them, each the only reader of its family."""
    real = Real("ppocr_v4_det")
    real.evidence._samples = real._rows(corpus.folder_of("ppocr_v4_det") / "calib.npz", 12)
    real.evidence.sample_count = 12
    heads = {str(node.inputs[1].name) for node in real.model.graph if node.op_type == "ConvTranspose"}
    counts = {
        family.name: family.units // 4
        for family in real.groups.families
        if all(slot.constant in heads for slot in family.slots if slot.role == "consumer")
    }
    assert len(counts) == 2

    def noise(**settings: Any) -> float:
        settings = {"criterion": "l1", "removed": json.dumps(counts), **settings}
        made = PruneChannels().apply(real.model, settings, real.evidence)
        pairs = [
            (builders.run(real.model, feeds, optimized=True)[0], builders.run(made, feeds, optimized=True)[0])
            for feeds in real.feeds
        ]
        return float(np.mean([np.square(right - got).sum() / np.square(right).sum() for right, got in pairs]))

    assert noise() < 0.5 * noise(refit=False)
