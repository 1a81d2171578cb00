"""ModelOpt's ONNX quantization with its default calibration, entropy, on the CPU and without half precision around it."""

from __future__ import annotations

import numpy as np
from job import Job, run
from modelopt.onnx.quantization import quantize


def int8_entropy(job: Job) -> None:
    data = {name: np.concatenate([np.atleast_1d(feeds[name]) for feeds in job.feeds]) for name in job.feeds[0]}
    shapes = ",".join(f"{name}:{'x'.join(map(str, array.shape))}" for name, array in job.feeds[0].items())
    quantize(
        job.model,
        quantize_mode="int8",
        calibration_data=data,
        calibration_method="entropy",
        calibration_shapes=shapes,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=job.out,
    )


if __name__ == "__main__":
    run({"int8_entropy": int8_entropy})
