"""The training loop: descend the student's distance from its teacher, keep the best on held-out samples, end in time.

Stands between ``training.lesson`` (batches and the loss) and the pass ``distill``. In comes the replayed student, out go the best weights and how far
they came. Everything random is a function of the seed and the step; torch runs its deterministic kernels; so the same student, lesson and
course give the same weights, whether or not a checkpoint was resumed in between. Only a deadline makes the result depend on the clock.

The decoupled weight decay is that of I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019. Batch norms keep the statistics that the
student came with: those of a batch of sixteen would drown what distillation gains.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from edgeopt.errors import PassFailed
from edgeopt.training import checkpoint, interruption
from edgeopt.training.course import Course
from edgeopt.training.descent import Descent
from edgeopt.training.schedule import found_rate, rate, steps_between_looks

if TYPE_CHECKING:
    from edgeopt.training.lesson import Part

_PROBE_SHARE, _SHORTEST_PROBE, _LONGEST_PROBE = 40, 8, 25
"""Steps of one probe: a fortieth of the training, within bounds."""
_PROBES_TIME = 0.25
"""Of what is left until the deadline."""
_RUNAWAY, _RUNAWAY_LOOKS = 3.0, 5
"""A held-out loss so many times the first one, at so many looks in a row, comes from a rate that is too high."""
_NOTHING = 1e-6
"""A held-out loss below this is the rounding of two runtimes: there is nothing to learn."""
_SECONDS_BETWEEN_CHECKPOINTS = 60.0


class Student(Protocol):
    """What the loop needs of ``replay.Replay``."""

    @property
    def weights(self) -> Mapping[str, torch.nn.Parameter]:
        """The parameters by name."""

    def __call__(self, feeds: Mapping[str, Tensor], *, also: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """The outputs, and the values called ``also``, by name."""


class Teaching(Protocol):
    """What the loop needs of ``lesson.Lesson``."""

    also: tuple[str, ...]

    @property
    def held_out(self) -> int:
        """How many samples judge."""

    def parts(self, step: int) -> Iterator[Part]:
        """The batch of a step, in parts."""

    def judging(self) -> Iterator[Part]:
        """The held-out samples."""

    def loss(self, outputs: Mapping[str, Tensor], answers: Mapping[str, Tensor], *, softened: bool) -> Tensor:
        """The loss of a part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What goes on around a training."""

    deadline_s: float | None = None
    clock: Callable[[], float] = time.monotonic
    progress: Callable[[float, str], None] | None = None
    checkpoint: Path | None = None
    checkpoint_every_s: float = _SECONDS_BETWEEN_CHECKPOINTS
    on_mode: Callable[[bool], None] = lambda _training: None
    """Told before each use whether the student is trained (dropout on) or judged."""

    def is_over(self) -> bool:
        return self.deadline_s is not None and self.clock() >= self.deadline_s


@dataclass(slots=True)
class Standing:
    """How a training stands: what a checkpoint keeps besides the weights."""

    step: int = 0
    rate: float = 0.0
    first: float = math.inf
    best: float = math.inf
    best_step: int = 0
    looks_without_gain: int = 0
    looks_runaway: int = 0
    ended: str = ""
    """Why it ended before its last step."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The best weights by name (the student holds them as well), and how the training went."""

    weights: dict[str, Tensor]
    standing: Standing


def train(student: Student, lesson: Teaching, course: Course, watch: Watch) -> Outcome:
    """Train ``student`` in place and leave it with its best weights.

    Raises :class:`~edgeopt.errors.PassFailed` where the loss diverges before anything was gained.
    """
    run = _Run(student, lesson, course, watch)
    if not run.resume():
        run.begin()
    run.go_on()
    return run.finish()


@contextmanager
def steady(threads: int) -> Iterator[None]:
    """Deterministic kernels on ``threads`` threads, and the process's random state as it was afterwards."""
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # costs a write of every new tensor
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        settings.fill_uninitialized_memory = fills


class _Diverged(ArithmeticError):
    """The loss is not finite, or ran away."""


