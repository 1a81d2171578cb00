"""onnxsim: a folded and cleaned-up float graph."""

from __future__ import annotations

import onnx
import onnxsim
from job import Job, run


def simplify(job: Job) -> None:
    simplified, agrees = onnxsim.simplify(onnx.load(job.model))
    if not agrees:
        raise RuntimeError("the simplified model does not compute what the original does")
    onnx.save(simplified, job.out)


if __name__ == "__main__":
    run({"simplify": simplify})
