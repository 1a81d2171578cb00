"""What ONNX Runtime really runs of a quantized real model: counted on the graph that is left after all of its optimizations; needs EDGEOPT_CORPUS."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import corpus
import numpy as np
import onnx_ir as ir
import pytest
from fused import operators

from edgeopt.graph import edit, quantizable
from edgeopt.graph.gemm import fuse_gemm
from edgeopt.passes import QuantizeStatic

pytestmark = [pytest.mark.corpus, pytest.mark.slow]
FLOAT = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


def quantized(name: str, *, samples: int, **settings: object) -> tuple[ir.Model, ir.Model]:
    """The clean model with its products fused, and what static int8 makes of it."""
    clean, evidence = corpus.cleaned(name)
    arrays = np.load(corpus.folder_of(name) / "calib.npz")
    names = [str(value.name) for value in clean.graph.inputs]
    evidence._samples = [{each: arrays[each][index : index + 1] for each in names} for index in range(samples)]
    evidence.sample_count = samples
    fused = edit.copy(clean)
    fuse_gemm(fused)
    return fused, QuantizeStatic().apply(clean, settings, evidence)


def kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def test_every_layer_of_a_real_classifier_runs_on_an_integer_kernel(tmp_path: Path) -> None:
    fused, made = quantized("efficientnet_lite0", samples=2)
    left, float_layers = operators(made, tmp_path), kinds(fused)
    assert left["QLinearConv"] == float_layers["Conv"] == 49
    assert left["QGemm"] == float_layers["Gemm"] == 1
    assert left["QLinearAdd"] == float_layers["Add"] == 9
    assert left["QLinearGlobalAveragePool"] == 1
    assert left["QuantizeLinear"] == 1, "the input"
    assert not any(left[kind] for kind in (*FLOAT, "Clip", "DequantizeLinear"))


def test_every_convolution_of_a_real_text_detector_that_may_be_is_an_integer_kernel(tmp_path: Path) -> None:
    fused, made = quantized("ppocr_v4_det", samples=1)
    left = operators(made, tmp_path)
    chosen = [layer for layer in quantizable.place(fused.graph).layers if layer.node.op_type == "Conv"]
    assert left["QLinearConv"] == len(chosen) == kinds(fused)["Conv"] == 62
    assert not any(left[kind] for kind in FLOAT)
    assert left["ConvTranspose"] == 2, "which has no integer kernel"


def test_layers_of_a_real_classifier_that_are_kept_float_are_the_only_ones(tmp_path: Path) -> None:
    clean, _ = corpus.cleaned("efficientnet_lite0")
    kept = quantizable.depthwise(clean.graph)
    _, made = quantized("efficientnet_lite0", samples=2, depthwise=False)
    left = operators(made, tmp_path)
    assert len(kept) == 16
    assert left["QLinearConv"] == 49 - 16
    assert left["Conv"] + left["FusedConv"] == 16
    assert left["QGemm"] == 1
