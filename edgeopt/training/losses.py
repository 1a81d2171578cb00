"""How far a student's outputs are from its teacher's: the losses of distillation.

Stands between the replayed student and ``training.loop``. In come the values that both have by name, out goes one number to descend. Which loss
an output gets is read off the graph's end and the teacher's answers, by the rules that candidates are judged by (``graph.endings``):

- ``kl``       for class scores: KL divergence of distributions softened by a temperature, times its square so that the gradients keep their size
               (G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531)
- ``mse``      regression on the output, in units of the teacher's variance; on logits it is the loss of J. Ba and R. Caruana, "Do Deep Nets Really Need
               to be Deep?", NeurIPS 2014. A detector's table counts as it is judged: scores by themselves, coordinates by the teacher's best score of
               their box
- ``cosine``   for embeddings: one minus the cosine over the last axis
- ``features`` the outputs' own losses, and the mean squared error of intermediate values that both models have under one name and in one shape, after
               A. Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv:1412.6550 (whose regressors bridge unequal shapes: here those are left out)

Losses are means over samples, so that a batch may be computed in parts. A model with several outputs gets the sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgeopt.errors import PassFailed
from edgeopt.graph import endings
from edgeopt.graph.detections import COORDINATES, DetectionLayout, box_shares, shared_layout

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor

LOSSES = ("auto", "kl", "mse", "cosine", "features")
_TOLERANCE = 1e-3
_SMALLEST_PROBABILITY = 1e-7
_SMALLEST_VARIANCE = 1e-12
_CLASS_KINDS = ("logits", "probabilities", "log_probabilities", "binary")


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One value's share of the loss. ``kind``: logits, probabilities, log_probabilities, binary, mse, cosine, scores or boxes."""

    name: str
    kind: str
    variance: float = 1.0
    """Of the teacher's answers, or their mean square: the unit of squared errors."""
    weight: float = 1.0
    transposed: bool = False
    """A detector's table with the boxes on its last axis."""


def terms(
    model: ir.Model, loss: str, answers: Sequence[Mapping[str, NDArray[Any]]], *, features: Sequence[str] = ()
) -> tuple[Term, ...]:
    """The terms of ``loss`` for ``model``, out of a few of the teacher's ``answers``.

    ``answers`` hold the outputs and the ``features`` by name. Raises :class:`~edgeopt.errors.PassFailed` for an unknown loss,
    for ``kl`` where no output holds class scores, and where no output is a float.
    """
    if loss not in LOSSES:
        raise PassFailed(f"{loss!r} is no loss", hint=f"Use one of {', '.join(LOSSES)}.")
    ends = endings.final_operators(model)
    found: list[Term] = []
    for output in model.graph.outputs:
        name = str(output.name)
        seen = [answer[name] for answer in answers]
        if seen[0].dtype.kind == "f" and seen[0].size:
            found += _terms_of(name, loss, _kind(ends.get(name, ()), seen), seen)
    if not found:
        wanted = "holds class scores" if loss == "kl" else "is a float"
        raise PassFailed(f"no output of the model {wanted}", hint="Use loss=auto, or leave distillation out.")
    hints = [
        Term(name=name, kind="mse", variance=_variance([answer[name] for answer in answers]), weight=1 / len(features))
        for name in features
    ]
    return (*found, *hints)


def loss_of(
    parts: Sequence[Term], student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], *, temperature: float
) -> Tensor:
    """The weighted sum of the terms; a mean over the samples in the batch. Zero exactly where both agree."""
    total = torch.zeros(())
    for part in parts:
        ours, theirs = student[part.name].float(), teacher[part.name].float()
        total = total + part.weight * _DISTANCES[part.kind](ours, theirs, part, temperature)
    return total


def _terms_of(name: str, loss: str, kind: str, seen: Sequence[NDArray[Any]]) -> list[Term]:
    regression = Term(name=name, kind="mse", variance=_variance(seen))
    if loss == "mse":
        return [regression]
    if loss == "cosine":
        return [Term(name=name, kind="cosine")] if seen[0].ndim > 1 else [regression]
    if loss != "kl" and (layout := shared_layout(seen)) is not None:
        return _detection(name, layout, seen)
    if kind in _CLASS_KINDS:
        return [Term(name=name, kind=kind)]
    if loss == "kl":
        return []
    # the cosine alone would let an embedding's length drift
    return [Term(name=name, kind="cosine"), regression] if kind == "embedding" else [regression]


def _detection(name: str, layout: DetectionLayout, seen: Sequence[NDArray[Any]]) -> list[Term]:
    """Scores and boxes, each in units of what ``stages.judges`` calls its signal."""
    signals = []
    for answer in seen:
        boxes, scores = layout.parts(answer)
        seen_where = (boxes**2).mean(axis=1) * box_shares(scores)
        signals.append((float((scores**2).mean()), float(seen_where.sum())))
    units = np.maximum(np.mean(signals, axis=0), _SMALLEST_VARIANCE)
    kinds = zip(("scores", "boxes"), units, strict=True)
    return [Term(name=name, kind=kind, variance=float(unit), transposed=layout.transposed) for kind, unit in kinds]


