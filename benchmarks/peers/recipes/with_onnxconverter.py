"""onnxconverter-common's half precision, with inputs and outputs kept as they are."""

from __future__ import annotations

import onnx
from job import Job, run
from onnxconverter_common import float16


def fp16(job: Job) -> None:
    onnx.save(float16.convert_float_to_float16(onnx.load(job.model), keep_io_types=True), job.out)


if __name__ == "__main__":
    run({"fp16": fp16})
