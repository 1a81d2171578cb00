"""Pick the winner: pure arithmetic over measured trials.

A candidate wins only if its quality bound is within ``goal.max_drop`` and its gain's interval lies above
``goal.min_speedup``. Otherwise the cleaned-up original is published, and the original as dropped where even that is not
safe. "Nothing beat the original" is an ordinary verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from edgeopt.policy import Goal
from edgeopt.records import Measurement, Trial, Verdict

_SLOWEST_FOR_BYTES = 0.8
"""With objective size or memory a candidate may still not be more than 1.25 times slower than the original."""
_SAME_SPEED = 0.97
"""The cleaned-up original's interval must reach this far to count as no slower."""


def choose(
    trials: Sequence[Trial],
    baseline: Trial,
    goal: Goal,
    *,
    harmless: Collection[str],
    confirm: Callable[[Trial], Trial],
) -> Verdict:
    """The verdict over measured and refused trials; ``harmless`` are the ids of lossless recipes.

    ``confirm`` measures a would-be winner again; one that does not win twice is refused and the next best has its turn.
    Trials that do not qualify come back with the reason in ``refused``.
    """
    judged = [_judged(trial, goal) for trial in trials]
    while admitted := [index for index, trial in enumerate(judged) if _may_win(trial)]:
        best = max(admitted, key=lambda index: rank(judged[index], goal))
        second = _judged(confirm(judged[best]), goal)
        if _may_win(second):
            judged[best] = second
            return Verdict(winner=second, baseline=baseline, trials=(baseline, *judged), reason=_praise(second, goal))
        judged[best] = replace(second, refused=f"did not win again in fresh processes: {second.refused}")
    fallback = next((trial for trial in judged if _is_safe(trial, goal, harmless)), baseline)
    what = "the original as it was dropped" if fallback is baseline else "the cleaned-up original"
    return Verdict(
        winner=fallback,
        baseline=baseline,
        trials=(baseline, *judged),
        reason=f"Nothing beat the original within max_drop {goal.max_drop:g}: {what} is published.",
    )


def shortcoming(measurement: Measurement, goal: Goal) -> str | None:
    """Why a measured candidate may not win; None where it may."""
    quality = measurement.quality
    if quality.ci95[1] > goal.max_drop:
        return (
            f"{quality.metric} may drop by up to {quality.ci95[1]:.4g} (seen {quality.drop:.4g} "
            f"on {quality.samples} samples), more than max_drop {goal.max_drop:g}"
        )
    speedup = measurement.speedup
    if goal.objective == "latency":
        if speedup.low <= goal.min_speedup:
            return f"{_gained(measurement)} does not lie above min_speedup {goal.min_speedup:g}"
        return None
    ratio, what = gain(measurement, goal), {"size": "size", "memory": "peak memory"}[goal.objective]
    if ratio <= goal.min_speedup:
        return f"{what} shrinks by {ratio:.3g} times, not above min_speedup {goal.min_speedup:g}"
    if speedup.low < _SLOWEST_FOR_BYTES:
        return f"{_gained(measurement)}: too slow to be worth a smaller {what}"
    return None


def gain(measurement: Measurement, goal: Goal) -> float:
    """The objective's ratio over the original, above 1 is better; for latency the interval's safe end."""
    return {
        "latency": measurement.speedup.low,
        "size": measurement.bytes_ratio,
        "memory": measurement.memory_ratio,
    }[goal.objective]


def rank(trial: Trial, goal: Goal) -> tuple[float, float, str]:
    """What decides among candidates that may win: the gain, then fewer bytes, then the recipe's id."""
    assert trial.measurement is not None  # noqa: S101  # only measured trials are ranked
    return (gain(trial.measurement, goal), trial.measurement.bytes_ratio, trial.recipe.id)


def _judged(trial: Trial, goal: Goal) -> Trial:
    if trial.measurement is None or trial.refused is not None:
        return trial
    return replace(trial, refused=shortcoming(trial.measurement, goal))


def _may_win(trial: Trial) -> bool:
    return trial.measurement is not None and trial.refused is None


def _is_safe(trial: Trial, goal: Goal, harmless: Collection[str]) -> bool:
    measurement = trial.measurement
    return (
        measurement is not None
        and trial.recipe.id in harmless
        and measurement.quality.ci95[1] <= goal.max_drop
        and measurement.speedup.high >= 1.0
        and measurement.speedup.value >= _SAME_SPEED
    )


def _praise(winner: Trial, goal: Goal) -> str:
    measurement = winner.measurement
    assert measurement is not None  # noqa: S101  # the winner was measured
    gained = {
        "latency": f"{_shown(measurement)} times faster" if measurement.measured else _fewer_bytes(measurement),
        "size": f"{measurement.bytes_ratio:.2f} times smaller",
        "memory": f"{measurement.memory_ratio:.2f} times less memory",
    }[goal.objective]
    quality = measurement.quality
    return (
        f"{winner.recipe.label}: {gained} than the original; {quality.metric} drops by {quality.drop:.4g}, "
        f"at most {quality.ci95[1]:.4g} (95 %), within max_drop {goal.max_drop:g}."
    )


def _gained(measurement: Measurement) -> str:
    if measurement.measured:
        return f"speedup {_shown(measurement)}"
    return f"the ratio of bytes moved by one inference, {measurement.speedup.value:.2f}, stands in for the speedup and"


def _fewer_bytes(measurement: Measurement) -> str:
    return f"{measurement.speedup.value:.2f} times fewer bytes moved by one inference, not timed,"


def _shown(measurement: Measurement) -> str:
    speedup = measurement.speedup
    return f"{speedup.value:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]"
