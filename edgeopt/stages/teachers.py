"""A model that the user dropped to learn from: the answers of the pair's teacher are what is right, the student is what is timed.

Stands beside ``reference`` and ``baseline``, and has a say only where the job file names a ``teacher``. The student as dropped stays the original in every other way:
speed, size and memory are held against it. Judged by its teacher it is some way off, so a candidate may be that far off too, and ``goal.max_drop`` further.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeopt.errors import BadData, CompileFailed
from edgeopt.protocols import Runtime, Samples
from edgeopt.records import Goal, Quality, Recipe, Signature, Target
from edgeopt.stages import reference
from edgeopt.stages.reference import Reference
from edgeopt.stages.runners import Runner


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
        return replace(reference.make(runner, samples, signature, ends, folder), taught=True)


def lenient(goal: Goal, student: Quality) -> Goal:
    """The goal with the student's own distance from its teacher allowed: what the original does not reach, no candidate must."""
    return replace(goal, max_drop=goal.max_drop + max(0.0, student.drop))
