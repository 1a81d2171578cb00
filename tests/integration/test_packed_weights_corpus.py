"""Packed weights on real models: small enough, right enough, and compensation pays; needs EDGEOPT_CORPUS."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.calibrate import codebook
from edgeopt.graph import check
from edgeopt.passes import FoldBatchNorm, QuantizeWeights, Tidy

pytestmark = [pytest.mark.corpus, pytest.mark.slow]
CORPUS = Path(os.environ.get("EDGEOPT_CORPUS", "/nonexistent"))
PALETTE = {"levels": "palette", "compensation": "gptq"}


class Real:
    """One corpus model after clean-up, sixteen samples to calibrate with and eight others to judge by."""

    def __init__(self, name: str) -> None:
        self.model = ir.load(CORPUS / name / "model.onnx")
        for technique in (Tidy(), FoldBatchNorm()):
            self.model = technique.apply(self.model, {}, builders.FakeEvidence(self.model, samples=0))
        self.evidence = builders.FakeEvidence(self.model, samples=0)
        self.evidence._samples = self._samples("calib.npz", name, 16)
        self.evidence.sample_count = 16
        self.feeds = self._samples("eval.npz", name, 8)
        self.right = [builders.run(self.model, feeds, optimized=True) for feeds in self.feeds]

    def _samples(self, file: str, name: str, count: int) -> list[builders.Arrays]:
        arrays = np.load(CORPUS / name / file)
        names = [str(value.name) for value in self.model.graph.inputs]
        return [{key: arrays[key][index : index + 1] for key in names} for index in range(count)]

    def pack(self, **settings: Any) -> tuple[float, float]:
        """How many times smaller it got, and the noise-to-signal power of the worst output."""
        made = QuantizeWeights().apply(self.model, settings, self.evidence)
        check.verify(made, like=self.model)
        got = [builders.run(made, feeds, optimized=True) for feeds in self.feeds]
        ratio = len(builders.to_bytes(self.model)) / len(builders.to_bytes(made))
        errors, signals = np.zeros(len(self.right[0])), np.zeros(len(self.right[0]))
        for ours, theirs in zip(got, self.right, strict=True):
            errors += [np.square(a - b).sum() for a, b in zip(ours, theirs, strict=True)]
            signals += [np.square(b).sum() for b in theirs]
        return ratio, float((errors / signals).max())


@pytest.mark.parametrize("name", ["efficientnet_lite0", "ppocr_v4_det", "magika_v3_3"])
def test_eight_bits_take_a_quarter_and_compensation_makes_them_better(name: str) -> None:
    real = Real(name)
    ratio, plain = real.pack(bits=8)
    assert ratio > 3.5
    assert plain < 1e-2
    ratio, compensated = real.pack(bits=8, compensation="gptq")
    assert ratio > 3.5
    assert compensated < plain


def test_five_bit_palette_of_a_classifier_needs_its_compensation() -> None:
    real = Real("efficientnet_lite0")
    ratio, plain = real.pack(bits=5, levels="palette")
    _, compensated = real.pack(bits=5, **PALETTE)
    assert ratio > 5.5
    assert compensated < plain / 2


def test_allocated_bits_beat_even_ones_on_the_text_detector() -> None:
    real = Real("ppocr_v4_det")
    even_ratio, even = real.pack(bits=4, **PALETTE)
    ratio, allocated = real.pack(bits=3, mean_bits=4.0, **PALETTE)
    assert ratio > 0.97 * even_ratio
    assert allocated < 0.75 * even


@pytest.mark.parametrize(("bits", "gain"), [(4, 1.1), (3, 1.25), (2, 1.7)])
def test_half_quadratic_splitting_needs_no_data_and_beats_rounding_to_nearest(bits: int, gain: float) -> None:
    model = ir.load(CORPUS / "magika_v3_3" / "model.onnx")
    weights = [value.const_value for value in model.graph.initializers.values()]
    arrays = [weight.numpy() for weight in weights if weight is not None and weight.dtype == ir.DataType.FLOAT]
    rounded = solved = 0.0
    for array in (each for each in arrays if each.ndim >= 2 and each.size >= 4096 and each.size % 64 == 0):
        rows = np.ascontiguousarray(array, np.float32).reshape(-1, 64)
        low, high = rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
        scale = np.maximum(high - low, 1e-12) / (2**bits - 1)
        zero = np.rint(-low / scale)
        nearest = (np.clip(np.rint(rows / scale + zero), 0, 2**bits - 1) - zero) * scale
        grid = codebook.fit_affine(rows, bits, block=64)
        rounded += float(np.square(nearest - rows).sum())
        solved += float(np.square(grid.decode(grid.encode(rows)) - rows).sum())
    assert solved * gain < rounded
