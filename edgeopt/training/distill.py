"""The pass ``distill``: the original teaches what compression left of it, on unlabelled calibration samples.

Runs after pruning (and its refit) and before quantization; docs/pruning.md says why in this order. In comes a float student and the evidence, which
holds the teacher; out goes the same graph with other weights. The student is replayed in torch, the teacher runs on the runtime. What comes out was
better than what came in on held-out calibration samples, or the pass fails and says by how much it missed.

Settings: see ``training.course``. This module needs no torch, so that the catalogue can list the pass and say what is missing.
"""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from edgeopt.calibrate.collect import fingerprint
from edgeopt.calibrate.real import has_real_samples
from edgeopt.errors import PassFailed
from edgeopt.layout import CHECKPOINTS_FOLDER
from edgeopt.protocols import Evidence, Settings
from edgeopt.records import Signature, Target
from edgeopt.training import course as courses
from edgeopt.training.course import Course

if TYPE_CHECKING:
    from edgeopt.protocols import Model

_SMALLEST_GAIN = 1e-3
"""Of the held-out loss: less is noise, and not worth the candidate's measuring."""
_NO_TORCH = "distillation needs torch, which is not installed: pip install 'edgeopt[train]'"


class Distill:
    """Float in, float out, closer to the teacher."""

    name = "distill"
    lossless = False
    needs_data = True

    def refuse(self, signature: Signature, target: Target) -> str | None:  # noqa: ARG002 - the protocol's; torch trains on any CPU
        """A quantized model, or a device without torch."""
        if signature.quantized:
            return "the model is quantized already"
        return None if find_spec("torch") is not None else _NO_TORCH

    def apply(self, model: Model, settings: Settings, evidence: Evidence) -> Model:
        """The trained student; raises :class:`~edgeopt.errors.PassFailed` where training does not bring it closer."""
        course = courses.read(settings, technique=self.name)
        if find_spec("torch") is None:
            raise PassFailed(_NO_TORCH, hint="Install torch, or leave distillation out.")
        if not has_real_samples(evidence):
            raise PassFailed("there are no real calibration samples", hint="Drop calibration samples beside the model.")
        return _taught(model, replace(course, seed=course.seed + evidence.seed), evidence)


def _taught(model: Model, course: Course, evidence: Evidence) -> Model:
    from edgeopt.training import loop
    from edgeopt.training.lesson import Lesson
    from edgeopt.training.mode import enter
    from edgeopt.training.replay import Replay, write_back
    from edgeopt.training.teacher import engage

    folder = None if evidence.folder is None else evidence.folder / "distill"
    kept = None if evidence.folder is None else evidence.folder / CHECKPOINTS_FOLDER
    with loop.steady(evidence.target.threads):
        student = Replay(model)
        mode = enter(model, student, course, evidence)
        with Lesson(model, student, engage(model, evidence), course, folder=folder) as lesson:
            watch = loop.Watch(
                deadline_s=_deadline_s(course, evidence),
                progress=evidence.progress,
                checkpoint=None if kept is None else kept / f"{_key(model, course, evidence, lesson.digest())}.npz",
                on_mode=mode.set,
            )
            outcome = loop.train(student, lesson, course, watch)
    standing = outcome.standing
    if standing.best >= standing.first * (1.0 - _SMALLEST_GAIN):
        raise PassFailed(
            f"distillation did not improve on the student: held-out loss {standing.first:.4g} -> {standing.best:.4g} "
            f"in {standing.step} steps{f', {standing.ended}' if standing.ended else ''}",
            hint="Give it more time or samples, another learning_rate, or leave it out.",
        )
    return write_back(model, {name: weight.numpy() for name, weight in outcome.weights.items()})


def _deadline_s(course: Course, evidence: Evidence) -> float | None:
    """The earlier of the job's deadline and the course's own, on the monotonic clock."""
    own = time.monotonic() + course.seconds if course.seconds else None
    given = [deadline for deadline in (own, evidence.deadline_s) if deadline is not None]
    return min(given, default=None)


def _key(model: Model, course: Course, evidence: Evidence, data: str) -> str:
    """Names the checkpoint: everything that the weights depend on."""
    import torch

    from edgeopt.training import checkpoint

    teacher = fingerprint(evidence.teacher) if evidence.teacher is not None else ""
    return checkpoint.key(
        fingerprint(model),
        teacher,
        repr(course),
        data,
        torch.__version__,
        evidence.target.arch,
        str(evidence.target.threads),
    )
