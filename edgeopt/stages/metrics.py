"""What the numbers of one output say: each metric's value, its drop and its 95 % bound.

Stands between ``judges`` (one sample) and ``quality`` (the verdict). In comes a :class:`Tally` of numbers per sample, out come
findings. Which metric fits which output, and why, is docs/quality.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.policy import Goal
from edgeopt.stages import judges
from edgeopt.stages.bounds import binomial_interval, mean_interval
from edgeopt.stages.forms import OutputForm

Floats = NDArray[np.float64]
_CONFIDENT = 0.5
"""An original that gives its top-1 less than this is guessing; agreement with guesses is reported apart."""


@dataclass(slots=True)
class Tally:
    """Numbers per sample of one output, by name of the number."""

    form: OutputForm
    rows: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, **numbers: float) -> None:
        for name, number in numbers.items():
            self.rows[name].append(number)

    def values(self, name: str) -> Floats:
        return np.asarray(self.rows[name], dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One metric of one output; ``drop`` with its interval."""

    metric: str
    output: str
    value: float
    drop: float
    ci95: tuple[float, float]
    deviation: float = 0.0
    """Standard error of ``drop``; of accuracy only."""


def findings(tally: Tally, goal: Goal, seed: int) -> Iterator[Finding]:
    """What one output says under ``goal.metric``; under ``auto`` the metric that fits its form."""
    metrics = (goal.metric,) if goal.metric != "auto" else _FITTING[tally.form.kind]
    for metric in metrics:
        if measured := _MEASURES[metric](tally, seed):
            yield Finding(metric=metric, output=tally.form.name, **measured)


_FITTING: dict[str, tuple[str, ...]] = {
    "classes": ("accuracy", "expected_drop"),
    "embedding": ("cosine",),
    "detection": ("nsr",),
    "dense": ("nsr",),
    "discrete": ("agreement",),
    "state": (),
}


def _accuracy(tally: Tally, seed: int) -> dict[str, Any]:
    if "right_original" not in tally.rows:
        return {}
    original, candidate = tally.values("right_original"), tally.values("right_candidate")
    risk = judges.flip_risk(tally.values("margin"), tally.values("margin_change"))
    modelled = risk * (original - tally.values("right_runner_up"))
    return {
        "value": float(candidate.mean()),
        "drop": float((original - candidate).mean()),
        "ci95": _wider(original - candidate, modelled, seed),
        "deviation": float((original - candidate).std() / np.sqrt(len(original))),
    }


def _expected_drop(tally: Tally, seed: int) -> dict[str, Any]:
    if "flip_cost" not in tally.rows:
        return {}
    drops = tally.values("drop")
    modelled = judges.flip_risk(tally.values("margin"), tally.values("margin_change")) * tally.values("flip_cost")
    drop = float(drops.mean())
    return {"value": 1.0 - drop, "drop": drop, "ci95": _wider(drops, modelled, seed)}


def _wider(seen: Floats, modelled: Floats, seed: int) -> tuple[float, float]:
    """The interval of what was seen, its upper end not below that of what the margins make likely."""
    low, high = mean_interval(seen, seed=seed)
    return low, max(high, mean_interval(modelled, seed=seed)[1])


def _agreement(tally: Tally, seed: int) -> dict[str, Any]:
    del seed
    if tally.form.kind == "classes":
        wrong = 1.0 - tally.values("same_top1")
    elif tally.form.kind == "discrete":
        wrong = tally.values("mismatch")
    else:
        return {}
    drop = float(wrong.mean())
    low, high = binomial_interval(round(float(wrong.sum())), len(wrong))
    return {"value": 1.0 - drop, "drop": drop, "ci95": (low, high)}


def _cosine(tally: Tally, seed: int) -> dict[str, Any]:
    if tally.form.kind in ("discrete", "state"):
        return {}
    drops = tally.values("cosine_drop")
    drop = float(drops.mean())
    return {"value": 1.0 - drop, "drop": drop, "ci95": mean_interval(drops, seed=seed)}


def _noise_to_signal(tally: Tally, seed: int) -> dict[str, Any]:
    """Noise power over signal power; of a detector's parts the worse one."""
    if tally.form.kind in ("discrete", "state"):
        return {}
    prefixes = ("scores_", "boxes_") if "scores_noise" in tally.rows else ("",)
    ratios = max((_power_ratio(tally, prefix) for prefix in prefixes), key=lambda values: float(values.mean()))
    drop = float(ratios.mean())
    return {"value": 1.0 - drop, "drop": drop, "ci95": mean_interval(ratios, seed=seed)}


def _power_ratio(tally: Tally, prefix: str) -> Floats:
    noise, signal = tally.values(prefix + "noise"), float(tally.values(prefix + "signal").mean())
    return noise / signal if signal > 0 else np.where(noise > 0, 1.0, 0.0)


_MEASURES: dict[str, Callable[[Tally, int], dict[str, Any]]] = {
    "accuracy": _accuracy,
    "expected_drop": _expected_drop,
    "agreement": _agreement,
    "cosine": _cosine,
    "nsr": _noise_to_signal,
}


def details(tallies: list[Tally]) -> Iterator[tuple[str, float]]:
    """What is reported beside the decisive number; names of outputs only where there are several."""
    judged = [tally for tally in tallies if tally.form.kind != "state"]
    for tally in judged:
        suffix = f"[{tally.form.name}]" if len(judged) > 1 else ""
        if tally.form.kind == "discrete":
            yield f"mismatch{suffix}", float(tally.values("mismatch").mean())
            continue
        yield f"cosine{suffix}", 1.0 - float(tally.values("cosine_drop").mean())
        yield f"nsr{suffix}", float(_power_ratio(tally, "").mean())
        if tally.form.kind == "classes":
            same, sure = tally.values("same_top1"), tally.values("confidence") > _CONFIDENT
            yield f"top1_agreement{suffix}", float(same.mean())
            if sure.any():
                yield f"confident_agreement{suffix}", float(same[sure].mean())
                yield f"confident_samples{suffix}", float(sure.sum())
            yield f"kl{suffix}", float(tally.values("kl").mean())
            yield f"expected_drop{suffix}", float(tally.values("drop").mean())
        if "right_original" in tally.rows:
            yield f"accuracy{suffix}", float(tally.values("right_candidate").mean())
            yield f"accuracy_original{suffix}", float(tally.values("right_original").mean())
        if "mask_iou" in tally.rows:
            yield f"mask_iou{suffix}", float(tally.values("mask_iou").mean())
