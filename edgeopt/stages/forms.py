"""What each output of a model is: class scores, an embedding, a detector's table, something dense, or not a number.

Stands before ``quality``: it looks at the end of the graph and at the original's outputs on real samples, never at names
of models. The rules, in order, are written down in docs/quality.md; ``goal.metric`` overrides them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.graph import endings
from edgeopt.graph.detections import DetectionLayout, shared_layout
from edgeopt.records import Signature

_CLASS_WORDS = ("logit", "prob", "class", "score", "pred")
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputForm:
    """One output's kind: ``classes``, ``embedding``, ``detection``, ``dense``, ``discrete`` or ``state``."""

    name: str
    index: int
    kind: str
    scores: str = ""
    """For classes: ``probabilities``, ``log_probabilities``, ``logits`` or ``binary``."""
    layout: DetectionLayout | None = None


def recognise(
    signature: Signature, ends: dict[str, tuple[str, ...]], outputs: Sequence[Sequence[NDArray[Any]]], *, labelled: bool
) -> tuple[OutputForm, ...]:
    """Forms of all outputs, out of a few samples' outputs and the operators that each output ends with.

    ``ends`` is :func:`~edgeopt.graph.endings.final_operators` of the model; ``labelled`` says that the samples carry class labels.
    """
    states = {pair.output for pair in signature.states}
    forms = []
    for index, spec in enumerate(signature.outputs):
        seen = [sample[index] for sample in outputs]
        if spec.name in states:
            forms.append(OutputForm(name=spec.name, index=index, kind="state"))
        else:
            forms.append(_recognise_one(spec.name, index, ends.get(spec.name, ()), seen, labelled=labelled))
    return tuple(forms)


def _recognise_one(
    name: str, index: int, end: tuple[str, ...], seen: list[NDArray[Any]], *, labelled: bool
) -> OutputForm:
    first = seen[0]
    if first.dtype.kind != "f" or first.size == 0:
        return OutputForm(name=name, index=index, kind="discrete")
    if (layout := shared_layout(seen)) is not None:
        return OutputForm(name=name, index=index, kind="detection", layout=layout)
    if scores := _class_scores(name, end, seen, labelled=labelled):
        return OutputForm(name=name, index=index, kind="classes", scores=scores)
    if first.ndim == 2 and first.shape[1] > 1:
        return OutputForm(name=name, index=index, kind="embedding")
    return OutputForm(name=name, index=index, kind="dense")


def _class_scores(name: str, end: tuple[str, ...], seen: list[NDArray[Any]], *, labelled: bool) -> str:
    """How an output holds class scores; empty where it does not."""
    last = end[0] if end else ""
    if last == "Sigmoid" and all(array.size == array.shape[0] for array in seen if array.ndim):
        return "binary"
    # classes have the same number in every sample; a map whose width varies has none
    if any(array.ndim < 2 or array.shape[-1] < 2 for array in seen) or len({array.shape[-1] for array in seen}) > 1:
        return ""
    flat = np.concatenate([array.reshape(-1, array.shape[-1]).astype(np.float64) for array in seen])
    if flat.min() >= 0.0 and np.abs(flat.sum(axis=1) - 1.0).max() < _TOLERANCE:
        return "probabilities"
    if flat.max() <= 0.0 and np.abs(np.exp(flat).sum(axis=1) - 1.0).max() < _TOLERANCE:
        return "log_probabilities"
    unit_length = np.abs(np.linalg.norm(flat, axis=1) - 1.0).max() < _TOLERANCE
    if seen[0].ndim != 2 or unit_length:
        return ""
    named = any(word in name.lower() for word in _CLASS_WORDS)
    return "logits" if labelled or named or endings.like_classifier(end) else ""
