"""The teacher's answers: run by the runtime, in float, and never twice for the same input.

Stands between ``training.inputs`` (what is asked) and ``training.lesson`` (which pairs question and answer). The teacher is the model as
dropped, or one that the job file names; its inputs and outputs are the student's by name, else by position. A pool's answers come
lazily, in the order in which the training first wants them, so that a short budget pays for no more than it uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.errors import PassFailed
from edgeopt.graph import edit
from edgeopt.training.shelf import Shelf

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeopt.protocols import Array, Evidence, Feeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A model to ask, in the student's words."""

    model: ir.Model
    evidence: Evidence
    inputs: Mapping[str, str]
    """The student's name of each input to the teacher's."""
    outputs: Mapping[str, str]

    def answers(self, questions: Iterable[Feeds], names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """The values that the student calls ``names``, for each question; intermediate values keep their own name."""
        theirs = {name: self.outputs.get(name, name) for name in names}
        asked = (
            {self.inputs[name]: array for name, array in feeds.items() if name in self.inputs} for feeds in questions
        )
        for seen in self.evidence.run(self.model, asked, list(theirs.values())):
            yield {name: seen[their] for name, their in theirs.items()}


def engage(student: ir.Model, evidence: Evidence) -> Teacher:
    """The evidence's teacher for ``student``; :class:`~edgeopt.errors.PassFailed` where there is none or it does not fit."""
    model = evidence.teacher
    if model is None:
        raise PassFailed("there is no teacher to learn from", hint="Leave distillation out.")
    ours, theirs = edit.required_inputs(student), edit.required_inputs(model)
    return Teacher(
        model=model,
        evidence=evidence,
        inputs=_matched([str(value.name) for value in ours], [str(value.name) for value in theirs], "inputs"),
        outputs=_matched(
            [str(value.name) for value in student.graph.outputs],
            [str(value.name) for value in model.graph.outputs],
            "outputs",
        ),
    )


def _matched(ours: Sequence[str], theirs: Sequence[str], what: str) -> dict[str, str]:
    """By name where all are known; by position where the numbers are equal."""
    if set(theirs) == set(ours):
        return {name: name for name in ours}
    if len(ours) == len(theirs):
        return dict(zip(ours, theirs, strict=True))
    raise PassFailed(
        f"the teacher has the {what} {list(theirs)}, the student {list(ours)}",
        hint=f"Give a teacher with the student's {what}.",
    )


class Pool:
    """The teacher's answers to one pool of inputs, asked when first wanted and then kept."""

    def __init__(
        self,
        teacher: Teacher,
        names: Sequence[str],
        question: Callable[[int], Feeds],
        *,
        order: Sequence[int],
        file: Path | None,
    ) -> None:
        self._answers = Shelf(file)
        self._places = {position: place for place, position in enumerate(order)}
        self._coming = teacher.answers((question(position) for position in order), names)

    def answer(self, position: int) -> dict[str, Array]:
        """What the teacher says to the input at ``position``."""
        place = self._places[position]
        while len(self._answers) <= place:
            self._answers.add(next(self._coming))
        return dict(self._answers[place])

    def close(self) -> None:
        """Forget the answers and let the teacher go."""
        self._answers.close()
