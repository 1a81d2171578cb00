"""AIMET's quantization simulation with int8 weights and activations, exported as QDQ around float weights."""

from __future__ import annotations

import aimet_onnx
import onnx
from aimet_onnx import QuantizationSimModel
from job import Job, run


def int8(job: Job) -> None:
    simulation = QuantizationSimModel(
        onnx.load(job.model),
        param_type=aimet_onnx.int8,
        activation_type=aimet_onnx.int8,
        providers=["CPUExecutionProvider"],
    )
    simulation.compute_encodings(job.feeds)
    onnx.save(simulation.to_onnx_qdq(), job.out)


if __name__ == "__main__":
    run({"int8": int8})
