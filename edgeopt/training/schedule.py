"""The learning rate of every step, the search for its peak, and how many steps there are between two looks at the held-out samples.

Stands under ``training.loop``. Pure arithmetic: a training that is resumed asks for step 700 and gets what it would have got.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from edgeopt.errors import PassFailed

RATES = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
"""What ``learning_rate=auto`` tries."""
SCHEDULES = ("cosine", "linear", "constant")
WARMUP_SHARE = 0.05
"""Of the steps: Adam's second moments mean nothing yet, and a full first step undoes what was copied from the teacher."""
_LOOKS = 20
_FEWEST_LOOKS = 5
"""Early stopping and the best so far need some."""


def rate(step: int, *, steps: int, peak: float, schedule: str) -> float:
    """The learning rate of ``step`` (from 0) of ``steps``: a linear warm-up to ``peak``, then what ``schedule`` says.

    Positive at every step and never above ``peak``; ``cosine`` and ``linear`` fall towards zero. Raises
    :class:`~edgeopt.errors.PassFailed` for an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise PassFailed(f"{schedule!r} is no schedule", hint=f"Use one of {', '.join(SCHEDULES)}.")
    warmup = int(steps * WARMUP_SHARE)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    if schedule == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * done))
    return peak * (1.0 - done) if schedule == "linear" else peak


def found_rate(held: Callable[[float], float], *, nothing: float, runaway: float) -> float:
    """The one of :data:`RATES` with the lowest loss, if losses fall towards one rate and rise behind it; the lowest rate where none is below ``nothing``.

    ``held`` trains briefly with a rate and tells the held-out loss. From the middle upwards for as long as it falls, then, where that
    gained nothing, downwards: three to five probes of seven. A loss beyond ``runaway`` ends the way up, gain or none.
    """
    middle = len(RATES) // 2
    found, lowest = RATES[0], nothing
    for direction, end in ((RATES[middle:], runaway), (RATES[:middle][::-1], math.inf)):
        for peak in direction:
            loss = held(peak)
            if loss < lowest:
                found, lowest = peak, loss
            elif lowest < nothing or loss > end:
                break
        if found > RATES[middle]:
            break
    return found


def steps_between_looks(steps: int, *, held_out: int, batch: int) -> int:
    """So that a training is looked at about twenty times, but for all looks together no longer than for a third of what its steps take.

    A look is a forward pass over ``held_out`` samples. A step is a forward and a backward pass over ``batch``, three times as long for each sample, so its third
    pays for a look at as many.
    """
    affordable = math.ceil(held_out / batch)
    return max(1, min(max(steps // _LOOKS, affordable), steps // _FEWEST_LOOKS))
