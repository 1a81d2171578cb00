"""How a candidate is made: units removed, readers refitted, and the student taught, each step from what the one before left on disk.

``METHODS`` is the seam for another way to prune or to recover: a name, and what makes a model of a question. Criteria called ``torch-pruning ...`` choose their units in the peer's own environment
(``pruning.peer``); from then on everything is the same for all, so that only the choice is compared.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from edgeopt.calibrate.consumers import losing, with_biases
from edgeopt.calibrate.reconstruct import refit
from edgeopt.calibrate.shapes import observed_shapes
from edgeopt.graph import groups, shrink
from edgeopt.passes import FoldBatchNorm, PruneChannels, Tidy
from edgeopt.training.distill import Distill

from . import peer
from .questions import Question, Subject


@dataclass(kw_only=True)
class Made:
    """A candidate, and what there is to say about how it came about."""

    model: ir.Model
    seconds: float = 0.0
    """CPU seconds of this step alone."""
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How the students are taught."""

    batch: int = 8
    learning_rate: float = 0.0
    """0: searched, for every student anew."""
    inputs: str = "mixed"
    threads: int = 1


def removed(question: Question, subject: Subject, _lesson: Lesson) -> Made:
    """The units are gone, and nothing makes good for them."""
    return _pruned(question, subject, is_refitted=False)


def refitted(question: Question, subject: Subject, _lesson: Lesson) -> Made:
    """The readers' weights by least squares."""
    return _pruned(question, subject, is_refitted=True)


def distilled(question: Question, subject: Subject, lesson: Lesson) -> Made:
    """The original teaches what the refit left."""
    return _taught("refitted", question, subject, lesson)


def refitted_apart(question: Question, subject: Subject, _lesson: Lesson) -> Made:
    """The readers' weights by least squares on the samples that teaching trains on: those that judge the teaching are new to the student."""
    return _pruned(question, replace(subject, evidence=subject.training_evidence()), is_refitted=True)


def distilled_apart(question: Question, subject: Subject, lesson: Lesson) -> Made:
    """The original teaches what that refit left, so that its gain is judged on samples that nothing was fitted to."""
    return _taught("refitted apart", question, subject, lesson)


def distilled_alone(question: Question, subject: Subject, lesson: Lesson) -> Made:
    """The original teaches what the removal left: no least squares."""
    return _taught("removed", question, subject, lesson)


METHODS: dict[str, Callable[[Question, Subject, Lesson], Made]] = {
    "removed": removed,
    "refitted": refitted,
    "distilled": distilled,
    "refitted apart": refitted_apart,
    "distilled apart": distilled_apart,
    "distilled alone": distilled_alone,
}
CHEAP = ("removed", "refitted")
TAUGHT = ("distilled", "distilled apart", "distilled alone")


def make(question: Question, subject: Subject, lesson: Lesson) -> Made:
    """Make the candidate and leave it at ``subject.made(question)``; :class:`~edgeopt.errors.PassFailed` where it cannot be made."""
    began = time.process_time()
    made = METHODS[question.method](question, subject, lesson)
    made.seconds = time.process_time() - began
    ir.save(made.model, subject.made(question))
    return made


# ---------------------------------------------------------------- pruning
def _pruned(question: Question, subject: Subject, *, is_refitted: bool) -> Made:
    if question.criterion in peer.CRITERIA:
        return _pruned_by_peer(question, subject, is_refitted=is_refitted)
    settings = {"criterion": question.criterion, "ratio": question.ratio, "families": question.families}
    if question.criterion == "random":
        settings["seed"] = 1
    settings |= {"refit": is_refitted, "largest": question.largest, "scope": question.scope}
    if question.criterion != "batch_norm":
        return Made(model=PruneChannels().apply(subject.corpus.clean, settings, subject.evidence))
    # it reads the scales that clean-up folds away, so here alone the order is turned round
    made = PruneChannels().apply(subject.corpus.original, settings, subject.evidence)
    for step in (Tidy(), FoldBatchNorm()):
        made = step.apply(made, {}, subject.evidence)
    return Made(model=made)


def _pruned_by_peer(question: Question, subject: Subject, *, is_refitted: bool) -> Made:
    own, found = subject.parts
    chosen, notes = peer.choose(question, subject)
    if not is_refitted:
        return Made(model=shrink.shrink(own, found, chosen), notes=notes)
    biased = with_biases(own, losing(found, chosen))
    found = groups.find(biased, observed_shapes(biased, subject.evidence))
    again, _ = refit(biased, found, chosen, subject.evidence)
    return Made(model=shrink.shrink(again, found, chosen), notes=notes)


# ---------------------------------------------------------------- teaching
_PROGRESS = re.compile(r"step (\d+)/\d+, loss (\S+) -> (\S+)")


def _taught(start: str, question: Question, subject: Subject, lesson: Lesson) -> Made:
    """The course of ``question.steps`` steps; notes hold the best loss so far on held-out calibration samples at each look."""
    student = subject.made(replace(question, method=start, steps=0))
    if not student.exists():
        make(replace(question, method=start, steps=0), subject, lesson)
    looks: list[tuple[int, float]] = []

    def look(_share: float, words: str) -> None:
        if told := _PROGRESS.search(words):
            looks[:] = [*(looks or [(0, float(told[2]))]), (int(told[1]), float(told[3]))]

    evidence = subject.evidence
    evidence.progress, evidence.target = look, replace(evidence.target, threads=lesson.threads)
    settings = {
        "steps": question.steps,
        "batch": lesson.batch,
        "learning_rate": lesson.learning_rate,
        "inputs": lesson.inputs,
        "patience": 20,
    }
    before = time.monotonic()
    try:
        model = Distill().apply(ir.load(student), settings, evidence)
    finally:
        shutil.rmtree(subject.folder / "distill", ignore_errors=True)
    notes = {"held_out": looks, "settings": settings, "wall_seconds": time.monotonic() - before}
    return Made(model=model, notes=notes)
