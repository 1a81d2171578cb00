"""Pruning and distillation as the operator spelled them out: the wishes of a configuration or a job file as steps of recipes.

Stands under ``planner``. ``prune`` with a ``pattern`` is about single weights (``prune_weights``), without one about channels; a list names passes.
Sparse weights are dense arrays with zeros in them as long as another pass has to read them, and become a mask and what is left only at the end.
What is pruned and to be taught as well is also tried untaught: a training that gains nothing, or that the clock ends before it does, should not take the pruned model along.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from edgeopt.calibrate.importance import WITHOUT_SAMPLES
from edgeopt.policy import Techniques
from edgeopt.records import Scalar, Step

Steps = tuple[Step, ...]
_SPARSE = "prune_weights"
_STORED = ("bits", "form")
"""Settings that say how sparse weights lie in the file."""
_AGAIN = ("pattern", "skip", *_STORED)


def recipes(techniques: Techniques, last: Step, *, unpacks: bool = True) -> Iterator[Steps]:
    """What to try of what was asked for, alone and before ``last``, which reads plain weights; nothing for ``auto`` and ``off``.

    ``unpacks``: the target's runtime can put masked weights together.
    """
    pruned = _steps("prune_channels", techniques.prune)
    distilled = _steps("distill", techniques.distill)
    if not pruned and not distilled:
        return
    plain = tuple(_dense(before_distillation(step)) for step in pruned)
    untaught = tuple(map(_dense, pruned))
    if pruned:
        yield pruned if unpacks else untaught
    if distilled:
        yield (*plain, *distilled, *(map(_again, _sparse(pruned)) if unpacks else ()))
        yield (*plain, *distilled, last)
    if pruned:
        yield (*untaught, last)


def is_from_weights_alone(step: Step) -> bool:
    """Whether ``step`` prunes without a look at any sample: then it can be done without, but nothing says what it costs."""
    settings = dict(step.settings)
    if step.technique == _SPARSE:
        return settings.get("method") == "magnitude"
    chosen = settings.get("criterion") in WITHOUT_SAMPLES
    return step.technique == "prune_channels" and chosen and settings.get("refit", True) is False


def before_distillation(step: Step) -> Step:
    """``step`` as it is best with distillation behind it: what judges there must not have been fitted here."""
    if step.technique != "prune_channels" or not dict(step.settings).get("refit", True):
        return step
    return Step.of(step.technique, **{"apart": True, **dict(step.settings)})


def _steps(technique: str, wish: Any) -> Steps:
    """Settings of ``technique``, or names of passes; none for ``auto`` and ``off``."""
    if isinstance(wish, Mapping):
        return (Step.of(_SPARSE if "pattern" in wish else technique, **_scalars(wish)),)
    return () if isinstance(wish, str) else tuple(Step.of(name) for name in wish)


def _scalars(wish: Mapping[str, Any]) -> dict[str, Scalar]:
    return {
        name: value if isinstance(value, str | int | float | bool) else json.dumps(value, sort_keys=True)
        for name, value in wish.items()
    }


def _sparse(steps: Steps) -> Steps:
    """Those whose zeros are to be stored as a mask in the end."""
    return tuple(step for step in steps if step.technique == _SPARSE and dict(step.settings).get("form") != "dense")


def _dense(step: Step) -> Step:
    """``step`` with its zeros in place."""
    if step.technique != _SPARSE:
        return step
    settings = {name: value for name, value in step.settings if name not in _STORED}
    return Step.of(_SPARSE, form="dense", **settings)


def _again(step: Step) -> Step:
    """The same zeros found again, to be stored as ``step`` says."""
    return Step.of(_SPARSE, method="found", **{name: value for name, value in step.settings if name in _AGAIN})
