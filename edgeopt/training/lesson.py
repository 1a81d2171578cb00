"""What is taught at every step: batches of inputs with the teacher's answers, and the held-out samples that judge.

Stands between ``training.inputs`` and ``training.teacher`` on the one side and ``training.loop`` on the other. Which inputs make the batch of
step 700 is a function of the seed and the number 700, so a resumed training sees what an uninterrupted one would have seen. A batch is cut into
parts where the device's memory, or a graph whose batch axis is fixed, forbids to compute it at once; the gradients are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.errors import PassFailed
from edgeopt.training import capacity, hints, losses
from edgeopt.training.course import Course
from edgeopt.training.inputs import Views, drawn, groups, held_out, resolved, stack
from edgeopt.training.shelf import Shelf
from edgeopt.training.teacher import Pool, Teacher

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor

    from edgeopt.protocols import Array
    from edgeopt.training.replay import Replay

_MOST_INPUT_BYTES = 4 << 30
_MOST_ANSWER_BYTES = 2 << 30
_MOST_BYTES_IN_MEMORY = 256 << 20
"""Of each, where there is no folder to keep them in."""


@dataclass(frozen=True, slots=True)
class Part:
    """Inputs that are computed at once, and the teacher's answers to them."""

    share: float
    """Of the batch."""
    feeds: dict[str, Tensor]
    answers: dict[str, Tensor]


