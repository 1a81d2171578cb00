"""Dynamic int8: that ONNX Runtime fuses it, recurrent layers, lookup tables, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx_ir as ir
import pytest
from builders import FakeEvidence, Net
from fused import noise_ratio, operators

from edgeopt.errors import PassFailed
from edgeopt.graph import quantizable
from edgeopt.passes.quantize_dynamic import QuantizeDynamic


def quantize(model: ir.Model, **settings: Any) -> ir.Model:
    """With weights that no kernel saturates on, on whatever CPU this runs, unless ``settings`` say otherwise."""
    return QuantizeDynamic().apply(model, {"reduced_range": True, **settings}, FakeEvidence(model, samples=0))


def gru() -> ir.Model:
    net = Net()
    net.op("GRU", "frames", net.weight(1, 24, 6), net.weight(1, 24, 8), output="", outputs=2, hidden_size=8)
    net.op("Identity", net.nodes[-1].output[1], output="state")
    return net.build({"frames": ["T", "N", 6]}, {"state": [1, "N", 8]})


@pytest.mark.parametrize(
    "settings", [{}, {"per_channel": False}, {"weight": "uint8"}, {"reduced_range": True}], ids=str
)
def test_a_transformers_dense_layers_are_fused(settings: dict[str, Any], tmp_path: Path) -> None:
    model = builders.bert_block()
    quantized = quantize(model, **settings)
    left = operators(quantized, tmp_path)
    assert left["DynamicQuantizeMatMul"] + left["MatMulIntegerToFloat"] == 6
    assert left["MatMulInteger"] == 0
    assert left["DynamicQuantizeLinear"] == 1, "query, key and value share their input's"
    assert noise_ratio(model, quantized) < 0.01


def test_gemm_with_a_transposed_weight_and_bias_is_fused(tmp_path: Path) -> None:
    net = Net()
    net.op("Tanh", net.op("Gemm", "rows", net.weight(5, 8), net.weight(5), transB=1), output="out")
    model = net.build({"rows": ["N", 8]}, {"out": ["N", 5]})
    quantized = quantize(model)
    assert operators(quantized, tmp_path)["DynamicQuantizeMatMul"] == 1
    assert noise_ratio(model, quantized) < 0.01


def test_lstm_keeps_its_state_interface_and_runs_in_integers(tmp_path: Path) -> None:
    model = builders.lstm()
    for per_channel in (True, False):
        quantized = quantize(model, per_channel=per_channel)
        assert operators(quantized, tmp_path)["DynamicQuantizeLSTM"] == 1
        assert noise_ratio(model, quantized) < 0.01


def test_lookup_tables_are_stored_in_bytes_where_asked(tmp_path: Path) -> None:
    net = Net(seed=4)
    hidden = net.op("Gather", net.weight(1000, 128), "tokens", axis=0)
    net.op("Tanh", net.op("MatMul", hidden, net.weight(128, 8)), output="out")
    model = net.build({"tokens": ["N"]}, {"out": ["N", 8]}, tokens=7)
    plain, small = quantize(model), quantize(model, embeddings=True)
    assert len(builders.to_bytes(small)) < 0.3 * len(builders.to_bytes(plain))
    left = operators(small, tmp_path)
    assert left["Gather"] == 1
    assert left["DequantizeLinear"] == 1
    assert noise_ratio(model, small) < 0.01


def test_a_shared_weight_stays_float_where_an_if_reads_it() -> None:
    model = builders.branches()
    assert noise_ratio(model, quantize(model)) < 0.02


def test_skipped_layers_stay_float(tmp_path: Path) -> None:
    model = builders.mlp()
    names = [layer.name for layer in quantizable.layers(model.graph)]
    assert operators(quantize(model, skip=json.dumps(names[:1])), tmp_path)["DynamicQuantizeMatMul"] == 1
    with pytest.raises(PassFailed, match="is left to quantize"):
        quantize(model, skip=json.dumps(names))


def test_convolutions_and_gru_are_refused_with_the_reason() -> None:
    refuse = QuantizeDynamic().refuse
    net = Net()
    net.op("Conv", "image", net.weight(4, 4, 1, 1), output="out")
    convolution = net.build({"image": [1, 4, 6, 6]}, {"out": [1, 4, 6, 6]})
    assert "slower than float" in str(refuse(builders.signature(convolution), builders.TARGET))
    assert "GRU" in str(refuse(builders.signature(gru()), builders.TARGET))
    assert "already" in str(refuse(replace(builders.signature(builders.mlp()), quantized=True), builders.TARGET))
    assert "TensorRT" in str(refuse(builders.signature(builders.mlp()), replace(builders.TARGET, name="tensorrt")))
    assert refuse(builders.signature(builders.mlp()), builders.TARGET) is None


def test_an_opset_without_dynamic_quantization_is_refused() -> None:
    with pytest.raises(PassFailed, match="opset 10 is older than 11"):
        quantize(builders.mlp(opset=10))


def test_the_same_model_gives_the_same_bytes() -> None:
    model = builders.bert_block()
    assert builders.to_bytes(quantize(model)) == builders.to_bytes(quantize(model))


@pytest.mark.parametrize(("narrow", "worst"), [(True, 126), (False, 254)])
def test_two_neighbours_of_one_sign_stay_within_16_bits_where_asked(narrow: bool, worst: int) -> None:
    quantized = quantize(builders.mlp(), reduced_range=narrow)
    codes = [
        v.const_value.numpy().astype(int)
        for v in quantized.graph.initializers.values()
        if v.dtype == ir.DataType.INT8 and v.const_value
    ]
    pairs = [array[0:-1:2] + array[1::2] for array in codes if array.ndim == 2]
    found = max(int(np.abs(each).max()) for each in pairs)
    assert found == 126 if narrow else 126 < found <= worst
