"""How few bits a weight: bisected for objective size, judged on calibration samples.

Runs after the planned recipes were tried. Palettes with error compensation and bits given out by measured damage (``quantize_weights`` with
``mean_bits``) lose more with every bit that goes, so the fewest bits that rehearse right are found by bisection; only that recipe is
attempted like any other, on the eval samples, and the next more careful ones where it misses there. Anytime: ending early costs nothing but
the last step's bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

from edgeopt.errors import CandidateError
from edgeopt.records import Recipe, Step, Trial
from edgeopt.stages.attempt import Workbench
from edgeopt.stages.events import staged
from edgeopt.stages.rehearsal import Rehearsal

TECHNIQUE = "quantize_weights"
MEANS = (2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75, 4.0, 4.25, 4.5, 4.75, 5.0, 5.5)
"""Bits a weight on average; 6 even ones and 8 are planned recipes."""
_COARSE = 3.5
"""From here on no weight gets fewer than three bits: two lose more than the others can buy."""
_FIRST = 4.5
"""Where the bisection begins: the middle of what was right on the corpus."""
_MARGIN = 0.8
"""The calibration samples must be served better than the budget, for the eval samples will be a little worse."""
_RETRIES = 2


def refusal(bench: Workbench) -> str | None:
    """Why no bits are searched for here, in one sentence; None where they are."""
    if bench.goal.objective != "size":
        return "fewer bits a weight save bytes of the file only"
    if bench.target.name.startswith("tensorrt"):
        return "TensorRT unpacks integers only"
    if bench.evidence.synthetic or not bench.evidence.sample_count:
        return "no real samples were given, and without them the bits of each weight cannot be chosen"
    return bench.passes[TECHNIQUE].refuse(bench.signature, bench.target)


def recipe(clean_up: tuple[Step, ...], mean_bits: float) -> Recipe:
    """The recipe with so many bits a weight."""
    step = partial(Step.of, TECHNIQUE, levels="palette", compensation="gptq", mean_bits=mean_bits)
    return Recipe(steps=(*clean_up, step(bits=3 if mean_bits >= _COARSE else 2)))


def search(
    clean_up: tuple[Step, ...],
    rehearsal: Rehearsal,
    attempt_one: Callable[[Recipe], Trial],
    refuse: Callable[[Recipe, str], Trial],
    *,
    deadline_s: float,
) -> Iterator[Trial]:
    """Trials behind the steps of ``clean_up``, the fewest bits that rehearse right first; or one refused by ``refuse``."""
    goal = rehearsal.bench.goal
    with staged("rehearse", rehearsal.bench.emit):
        place, reason = _fewest(clean_up, rehearsal, deadline_s)
    if place is None:
        yield refuse(recipe(clean_up, MEANS[-1]), reason)
        return
    for mean_bits in MEANS[place : place + 1 + _RETRIES]:
        trial = attempt_one(recipe(clean_up, mean_bits))
        yield trial
        is_right = trial.measurement is not None and trial.measurement.quality.ci95[1] <= goal.max_drop
        if is_right or time.monotonic() > deadline_s:
            return


def _fewest(clean_up: tuple[Step, ...], rehearsal: Rehearsal, deadline_s: float) -> tuple[int | None, str]:
    """The place in :data:`MEANS` of the fewest bits that are right; None and what the most careful ones did where none are."""
    low, high, reason = -1, len(MEANS), "not timed: the budget ended"
    middle = MEANS.index(_FIRST)
    while high - low > 1 and time.monotonic() < deadline_s:
        shortcoming = _shortcoming(recipe(clean_up, MEANS[middle]), rehearsal)
        if shortcoming is None:
            high = middle
        else:
            low, reason = middle, shortcoming
        middle = (low + high) // 2
    return (high if high < len(MEANS) else None), reason


def _shortcoming(wanted: Recipe, rehearsal: Rehearsal) -> str | None:
    try:
        found = rehearsal.quality(wanted)
    except CandidateError as error:
        return error.refusal
    if found.ci95[1] <= _MARGIN * rehearsal.bench.goal.max_drop:
        return None
    return f"not timed: {found.metric} may drop by up to {found.ci95[1]:.3g} on {found.samples} calibration samples"
