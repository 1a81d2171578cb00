"""onnxslim: a cleaned-up float graph."""

from __future__ import annotations

import onnx
import onnxslim
from job import Job, run


def slim(job: Job) -> None:
    onnx.save(onnxslim.slim(job.model), job.out)


if __name__ == "__main__":
    run({"slim": slim})