class Lesson:
    """The batches of one distillation. Close it to remove what it keeps on disk."""

    def __init__(
        self, model: ir.Model, student: Replay, teacher: Teacher, course: Course, *, folder: Path | None
    ) -> None:
        self._stack = ExitStack()
        self._course = course
        self._teacher = teacher
        self._folder = folder
        self._samples = self._stack.enter_context(Shelf(_file(folder, "inputs")))
        numbers = self._take_samples()
        inputs = resolved(course.inputs, self._samples[0])
        chosen, judging = held_out(numbers)
        self._judging = judging
        self.also = hints.choose(model, student, teacher, self._samples[0], course)
        self._names = [*(str(output.name) for output in model.graph.outputs), *self.also]
        self._verdicts = self._stack.enter_context(Shelf(_file(folder, "answers")))
        for answer in teacher.answers((self._samples[index] for index in judging), self._names):
            self._verdicts.add(answer)
        answers = [self._verdicts[index] for index in range(len(judging))]
        self.terms = losses.terms(model, course.loss, answers, features=self.also)
        most, pools = self._affordable(len(chosen), answers)
        chosen = tuple(chosen[position] for position in _some(len(chosen), most, course.seed))
        self._views = Views(self._samples, chosen, kind=inputs, pools=pools, seed=course.seed)
        self.at_once = self._at_once(student)
        self._pools: dict[int, Pool] = {}
        self._epoch = -1
        self._batches: list[tuple[int, ...]] = []
        self.batches_in_epoch = len(self._plan(0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def digest(self) -> str:
        """A hash of the samples and of what the teacher says to those that judge."""
        return self._samples.digest() + self._verdicts.digest()

    def parts(self, step: int) -> Iterator[Part]:
        """The batch of ``step``."""
        epoch, number = divmod(step, self.batches_in_epoch)
        positions = self._plan(epoch)[number]
        pool = self._views.pool_of(epoch)
        for start in range(0, len(positions), self.at_once):
            some = positions[start : start + self.at_once]
            rows = [self._views.feeds(pool, position) for position in some]
            answers = [self._pool(pool, epoch).answer(position) for position in some]
            yield _part(rows, answers, len(some) / len(positions))

    @property
    def held_out(self) -> int:
        """How many samples judge."""
        return len(self._judging)

    def judging(self) -> Iterator[Part]:
        """The held-out samples; the shares sum to 1."""
        for group in groups(self._samples[index] for index in self._judging):
            for start in range(0, len(group), self.at_once):
                some = group[start : start + self.at_once]
                rows = [self._samples[self._judging[position]] for position in some]
                yield _part(rows, [self._verdicts[position] for position in some], len(some) / len(self._judging))

    def loss(self, outputs: Mapping[str, Tensor], answers: Mapping[str, Tensor], *, softened: bool) -> Tensor:
        """The loss of a part; ``softened`` by the course's temperature for training, plain for judging."""
        temperature = self._course.temperature if softened else 1.0
        return losses.loss_of(self.terms, outputs, answers, temperature=temperature)

    def _take_samples(self) -> tuple[int, ...]:
        """Keep as many samples as are wished and have room, drawn from all; their numbers."""
        evidence = self._teacher.evidence
        first = next(iter(evidence.samples()), None)
        if first is None:
            raise PassFailed("there are no calibration samples", hint="Drop calibration samples beside the model.")
        limit = _MOST_INPUT_BYTES if self._folder is not None else _MOST_BYTES_IN_MEMORY
        room = max(1, limit // max(1, _bytes(first)))
        wished = self._course.samples or evidence.sample_count
        wanted = frozenset(drawn(evidence.sample_count, min(wished, room), seed=self._course.seed))
        taken: list[int] = []
        used = 0
        for number, feeds in enumerate(evidence.samples()):
            if number not in wanted:
                continue
            used += _bytes(feeds)
            if used > limit and taken:
                break  # samples of very different sizes
            self._samples.add(feeds)
            taken.append(number)
        return tuple(taken)

    def _at_once(self, student: Replay) -> int:
        target, views = self._teacher.evidence.target, self._views
        room = capacity.room(student, views.largest(), target)
        pair = next((group[:2] for group in views.groups if len(group) > 1), None)
        if room == 1 or self._course.batch == 1 or pair is None:
            return 1
        one, other = (views.sample(position) for position in pair)
        return min(room, self._course.batch) if capacity.batchable(student, one, other) else 1

    def _affordable(self, count: int, answers: Sequence[Mapping[str, Array]]) -> tuple[int, int]:
        """(samples, pools) whose answers can be kept: fewer views first, then fewer samples."""
        each = max([1, *(sum(array.nbytes for array in answer.values()) for answer in answers)])
        rows = max(1, (_MOST_ANSWER_BYTES if self._folder is not None else _MOST_BYTES_IN_MEMORY) // each)
        samples = min(count, rows)
        return samples, max(1, min(self._course.pools, rows // samples))

    def _plan(self, epoch: int) -> list[tuple[int, ...]]:
        """The batches of an epoch: every position once, only equal shapes together, in random order."""
        if epoch != self._epoch:
            random = np.random.default_rng((self._course.seed, epoch, len(self._views)))
            batches: list[tuple[int, ...]] = []
            for group in self._views.groups:
                shuffled = [group[index] for index in random.permutation(len(group))]
                size = self._course.batch
                batches += [tuple(shuffled[start : start + size]) for start in range(0, len(group), size)]
            self._batches = [batches[index] for index in random.permutation(len(batches))]
            self._epoch = epoch
        return self._batches

    def _pool(self, pool: int, epoch: int) -> Pool:
        if pool not in self._pools:
            order = [position for batch in self._plan(epoch) for position in batch]
            file = _file(self._folder, f"pool-{pool}")
            views = self._views
            made = Pool(
                self._teacher, self._names, lambda position: views.feeds(pool, position), order=order, file=file
            )
            self._stack.callback(made.close)
            self._pools[pool] = made
        return self._pools[pool]


def _some(count: int, most: int, seed: int) -> list[int]:
    """``most`` of ``count`` positions, drawn by ``seed``, ascending."""
    return sorted(np.random.default_rng((seed, count)).permutation(count)[:most].tolist())


def _bytes(feeds: Mapping[str, Array]) -> int:
    return sum(array.nbytes for array in feeds.values())


def _part(rows: Sequence[Mapping[str, Array]], answers: Sequence[Mapping[str, Array]], share: float) -> Part:
    return Part(share, _tensors(stack(rows)), _tensors(stack(answers)))


def _tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}


def _file(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / f"{name}.rows"
