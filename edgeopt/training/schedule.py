"""The learning rate of every step, and how many steps there are between two looks at the held-out samples.

Stands under ``training.loop``. Pure arithmetic: a training that is resumed asks for step 700 and gets what it would have got.
"""

from __future__ import annotations

import math

from edgeopt.errors import PassFailed

SCHEDULES = ("cosine", "linear", "constant")
WARMUP_SHARE = 0.05
"""Of the steps: Adam's second moments mean nothing yet, and a full first step undoes what was copied from the teacher."""
_LOOKS = 20


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


def steps_between_looks(steps: int) -> int:
    """So that a training is looked at about twenty times, whatever its length: early stopping and the best-so-far need that."""
    return max(1, steps // _LOOKS)