class _Run:
    """One training."""

    def __init__(self, student: Student, lesson: Teaching, course: Course, watch: Watch) -> None:
        self._student, self._lesson, self._course, self._watch = student, lesson, course, watch
        self._descent = Descent(student.weights, course)
        self._best = self._descent.copied()
        self._standing = Standing()
        self._saved_s = watch.clock()
        self._look_every = steps_between_looks(course.steps, held_out=lesson.held_out, batch=course.batch)

    def begin(self) -> None:
        first = self._judged()
        if not math.isfinite(first):
            raise PassFailed(
                "the student's outputs are not finite before any training",
                hint="Leave distillation out for this student.",
            )
        self._standing = Standing(first=first, best=first, rate=self._course.learning_rate)
        if first < _NOTHING:
            self._standing.ended = "it does what its teacher does"
        elif not self._standing.rate:
            self._standing.rate = self._found_rate()

    def resume(self) -> bool:
        file = self._watch.checkpoint
        state = checkpoint.load(file) if file is not None else None
        if state is None:
            return False
        self._standing = Standing(**state.facts)
        self._best = {name: torch.from_numpy(array) for name, array in state.arrays.pop("best").items()}
        self._descent.restore(state.arrays, steps=self._standing.step)
        return True

    def go_on(self) -> None:
        standing = self._standing
        with interruption.deferred() as is_told_to_end:
            while standing.step < self._course.steps and not standing.ended and not is_told_to_end():
                if self._watch.is_over():
                    standing.ended = "the time was over"
                    break
                try:
                    self._advance()
                except _Diverged as reason:
                    self._give_up(str(reason))
                self._keep(at_once=is_told_to_end())

    def _advance(self) -> None:
        standing, steps = self._standing, self._course.steps
        now = rate(standing.step, steps=steps, peak=standing.rate, schedule=self._course.schedule)
        self._step(standing.step, now)
        standing.step += 1
        if standing.step % self._look_every == 0 or standing.step == steps:
            self._look()

    def _give_up(self, reason: str) -> None:
        """A loss that diverged ends the training; what was gained before is kept, and without a gain there is nothing."""
        if self._standing.best >= self._standing.first:
            raise PassFailed(reason, hint="Lower learning_rate.")
        self._standing.ended = reason

    def finish(self) -> Outcome:
        self._descent.place(self._best)
        if self._watch.checkpoint is not None:
            self._watch.checkpoint.unlink(missing_ok=True)
        return Outcome(self._best, self._standing)

    def _step(self, step: int, learning_rate: float) -> None:
        # dropout draws from torch's own generator: seeded for each step, a resumed training draws the same.
        # torch looks at 32 bits of a seed only, so both numbers are mixed into those
        torch.manual_seed(int(np.random.SeedSequence((self._course.seed, step)).generate_state(1)[0]))
        self._watch.on_mode(True)
        total = 0.0
        for part in self._lesson.parts(step):
            loss = self._loss(part, softened=True) * part.share
            loss.backward()  # type: ignore[no-untyped-call]  # torch's is not annotated
            total += float(loss.detach())
        if not math.isfinite(total):
            raise _Diverged(f"the loss is {total} at step {step} with a learning rate of {learning_rate:g}")
        self._descent.step(learning_rate)

    def _look(self) -> None:
        standing = self._standing
        with self._descent.averaged():
            held = self._judged()
            if held < standing.best:
                standing.best, standing.best_step, standing.looks_without_gain = held, standing.step, 0
                self._best = self._descent.copied()
            else:
                standing.looks_without_gain += 1
        standing.looks_runaway = 0 if held <= _RUNAWAY * standing.first else standing.looks_runaway + 1
        if standing.looks_runaway >= _RUNAWAY_LOOKS:
            raise _Diverged(
                f"the held-out loss went from {standing.first:.4g} to {held:.4g} by step {standing.step} "
                f"with a learning rate of {standing.rate:g}"
            )
        if standing.looks_without_gain >= self._course.patience:
            standing.ended = f"no gain in {self._course.patience} looks"
        if self._watch.progress is not None:
            words = f"step {standing.step}/{self._course.steps}, loss {standing.first:.4g} -> {standing.best:.4g}"
            self._watch.progress(standing.step / self._course.steps, words)

    def _loss(self, part: Part, *, softened: bool) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=softened and self._course.precision == "bfloat16"):
            outputs = self._student(part.feeds, also=self._lesson.also)
        return self._lesson.loss(outputs, part.answers, softened=softened)

    def _judged(self) -> float:
        self._watch.on_mode(False)
        with torch.no_grad():
            held = sum(float(self._loss(part, softened=False)) * part.share for part in self._lesson.judging())
        # rounding takes a divergence a little below zero, and a share of that is no gain; a NaN stays one
        return max(held, 0.0)

    def _found_rate(self) -> float:
        """The rate whose short probe ends with the lowest held-out loss; a share of the time is for that."""
        steps = max(_SHORTEST_PROBE, min(_LONGEST_PROBE, self._course.steps // _PROBE_SHARE))
        now, deadline = self._watch.clock(), self._watch.deadline_s
        probes_end = math.inf if deadline is None else now + (deadline - now) * _PROBES_TIME

        def held(peak: float) -> float:
            return self._probed(peak, steps) if self._watch.clock() < probes_end else math.inf

        first = self._standing.first
        return found_rate(held, nothing=first, runaway=_RUNAWAY * first)

    def _probed(self, peak: float, steps: int) -> float:
        try:
            for step in range(steps):
                self._step(step, rate(step, steps=steps, peak=peak, schedule="linear"))
            held = self._judged()
        except _Diverged:
            held = math.inf
        self._descent.place(self._best)
        self._descent = Descent(self._student.weights, self._course)  # it measures the weights that it starts from
        return held if math.isfinite(held) else math.inf

    def _keep(self, *, at_once: bool) -> None:
        now, file = self._watch.clock(), self._watch.checkpoint
        is_due = now - self._saved_s >= self._watch.checkpoint_every_s and not self._standing.ended
        if file is None or not (is_due or at_once):
            return
        facts = {name: getattr(self._standing, name) for name in Standing.__slots__}
        arrays = {"best": checkpoint.held(self._best), **self._descent.kept()}
        checkpoint.save(file, checkpoint.State(facts=facts, arrays=arrays))
        self._saved_s = now
