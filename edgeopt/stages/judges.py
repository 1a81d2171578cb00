"""How far a candidate's output is from the original's, one sample at a time: pure functions over two arrays.

Every judge gives numbers per sample that ``quality`` averages and bounds. See docs/quality.md for what they mean.
Shapes: a class output is [..., classes] with the classes last; a dense output is anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.graph.detections import DetectionLayout, box_shares

Floats = NDArray[np.float64]
_TINY = 1e-30
_EVEN_CHANCE = 0.5
"""A sample on the boundary flips one way or the other."""
_MASK_LEVEL = 0.5
_FEWEST_MEASURED = 8
"""So many samples must show how far margins move before the others are taken to be like them."""


@dataclass(frozen=True, slots=True)
class ClassChange:
    """What changed in one sample's class probabilities; positions (rank above 2) are averaged."""

    drop: float
    """p_orig(top-1 of the original) - p_orig(top-1 of the candidate), in 0..1."""
    same_top1: float
    confidence: float
    """The original's probability of its top-1."""
    divergence: float
    """Kullback-Leibler divergence of the candidate from the original, in nats."""
    margin: float
    """Log-odds between the original's first and second class."""
    margin_change: float
    """NaN where it cannot be seen: the candidate gives the second class nothing at all, as a quantized softmax does."""
    flip_cost: float
    """p_orig(first) - p_orig(second): what a flip to the runner-up would lose."""


def class_probabilities(output: NDArray[Any], form: str) -> Floats:
    """[positions, classes] probabilities out of an output in ``form``: ``probabilities``, ``log_probabilities``, ``logits``, ``binary``."""
    values = np.asarray(output, dtype=np.float64)
    if form == "binary":
        flat = values.reshape(-1, 1)
        return np.concatenate([1.0 - flat, flat], axis=1)
    values = values.reshape(-1, values.shape[-1])
    if form == "probabilities":
        return np.clip(values, 0.0, None)
    if form == "log_probabilities":
        return np.asarray(np.exp(values))
    shifted = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def class_change(original: Floats, candidate: Floats) -> ClassChange:
    """Compare [positions, classes] probabilities."""
    rows = np.arange(len(original))
    first, chosen = original.argmax(axis=1), candidate.argmax(axis=1)
    rest = original.copy()
    rest[rows, first] = -1.0
    second = rest.argmax(axis=1)
    log_original, log_candidate = np.log(original + _TINY), np.log(candidate + _TINY)
    margin = log_original[rows, first] - log_original[rows, second]
    change = (log_candidate[rows, first] - log_candidate[rows, second]) - margin
    change = change[(candidate[rows, second] > 0.0) | (candidate[rows, first] == 0.0)]
    return ClassChange(
        drop=float((original[rows, first] - original[rows, chosen]).mean()),
        same_top1=float((first == chosen).mean()),
        confidence=float(original[rows, first].mean()),
        divergence=float((original * (log_original - log_candidate)).sum(axis=1).mean()),
        margin=float(margin.mean()),
        margin_change=float(np.sqrt((change**2).mean())) if change.size else np.nan,
        flip_cost=float((original[rows, first] - original[rows, second]).mean()),
    )


def flip_risk(margins: Floats, margin_changes: Floats) -> Floats:
    """Upper bound of each sample's chance that its top-1 flips, from how much of the margins the candidate ate.

    Where no sample flipped, the average of the drops says 0 and so does its bootstrap, however few samples there were;
    the margins tell more. Only a unimodal distribution of the changes is assumed, since a Gaussian one would claim
    chances like 1e-30: the one-sided Gauss-type inequality of R. A. Ion, C. A. J. Klaassen and E. R. van den Heuvel (TEST
    32, 2023), P(Z >= v) <= max(4 / (9 (1 + v^2)), (3 - v^2) / (3 (1 + v^2))), in units of the changes' root mean square.
    A change that cannot be seen (NaN) is taken to be like the others; where too few can, its whole margin counts as eaten.
    """
    seen = np.isfinite(margin_changes)
    margin_changes = margin_changes[seen] if seen.sum() >= _FEWEST_MEASURED else np.where(seen, margin_changes, margins)
    spread = float(np.sqrt(np.mean(margin_changes**2)))
    if spread == 0.0:
        return np.zeros_like(margins)
    square = (margins / spread) ** 2
    far, near = 4.0 / (9.0 * (1.0 + square)), 4.0 / (3.0 * (1.0 + square)) - 1.0 / 3.0
    return np.clip(np.where(square >= 5.0 / 3.0, far, near), 0.0, _EVEN_CHANCE)


def cosine_drop(original: NDArray[Any], candidate: NDArray[Any]) -> float:
    """1 - cosine between the vectors on the last axis, averaged; two zero vectors are equal."""
    first, second = _unit_rows(original), _unit_rows(candidate)
    both_zero = ~first.any(axis=1) & ~second.any(axis=1)
    return float(np.mean(np.where(both_zero, 0.0, 1.0 - (first * second).sum(axis=1))))


def _unit_rows(array: NDArray[Any]) -> Floats:
    """Vectors on the last axis at length 1; zero vectors stay zero. Scaled first: squares of tiny values vanish."""
    rows = np.asarray(array, dtype=np.float64).reshape(-1, array.shape[-1] if array.ndim else 1)
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    rows = np.divide(rows, largest, out=np.zeros_like(rows), where=largest > 0)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _TINY))


def noise_and_signal(original: NDArray[Any], candidate: NDArray[Any]) -> tuple[float, float]:
    """Mean squared error and mean square of the original."""
    first, second = np.asarray(original, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if first.size == 0:
        return 0.0, 0.0
    return float(np.mean((second - first) ** 2)), float(np.mean(first**2))


def mismatch(original: NDArray[Any], candidate: NDArray[Any]) -> float:
    """Share of elements that differ, for outputs of integers, booleans and strings."""
    if original.shape != candidate.shape:
        return 1.0
    return float(np.mean(original != candidate)) if original.size else 0.0


def mask_overlap(original: NDArray[Any], candidate: NDArray[Any]) -> float:
    """Intersection over union of the two masks at half height; two empty masks overlap fully."""
    first, second = original > _MASK_LEVEL, candidate > _MASK_LEVEL
    union = int((first | second).sum())
    return float((first & second).sum() / union) if union else 1.0


def detection_noise(
    layout: DetectionLayout, original: NDArray[Any], candidate: NDArray[Any]
) -> dict[str, tuple[float, float]]:
    """(noise, signal) of the scores, and of the coordinates where the original sees something."""
    boxes, scores = layout.parts(original)
    other_boxes, other_scores = layout.parts(candidate)
    weight = box_shares(scores)
    return {
        "scores": noise_and_signal(scores, other_scores),
        "boxes": (
            float((((other_boxes - boxes) ** 2).mean(axis=1) * weight).sum()),
            float(((boxes**2).mean(axis=1) * weight).sum()),
        ),
    }
