"""How many samples go through the replayed student at once: what the graph allows and what the device's memory holds.

Asked by ``training.lesson``. Exporters fix the batch to 1 in places that shape inference does not show (a Reshape to [1, -1]), so a graph is asked by
trying: two samples together must give what each gives alone. Memory is measured, not guessed: every value of one forward pass is weighed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.errors import PassFailed
from edgeopt.records import Target
from edgeopt.training.inputs import stack

if TYPE_CHECKING:
    from torch import Tensor

    from edgeopt.training.replay import Replay

MEMORY_SHARE = 0.5
"""Of the device: the rest is the runtime's, the teacher's and the daemon's."""
_COPIES_OF_VALUES = 2
"""A value and its gradient."""
_COPIES_OF_WEIGHTS = 6
"""The weight, its gradient, two moments, the running mean and the best so far."""
_TOLERANCE = 1e-3


def room(student: Replay, largest: Mapping[str, NDArray[Any]], target: Target) -> int:
    """How many samples of the size of ``largest`` fit into memory for one forward and backward pass.

    Raises :class:`~edgeopt.errors.PassFailed` where not even one does.
    """
    weights = sum(weight.nbytes for weight in student.weights.values()) * _COPIES_OF_WEIGHTS
    each = max(1, _value_bytes(student, largest) * _COPIES_OF_VALUES)
    free = int(target.memory_bytes * MEMORY_SHARE) - weights
    if free < each:
        raise PassFailed(
            f"training needs {(weights + each) >> 20} MiB for one sample, half of the device's memory is "
            f"{int(target.memory_bytes * MEMORY_SHARE) >> 20} MiB",
            hint="Leave distillation out, or give smaller calibration samples.",
        )
    return free // each


def batchable(student: Replay, one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]) -> bool:
    """Whether two samples, joined along the first axis, give what they give alone, joined in the same way."""
    with torch.no_grad():
        alone = [student(_tensors(row)) for row in (one, other)]
        try:
            together = student(_tensors(stack([one, other])))
        except (RuntimeError, ValueError, IndexError, PassFailed):
            return False  # torch's and the replay's ways to say that a shape does not fit
    return all(_is_join(values, [row[name] for row in alone]) for name, values in together.items())


def _is_join(together: Tensor, alone: Sequence[Tensor]) -> bool:
    if together.ndim == 0 or any(value.ndim == 0 for value in alone):
        return False
    joined = torch.cat(list(alone))
    if joined.shape != together.shape:
        return False
    if not joined.is_floating_point():
        return bool(torch.equal(joined, together))
    limit = _TOLERANCE * max(float(joined.abs().max()) if joined.numel() else 0.0, 1e-6)
    return bool((joined - together).abs().max() <= limit) if joined.numel() else True


def _value_bytes(student: Replay, row: Mapping[str, NDArray[Any]]) -> int:
    """Bytes of all values of one forward pass."""
    total = 0

    def weigh(_name: str, value: Tensor) -> Tensor:
        nonlocal total
        total += value.nbytes
        return value

    before, student.value_transform = student.value_transform, weigh
    try:
        with torch.no_grad():
            student(_tensors(row))
    finally:
        student.value_transform = before
    return total


def _tensors(row: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in row.items()}
