"""Variants that run the same kernels differ in what they get wrong, not in speed: only the best of them is timed.

Stands between ``search`` and ``attempt``. The contest is held on calibration samples (``rehearsal``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from edgeopt.errors import CandidateError
from edgeopt.records import Quality, Recipe
from edgeopt.stages.rehearsal import Rehearsal

SAME_KERNELS = frozenset({"method", "bias_correction", "reduced_range"})
"""Settings that change numbers in the model, not the operators that run."""


def families(recipes: Iterable[Recipe]) -> list[list[Recipe]]:
    """Recipes that differ only in :data:`SAME_KERNELS`, together; in the order of their first members."""
    found: dict[tuple[object, ...], list[Recipe]] = {}
    for recipe in recipes:
        found.setdefault(_kernels(recipe), []).append(recipe)
    return list(found.values())


def losers(
    family: Sequence[Recipe], rehearsal: Rehearsal, *, is_over: Callable[[], bool] = lambda: False
) -> dict[Recipe, str]:
    """All of ``family`` but the least wrong one, each with what it did worse; a tie goes to the earlier one.

    Once ``is_over`` says so nobody else is rehearsed, but the first one always is.
    """
    seen: dict[Recipe, Quality] = {}
    reasons: dict[Recipe, str] = {}
    for recipe in family:
        if seen and is_over():
            reasons[recipe] = "not rehearsed: the time for it was used up by variants with the same kernels"
            continue
        try:
            seen[recipe] = rehearsal.quality(recipe)
        except CandidateError as error:
            reasons[recipe] = error.refusal
    if not seen:
        last = family[-1]  # attempted for good, so that the job tells the reason as a candidate's own
        return {recipe: reason for recipe, reason in reasons.items() if recipe != last}
    best = min(seen, key=lambda recipe: (_noise(seen[recipe]), seen[recipe].drop))
    for recipe, quality in seen.items():
        if recipe != best:
            reasons[recipe] = _comparison(quality, seen[best], best)
    return reasons


def _noise(quality: Quality) -> float:
    """Noise-to-signal power at the worst output: it tells variants apart long before the first class flips."""
    return max((value for name, value in quality.details if name.startswith("nsr")), default=quality.drop)


def _comparison(quality: Quality, better: Quality, best: Recipe) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in best.steps[-1].settings if name in SAME_KERNELS)
    return (
        f"not timed: nsr {_noise(quality):.3g} on {quality.samples} calibration samples, "
        f"{_noise(better):.3g} with {settings} and the same kernels"
    )


def _kernels(recipe: Recipe) -> tuple[object, ...]:
    return tuple(
        (step.technique, tuple(pair for pair in step.settings if pair[0] not in SAME_KERNELS)) for step in recipe.steps
    )
