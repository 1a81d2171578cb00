"""NNCF on ONNX models: ``quantize``, and ``quantize_with_accuracy_control`` with the calibration samples to validate on."""

from __future__ import annotations

from typing import Any

import nncf
import numpy as np
import onnx
import onnxruntime as ort
from job import Job, run

_MAX_DROP = 0.01


def quantize(job: Job, **settings: Any) -> None:
    made = nncf.quantize(onnx.load(job.model), nncf.Dataset(job.feeds), subset_size=len(job.feeds), **settings)
    onnx.save(made, job.out)


def quantize_transformer(job: Job) -> None:
    quantize(job, model_type=nncf.ModelType.TRANSFORMER)


def accuracy_control(job: Job) -> None:
    """Validated against the float model on the calibration samples: the eval samples are for the judge alone."""
    settings = {"model_type": nncf.ModelType.TRANSFORMER} if "LayerNormalization" in job.facts["operators"] else {}
    original = _session(onnx.load(job.model))
    output = job.facts["judged_output"]
    pairs = [(feeds, original.run(None, feeds)[output]) for feeds in job.feeds]

    def validate(model: onnx.ModelProto, data: Any) -> tuple[float, list[float]]:
        session = _session(model)
        scores = [_score(right, session.run(None, feeds)[output], job.facts["judged_by"]) for feeds, right in data]
        return float(np.mean(scores)), scores

    made = nncf.quantize_with_accuracy_control(
        onnx.load(job.model),
        nncf.Dataset(job.feeds),
        nncf.Dataset(pairs),
        validate,
        max_drop=_MAX_DROP,
        subset_size=len(job.feeds),
        **settings,
    )
    onnx.save(made, job.out)


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _score(right: np.ndarray, got: np.ndarray, judged_by: str) -> float:
    """1 is as the original, whatever the metric."""
    right, got = right.astype(np.float64), got.astype(np.float64)
    if judged_by == "agreement":
        return float((right.argmax(-1) == got.argmax(-1)).mean())
    if judged_by == "cosine":
        return float((right * got).sum() / (np.linalg.norm(right) * np.linalg.norm(got) + 1e-12))
    return 1.0 - float(((right - got) ** 2).sum() / ((right**2).sum() + 1e-12))


if __name__ == "__main__":
    run(
        {
            "quantize": quantize,
            "quantize_transformer": quantize_transformer,
            "accuracy_control": accuracy_control,
        }
    )
