"""Gradients at the calibration samples, for the criterion ``taylor``: how much each weight has a say in what the model answers.

Called by ``calibrate.importance`` through ``Evidence.gradients``, since ranking needs no torch and gradients do. In come a model and names of
constants, out go gradients, a sample at a time. Calibration samples have no labels, and the model's distance from itself has no slope; so what is
differentiated is a random direction of the outputs whose square is, on average, the second order of the very distance that candidates are judged
by: the Fisher information of class scores (what a KL divergence is, near zero), the variance-scaled square for the rest. With true labels that
would be the empirical Fisher of P. Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, arXiv:1906.10771; with the model's own
distribution it needs none, and a class that the model is sure of still has neighbours (J. Martens, "New Insights and Perspectives on the Natural Gradient
Method", JMLR 2020, arXiv:1412.1193).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.errors import PassFailed
from edgeopt.training import losses
from edgeopt.training.loop import steady
from edgeopt.training.losses import Term
from edgeopt.training.replay import Replay

if TYPE_CHECKING:
    from torch import Tensor

    from edgeopt.protocols import Array, Evidence, Model

MOST_SAMPLES = 64
"""Samples read at most: each costs a forward and a backward pass."""
_LOOKED_AT = 8
"""Answers by which an output is known to hold class scores or something else."""
_SMALLEST = 1e-7


def per_sample(model: Model, names: Sequence[str], evidence: Evidence) -> Iterator[dict[str, Array]]:
    """For each sample the gradient of one random direction of the outputs by each named weight, in the weight's shape.

    Names that are no weights are left out. Raises :class:`~edgeopt.errors.PassFailed` for operators that are not replayed, and where no output has a slope.
    """
    wanted = frozenset(names)
    outputs = [str(output.name) for output in model.graph.outputs]
    terms = losses.terms(model, "auto", list(islice(evidence.observe(model, outputs), _LOOKED_AT)))
    with steady(evidence.target.threads):
        student = Replay(model, trainable=wanted.__contains__)
        weights = {name: weight for name, weight in student.weights.items() if name in wanted}
        for index, feeds in enumerate(islice(evidence.samples(), MOST_SAMPLES)):
            random = np.random.default_rng([evidence.seed, index])
            seen = student({name: torch.from_numpy(np.array(array, order="C")) for name, array in feeds.items()})
            yield _slopes(_direction(terms, seen, random), weights)


def _slopes(answer: Tensor, weights: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    if not answer.requires_grad:
        raise PassFailed(
            f"no output has a slope by any of the {len(weights)} weights asked for",
            hint="Use criterion=obs.",
        )
    found = torch.autograd.grad(answer, list(weights.values()), allow_unused=True)
    return {
        name: np.zeros(tuple(weight.shape), np.float32) if slope is None else slope.numpy()
        for (name, weight), slope in zip(weights.items(), found, strict=True)
    }


def _direction(terms: Sequence[Term], seen: Mapping[str, Tensor], random: np.random.Generator) -> Tensor:
    """A number whose squared slope is, over the random signs, the curvature of the distance from these very answers."""
    total = torch.zeros(())
    for term in terms:
        if term.kind == "cosine":  # an embedding's squared error stands beside it, and says the same
            continue
        values = seen[term.name].float()
        signs = torch.from_numpy(random.choice(np.array([-1.0, 1.0], np.float32), tuple(values.shape)))
        total = total + term.weight * (values * _spread(term, values.detach(), signs)).sum()
    return total


def _spread(term: Term, values: Tensor, signs: Tensor) -> Tensor:
    """``signs`` in the size of the square root of the distance's curvature by ``values``; a mean over rows, as the losses are."""
    rows = max(1, values.numel() // values.shape[-1]) if values.ndim else 1
    spread: Tensor
    if term.kind in ("logits", "log_probabilities"):
        shares = values.softmax(dim=-1)
        roots = shares.sqrt() * signs
        spread = (roots - shares * roots.sum(dim=-1, keepdim=True)) / rows**0.5
    elif term.kind == "probabilities":
        spread = signs / (values.clamp(min=_SMALLEST) * rows).sqrt()
    elif term.kind == "binary":
        certain = values.clamp(min=_SMALLEST, max=1.0 - _SMALLEST)
        spread = signs / (certain * (1.0 - certain) * values.numel()).sqrt()
    else:
        spread = signs / (term.variance * max(1, values.numel())) ** 0.5
    return spread
