"""A model that the user dropped to learn from: the answers of the pair's teacher are what is right, the student is what is timed.

Stands beside ``planner``, ``reference`` and ``baseline``, and has a say only where the job file names a ``teacher``. The student as dropped stays the original in every
other way: speed, size and memory are held against it. Judged by its teacher it is some way off; a candidate wins by being surely no further off, and by
not being slower. So a taught student wins at the student's own speed, and one that is quantized as well wins by its speed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeopt.errors import BadData, CompileFailed
from edgeopt.policy import Goal, Policy
from edgeopt.protocols import Runtime, Samples
from edgeopt.records import Quality, Recipe, Signature, Step, Target
from edgeopt.stages import reference
from edgeopt.stages.reference import Reference
from edgeopt.stages.runners import Runner

_AS_FAST = 0.95
"""The speedup that counts as no slower: the interval of equal models reaches a few percent below 1."""
_TRAINING_SHARE = 0.5
"""Of the budget; the other half is for what is made of the taught student."""
_BEFORE = frozenset({"tidy", "cast_fp32", "fold_batch_norm", "prune_channels"})


def answers(
    teacher: Path,
    samples: Samples,
    *,
    runtime: Runtime,
    target: Target,
    made_for: tuple[Signature, dict[str, tuple[str, ...]], Path],
) -> Reference:
    """The teacher's outputs on the eval samples, in the order of the student's.

    ``made_for`` is the student's signature, its ends (``endings.final_operators``) and the folder to keep the answers in. Raises :class:`~edgeopt.errors.BadData` where
    the teacher does not open or run here.
    """
    signature, ends, folder = made_for
    try:
        artifact = runtime.compile(teacher, Recipe(), target)
    except CompileFailed as error:
        raise BadData(f"the teacher does not open: {error.message}", hint=error.hint) from error
    with Runner(artifact) as runner:
        return replace(reference.make(runner, samples, signature, ends, folder), taught=True, own=False)


def lenient(goal: Goal, student: Quality) -> Goal:
    """The goal of a taught job: no further from the teacher than the student as dropped (or than ``max_drop``), and no slower."""
    return replace(goal, max_drop=max(goal.max_drop, student.drop), min_speedup=min(goal.min_speedup, _AS_FAST))


def taught(recipes: tuple[Recipe, ...], policy: Policy) -> tuple[Recipe, ...]:
    """The planned recipes with the student taught: behind clean-up and pruning, before anything that takes precision away.

    The plain clean-up stays in front, as what is published where nothing wins. Training may use half of the budget, unless the operator spelled its
    settings out; the recipes share it.
    """
    if policy.techniques.distill == "off":
        return recipes
    spelled_out = [step for recipe in recipes for step in recipe.steps if step.technique == "distill"]
    step = spelled_out[0] if spelled_out else Step.of("distill", seconds=policy.search.budget_s * _TRAINING_SHARE)
    made = [recipes[0]] if recipes else []
    for recipe in recipes:
        kept = [each for each in recipe.steps if each.technique != "distill"]
        split = next((index for index, each in enumerate(kept) if each.technique not in _BEFORE), len(kept))
        made.append(Recipe(steps=(*kept[:split], step, *kept[split:])))
    return tuple(dict.fromkeys(made))[: policy.search.trials]
