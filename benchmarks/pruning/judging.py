"""How near a candidate is to the original on the eval samples, which no candidate has seen, and how much smaller it is.

Class scores: the mean Kullback-Leibler divergence from the original, the drop that the original expects (docs/quality.md), agreement on the best class, the same where the original gives it more
than one half, accuracy where there are labels. Everything: cosine and noise-to-signal of the last output. Multiply-adds are counted from the lengths that the values have when the model runs.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from quantization import ratio as latency_ratio
from quantization import session

from edgeopt.calibrate.shapes import observed_shapes

from .questions import CLASSIFIERS, Subject

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Judge:
    """The original's outputs on the eval samples, computed once."""

    def __init__(self, subject: Subject, *, samples: int) -> None:
        self._subject, self._is_classifier = subject, subject.name in CLASSIFIERS
        count = len(subject.corpus.evaluation)
        self._chosen = np.linspace(0, count - 1, min(samples, count)).astype(int)
        self._feeds = [subject.corpus.evaluation.feeds(int(index)) for index in self._chosen]
        self._original = session(subject.clean)
        self._right = self._outputs(self._original)
        self._multiply_adds = multiply_adds(subject.corpus.clean, subject)

    def numbers(self, file: Path) -> dict[str, float]:
        """Quality and what is left of the multiply-adds and the bytes; all but latency, which a busy machine changes."""
        rows = list(zip(self._right, self._outputs(session(file)), strict=True))
        found = {
            "cosine": _mean(_cosine(right, got) for right, got in rows),
            "nsr": _mean(float(((right - got) ** 2).sum() / max((right**2).sum(), 1e-30)) for right, got in rows),
            "multiply_adds": multiply_adds(ir.load(file), self._subject) / self._multiply_adds,
            "bytes": file.stat().st_size / self._subject.clean.stat().st_size,
        }
        return found | (self._classes(rows) if self._is_classifier else {})

    def latency(self, file: Path) -> float:
        """CPU time over the original's, blocks taken in turns."""
        return latency_ratio(session(file), self._original, self._feeds[0])

    def _outputs(self, opened: Any) -> list[np.ndarray]:
        return [opened.run(None, feeds)[-1].astype(np.float64).ravel() for feeds in self._feeds]

    def _classes(self, rows: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        shares = [(_distribution(right), _distribution(got)) for right, got in rows]
        sure = [p.argmax() == q.argmax() for p, q in shares if p.max() > 0.5]
        found = {
            "divergence": _mean((p * (np.log(p + 1e-30) - np.log(q + 1e-30))).sum() for p, q in shares),
            "drop": _mean(p.max() - p[q.argmax()] for p, q in shares),
            "agreement": _mean(p.argmax() == q.argmax() for p, q in shares),
            "sure_agreement": _mean(sure),
        }
        if self._subject.labels is None:
            return found
        labels = self._subject.labels[self._chosen]
        return found | {
            "accuracy": _mean(q.argmax() == label for (_, q), label in zip(shares, labels, strict=True)),
            "accuracy_before": _mean(p.argmax() == label for (p, _), label in zip(shares, labels, strict=True)),
        }


def multiply_adds(model: ir.Model, subject: Subject) -> int:
    """Of the layers of the main graph, for one calibration sample."""
    lengths = observed_shapes(model, subject.evidence)
    for value in model.graph.initializers.values():
        lengths[str(value.name)] = [int(length) for length in value.const_value.shape]
    return sum(_of_layer(node, lengths) for node in model.graph if node.op_type in _LAYERS)


def _of_layer(node: ir.Node, lengths: Any) -> int:
    data, weight, made = (
        [length or 1 for length in lengths[str(value.name)]] for value in (*node.inputs[:2], node.outputs[0])
    )
    if node.op_type == "ConvTranspose":
        return math.prod(data) * math.prod(weight[1:])
    if node.op_type == "Conv":
        return math.prod(made) * math.prod(weight[1:])
    turned = node.op_type == "Gemm" and node.attributes.get_int("transA", 0)
    return math.prod(made) * data[0 if turned else -1]


def _distribution(values: np.ndarray) -> np.ndarray:
    if values.min() >= 0 and abs(values.sum() - 1) < 1e-3:
        return values
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def _cosine(right: np.ndarray, got: np.ndarray) -> float:
    return float(right @ got / (np.linalg.norm(right) * np.linalg.norm(got) + 1e-30))


def _mean(values: Any) -> float:
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers) if numbers else math.nan
