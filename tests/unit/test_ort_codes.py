"""Float arithmetic on int8 codes, as engines are judged by: no kernel of this machine may saturate what a GPU adds up in 32 bits."""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import onnx_ir as ir

from edgeopt.records import Recipe
from edgeopt.runtimes.ort import OnnxRuntime
from edgeopt.stages import ahead


def full_range_product() -> ir.Model:
    """128 products of the largest codes: pairs of them do not fit into the 16 bits of AVX2's kernels."""
    net = builders.Net(seed=1)
    scale, zero = net.const(np.float32(1.0)), net.const(np.int8(0))
    value = net.op("DequantizeLinear", net.op("QuantizeLinear", "x", scale, zero), scale, zero)
    weight = net.op("DequantizeLinear", net.const(np.full((128, 8), 127, np.int8)), scale, zero)
    product = net.op("MatMul", value, weight)
    coarse = net.const(np.float32(2.0**15))
    net.op("DequantizeLinear", net.op("QuantizeLinear", product, coarse, zero), coarse, zero, output="y")
    return net.build({"x": [4, 128]}, {"y": [4, 8]})


def test_judged_model_adds_up_the_largest_codes_without_saturating(tmp_path: Path) -> None:
    ir.save(full_range_product(), tmp_path / "model.onnx")
    runtime = OnnxRuntime()
    artifact = ahead.judged(runtime.compile(tmp_path / "model.onnx", Recipe(), builders.TARGET))
    assert dict(artifact.session)["float_codes"] is True
    with runtime.open(artifact) as session:
        (found,) = session.run({"x": np.full((4, 128), 127.0, np.float32)})
    # 128 * 127 * 127 = 2064512 is code 63 of 32768 each
    np.testing.assert_array_equal(found, np.full((4, 8), 63 * 2.0**15, np.float32))