def _kind(end: tuple[str, ...], seen: Sequence[NDArray[Any]]) -> str:
    """What an output holds: class scores of some form, ``embedding`` or ``dense``."""
    if end and end[0] == "Sigmoid" and all(array.size == array.shape[0] for array in seen if array.ndim):
        return "binary"  # one a sample; a map of sigmoids is judged by its noise, and taught by it
    if any(array.ndim < 2 or array.shape[-1] < 2 for array in seen) or len({array.shape[-1] for array in seen}) > 1:
        return "dense"
    flat = np.concatenate([array.reshape(-1, array.shape[-1]).astype(np.float64) for array in seen])
    if flat.min() >= 0.0 and np.abs(flat.sum(axis=1) - 1.0).max() < _TOLERANCE:
        return "probabilities"
    if flat.max() <= 0.0 and np.abs(np.exp(flat).sum(axis=1) - 1.0).max() < _TOLERANCE:
        return "log_probabilities"
    if seen[0].ndim != 2:
        return "dense"
    unit_length = np.abs(np.linalg.norm(flat, axis=1) - 1.0).max() < _TOLERANCE
    return "logits" if endings.like_classifier(end) and not unit_length else "embedding"


def _variance(seen: Sequence[NDArray[Any]]) -> float:
    """Over all elements of the answers; a constant output is measured by its own size."""
    values = np.concatenate([array.reshape(-1).astype(np.float64) for array in seen])
    variance = float(values.var())
    return variance if variance > _SMALLEST_VARIANCE else max(float(np.square(values).mean()), _SMALLEST_VARIANCE)


def _divergence(ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) over the last axis of two sets of logits, times the temperature's square."""
    log_ours = functional.log_softmax(ours / temperature, dim=-1)
    log_theirs = functional.log_softmax(theirs / temperature, dim=-1)
    divergence = (log_theirs.exp() * (log_theirs - log_ours)).sum(dim=-1)
    return divergence.mean() * temperature**2


def _logits(ours: Tensor, theirs: Tensor, _part: Term, temperature: float) -> Tensor:
    return _divergence(ours, theirs, temperature)


def _probabilities(ours: Tensor, theirs: Tensor, _part: Term, temperature: float) -> Tensor:
    # the logarithm undoes the model's own Softmax up to a constant, which the next one takes off
    return _divergence(_log(ours), _log(theirs), temperature)


def _binary(ours: Tensor, theirs: Tensor, _part: Term, _temperature: float) -> Tensor:
    """KL of two Bernoulli distributions for each element: its Softmax has two classes and no temperature."""
    yes = theirs * (_log(theirs) - _log(ours))
    no = (1 - theirs) * (_log(1 - theirs) - _log(1 - ours))
    return (yes + no).mean()


def _mse(ours: Tensor, theirs: Tensor, part: Term, _temperature: float) -> Tensor:
    return functional.mse_loss(ours, theirs) / part.variance


def _cosine(ours: Tensor, theirs: Tensor, _part: Term, _temperature: float) -> Tensor:
    return (1.0 - functional.cosine_similarity(ours, theirs, dim=-1)).mean()


def _scores(ours: Tensor, theirs: Tensor, part: Term, _temperature: float) -> Tensor:
    """Squared error of a detector's scores."""
    ours, theirs = (_boxes_first(table, part)[..., COORDINATES:] for table in (ours, theirs))
    return functional.mse_loss(ours, theirs) / part.variance


def _boxes(ours: Tensor, theirs: Tensor, part: Term, _temperature: float) -> Tensor:
    """Squared error of a detector's coordinates; boxes count by the teacher's best score."""
    ours, theirs = _boxes_first(ours, part), _boxes_first(theirs, part)
    weight = theirs[..., COORDINATES:].amax(dim=-1)
    share = weight / weight.sum(dim=-1, keepdim=True).clamp(min=_SMALLEST_VARIANCE)
    errors = (ours[..., :COORDINATES] - theirs[..., :COORDINATES]).square().mean(dim=-1)
    return (errors * share).sum(dim=-1).mean() / part.variance


def _boxes_first(table: Tensor, part: Term) -> Tensor:
    return table.transpose(-1, -2) if part.transposed else table


def _log(values: Tensor) -> Tensor:
    return values.clamp(min=_SMALLEST_PROBABILITY).log()


_DISTANCES = {
    "logits": _logits,
    "probabilities": _probabilities,
    "log_probabilities": _logits,
    "binary": _binary,
    "mse": _mse,
    "cosine": _cosine,
    "scores": _scores,
    "boxes": _boxes,
}
