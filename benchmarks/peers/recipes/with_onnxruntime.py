"""onnxruntime.quantization and onnxruntime.transformers, as their documentation says: pre-process, then quantize."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from job import Job, run
from onnx import version_converter
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers import optimizer

_PER_CHANNEL_OPSET, _RAISED_OPSET = 13, 17
_HEADS, _HIDDEN = 12, 384
"""Of the one transformer in the corpus; the fusion does not find them in an exported graph by itself."""
_INTEGER_LEVEL = 4
_KEPT_SAMPLES = 32
"""Percentile and entropy calibration keep every tensor of every sample in memory: gigabytes already with these."""


def pre_processed(job: Job, *, per_channel: bool = False) -> str:
    """The model after ``quant_pre_process``; symbolic shape inference is left out where it fails on the model."""
    source, prepared = job.model, f"{job.out}.prepared.onnx"
    if per_channel:
        source = _with_scales_per_channel(job)
    try:
        quant_pre_process(source, prepared)
    except Exception as error:  # noqa: BLE001  # it raises plain Exception("Incomplete symbolic shape inference")
        print(f"NOTE symbolic shape inference fails: {error}")
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
    return prepared


def _with_scales_per_channel(job: Job) -> str:
    """Below opset 13 quantize_static writes scales per channel that no runtime opens: raise the opset first."""
    model = onnx.load(job.model)
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if opset >= _PER_CHANNEL_OPSET:
        return job.model
    print(f"NOTE opset raised from {opset} to {_RAISED_OPSET}, since scales per channel need {_PER_CHANNEL_OPSET}")
    raised = f"{job.out}.raised.onnx"
    onnx.save(version_converter.convert_version(model, _RAISED_OPSET), raised)
    return raised


def optimized(job: Job) -> None:
    """Written for the CPU of this machine, as ``ORT_ENABLE_ALL`` lays it out."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = job.out
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    ort.InferenceSession(job.model, options, providers=["CPUExecutionProvider"])


def static(job: Job, **settings: Any) -> None:
    prepared = pre_processed(job, per_channel=settings.get("per_channel", False))
    quantize_static(prepared, job.out, job.reader(), **settings)
    _tidy(job)


def static_with_histograms(job: Job, **settings: Any) -> None:
    if len(job.feeds) > _KEPT_SAMPLES:
        print(f"NOTE calibrated on {_KEPT_SAMPLES} samples")
    static(replace(job, feeds=job.feeds[:_KEPT_SAMPLES]), **settings)


def dynamic(job: Job, **settings: Any) -> None:
    quantize_dynamic(pre_processed(job), job.out, **settings)
    _tidy(job)


def matmul(job: Job, *, bits: int, level: int | None = None) -> None:
    settings = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=level, bits=bits)
    quantizer = MatMulNBitsQuantizer(onnx.load(job.model), algo_config=settings)
    quantizer.process()
    quantizer.model.save_model_to_file(job.out, use_external_data_format=False)


def fusion(job: Job) -> None:
    _fuse(job, job.out)


def fusion_dynamic(job: Job) -> None:
    fused = f"{job.out}.fused.onnx"
    _fuse(job, fused)
    quantize_dynamic(fused, job.out, per_channel=True)
    _tidy(job)


def _fuse(job: Job, out: str) -> None:
    fused = optimizer.optimize_model(job.model, model_type="bert", num_heads=_HEADS, hidden_size=_HIDDEN)
    print(fused.get_fused_operator_statistics())
    fused.save_model_to_file(out)


def _tidy(job: Job) -> None:
    """Remove what was in between, which is no part of the artifact."""
    out = Path(job.out)
    for file in out.parent.glob(f"{out.name}.*.onnx*"):
        file.unlink()


if __name__ == "__main__":
    u8s8 = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    u8u8 = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8}
    percentile = {"calibrate_method": CalibrationMethod.Percentile}
    entropy = {"calibrate_method": CalibrationMethod.Entropy}
    run(
        {
            "optimized": optimized,
            "static": static,
            "static_u8u8": partial(static, **u8u8),
            "static_u8u8_per_channel": partial(static, **u8u8, per_channel=True),
            "static_u8u8_qoperator": partial(static, **u8u8, per_channel=True, quant_format=QuantFormat.QOperator),
            "static_u8s8_per_channel": partial(static, **u8s8),
            "static_u8s8_reduced": partial(static, **u8s8, reduce_range=True),
            "static_u8s8_percentile": partial(static_with_histograms, **u8s8, **percentile),
            "static_u8s8_entropy": partial(static_with_histograms, **u8s8, **entropy),
            "dynamic": dynamic,
            "dynamic_uint8": partial(dynamic, weight_type=QuantType.QUInt8),
            "dynamic_per_channel": partial(dynamic, per_channel=True),
            "dynamic_reduced": partial(dynamic, per_channel=True, reduce_range=True),
            "matmul_8_bits": partial(matmul, bits=8),
            "matmul_8_bits_integer": partial(matmul, bits=8, level=_INTEGER_LEVEL),
            "matmul_4_bits": partial(matmul, bits=4),
            "matmul_4_bits_integer": partial(matmul, bits=4, level=_INTEGER_LEVEL),
            "fusion": fusion,
            "fusion_dynamic": fusion_dynamic,
        }
    )
