"""Which intermediate values a student is taught besides its outputs: those that the teacher has under the same name and in the same shape.

Asked by ``training.lesson`` where the loss is ``features``. A pruned student keeps its graph's names and loses channels, so what is left to
compare are the values between the groups that were cut; a foreign student has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgeopt.errors import PassFailed
from edgeopt.training.course import Course
from edgeopt.training.teacher import Teacher

if TYPE_CHECKING:
    from edgeopt.training.replay import Replay

_WORTH_MATCHING = frozenset(
    {"Add", "BatchNormalization", "Clip", "Concat", "Conv", "Gemm", "LayerNormalization", "MatMul", "MaxPool", "Relu"}
)
_MOST_BYTES = 256 << 10
"""Of one value for one sample: the teacher's are kept for all samples."""


def choose(
    model: ir.Model, student: Replay, teacher: Teacher, row: Mapping[str, NDArray[Any]], course: Course
) -> tuple[str, ...]:
    """At most ``course.features`` names, spread evenly over the depth; none unless the loss is ``features``.

    Raises :class:`~edgeopt.errors.PassFailed` where it is and nothing matches.
    """
    if course.loss != "features" or not course.features:
        return ()
    known = {str(value.name) for node in teacher.model.graph for value in node.outputs}
    outputs = {str(value.name) for value in model.graph.outputs}
    named = [str(node.outputs[0].name) for node in model.graph if node.op_type in _WORTH_MATCHING]
    names = [name for name in named if name in known and name not in outputs]
    matching = _matching(names, student, teacher, row) if names else []
    if not matching:
        raise PassFailed("student and teacher have no intermediate value in common", hint="Use loss=auto.")
    picked = np.unique(np.linspace(0, len(matching) - 1, min(course.features, len(matching))).round().astype(int))
    return tuple(matching[index] for index in picked)


def _matching(names: list[str], student: Replay, teacher: Teacher, row: Mapping[str, NDArray[Any]]) -> list[str]:
    theirs = next(teacher.answers([row], names))
    with torch.no_grad():
        ours = student({name: torch.from_numpy(np.array(array)) for name, array in row.items()}, also=names)
    return [
        name
        for name in names
        if ours[name].is_floating_point()
        and tuple(ours[name].shape) == theirs[name].shape
        and theirs[name].nbytes <= _MOST_BYTES
        and float(np.ptp(theirs[name])) > 0.0
    ]
