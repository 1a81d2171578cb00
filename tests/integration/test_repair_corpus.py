"""What repair gains on real models with the integer kernels of this machine; needs EDGEOPT_CORPUS."""

from __future__ import annotations

from pathlib import Path

import builders
import corpus
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from fused import operators
from kernels import SATURATES, OnKernels

from edgeopt.passes import (
    EqualizeLayers,
    MigrateOutliers,
    QuantizeDynamic,
    QuantizeStatic,
    RoundWeights,
)

pytestmark = [pytest.mark.corpus, pytest.mark.slow]
CORRECTED = {"bias_correction": True}


class Real:
    """A clean corpus model, its first calibration samples and some eval samples."""

    def __init__(self, name: str) -> None:
        self.clean, self.evidence = corpus.cleaned(name)
        folder = corpus.folder_of(name)
        names = [str(value.name) for value in self.clean.graph.inputs]
        self.evidence._samples = self._rows(folder / "calib.npz", names, 32)
        self.evidence.sample_count = 32
        self.feeds = self._rows(folder / "eval.npz", names, 12)
        self.right = self._outputs(self.clean)

    def _outputs(self, model: ir.Model) -> list[list[np.ndarray]]:
        """Of every eval sample, out of one session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(builders.to_bytes(model), options, providers=["CPUExecutionProvider"])
        return [list(session.run(None, feeds)) for feeds in self.feeds]

    @staticmethod
    def _rows(file: Path, names: list[str], count: int) -> list[builders.Arrays]:
        arrays = np.load(file)
        return [{name: arrays[name][index : index + 1] for name in names} for index in range(count)]

    def nsr(self, model: ir.Model, output: int = 0) -> float:
        """The mean over samples, as ``stages.judges`` has it."""
        ratios = []
        for found, right in zip(self._outputs(model), self.right, strict=True):
            difference = found[output].astype(float) - right[output]
            ratios.append(np.square(difference).mean() / np.square(right[output].astype(float)).mean())
        return float(np.mean(ratios))

    def cosine(self, model: ir.Model) -> float:
        pairs = [
            (found[-1].ravel(), right[-1].ravel())
            for found, right in zip(self._outputs(model), self.right, strict=True)
        ]
        return float(np.mean([a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs]))


@pytest.fixture(scope="module")
def encoder() -> Real:
    return Real("all_minilm_l6_v2")


@pytest.fixture(scope="module")
def classifier() -> Real:
    return Real("efficientnet_lite0")


@pytest.mark.parametrize("quantizer", [QuantizeDynamic(), QuantizeStatic()], ids=lambda each: each.name)
def test_real_encoder_in_int8_is_right_behind_migration_only(encoder: Real, quantizer: QuantizeDynamic) -> None:
    migrated = MigrateOutliers().apply(encoder.clean, {}, encoder.evidence)
    assert encoder.nsr(migrated) < 1e-9
    assert encoder.nsr(quantizer.apply(encoder.clean, {}, encoder.evidence)) > 0.015
    made = quantizer.apply(migrated, {}, encoder.evidence)
    assert encoder.nsr(made) < 0.0075
    assert encoder.cosine(made) > 0.997


def test_real_encoder_keeps_its_integer_kernels_behind_migration(encoder: Real, tmp_path: Path) -> None:
    plain = operators(QuantizeDynamic().apply(encoder.clean, {}, encoder.evidence), tmp_path)
    migrated = MigrateOutliers().apply(encoder.clean, {}, encoder.evidence)
    made = operators(QuantizeDynamic().apply(migrated, {}, encoder.evidence), tmp_path)
    integer = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")
    assert sum(made[kind] for kind in integer) == sum(plain[kind] for kind in integer) == 36


def test_real_classifier_with_seven_bit_weights_gains_by_bias_correction(classifier: Real) -> None:
    narrow = {"reduced_range": True}
    plain = classifier.nsr(QuantizeStatic().apply(classifier.clean, narrow, classifier.evidence))
    for how in ("analytic", "empirical"):
        made = QuantizeStatic().apply(classifier.clean, {**narrow, "bias_correction": how}, classifier.evidence)
        assert classifier.nsr(made) < 0.5 * plain, how


@pytest.mark.skipif(not SATURATES, reason="these kernels add 8-bit products without saturating")
def test_real_classifier_on_saturating_kernels_gains_by_seeing_them(classifier: Real, tmp_path: Path) -> None:
    evidence = OnKernels(classifier.clean, tmp_path, samples=0)
    evidence._samples, evidence.sample_count = classifier.evidence._samples, classifier.evidence.sample_count
    made = {
        how: classifier.nsr(QuantizeStatic().apply(classifier.clean, {"bias_correction": how}, evidence))
        for how in ("off", "analytic", "empirical")
    }
    assert made["empirical"] < 0.9 * made["analytic"]
    assert made["analytic"] < made["off"]


def test_real_classifier_with_seven_bit_weights_gains_by_learned_rounding(classifier: Real) -> None:
    settings = {"reduced_range": True, **CORRECTED}
    nearest = classifier.nsr(QuantizeStatic().apply(classifier.clean, settings, classifier.evidence))
    rounded = RoundWeights().apply(classifier.clean, {"reduced_range": True}, classifier.evidence)
    assert classifier.nsr(QuantizeStatic().apply(rounded, settings, classifier.evidence)) < 0.85 * nearest


def test_real_classifier_with_one_scale_a_tensor_gains_by_equalization(classifier: Real) -> None:
    settings = {"per_channel": False, **CORRECTED}
    plain = classifier.nsr(QuantizeStatic().apply(classifier.clean, settings, classifier.evidence))
    equalized = EqualizeLayers().apply(classifier.clean, {"bounds": True}, classifier.evidence)
    assert classifier.nsr(equalized) < 1e-9
    assert classifier.nsr(QuantizeStatic().apply(equalized, settings, classifier.evidence)) < 0.75 * plain
