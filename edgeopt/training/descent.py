"""One step downhill: the optimizer, what regularizes it, the running mean of the weights, and all of it as plain arrays.

Stands under ``training.loop``, which says when. Adam moves every element by about the learning rate, whatever its size: where folded batch norms left tensors a thousand times smaller than
others, one rate for all ruins the small ones before the large ones have moved. Rates that are a share of each tensor's root mean square (N. Shazeer and M. Stern, "Adafactor: Adaptive Learning
Rates with Sublinear Memory Cost", ICML 2018, arXiv:1804.04235, section 8) save the small ones and drive the large ones too far; the square root of that share does neither
(docs/techniques/distillation.md has the numbers). Biases and scales are not decayed: there is no redundancy in them to take out. Weights that an earlier pass made sparse keep their zeros:
gradients and values are masked, so that a sparse student stays as sparse as it came.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from edgeopt.training import checkpoint
from edgeopt.training.course import Course

if TYPE_CHECKING:
    from torch import Tensor

_SPARSE_FROM = 0.1
"""The share of exact zeros from which a weight counts as sparse."""
_MOMENTUM = 0.9
_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")


class Descent:
    """The optimizer of one training; it holds no weights of its own but the running mean."""

    def __init__(self, weights: Mapping[str, torch.nn.Parameter], course: Course) -> None:
        self._weights = dict(weights)
        self._course = course
        self._scales = [1.0] * len(weights) if course.optimizer == "sgd" else _scales(list(weights.values()))
        parts = [
            {"params": [weight], "weight_decay": course.weight_decay / scale if weight.ndim > 1 else 0.0}
            for weight, scale in zip(weights.values(), self._scales, strict=True)
        ]
        self._optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(parts, lr=1.0, momentum=_MOMENTUM)
            if course.optimizer == "sgd"
            else torch.optim.AdamW(parts, lr=1.0)
        )
        self._average = self.copied() if course.ema else {}
        self._steps = 0
        self._masks = {
            name: weight.detach() != 0 for name, weight in weights.items() if course.keep_zeros and _is_sparse(weight)
        }

    def step(self, learning_rate: float) -> None:
        """Apply the gradients that were gathered, and clear them; with ``adamw``, ``learning_rate`` is that of a tensor of middling size."""
        self._regularize()
        if self._course.clip:
            torch.nn.utils.clip_grad_norm_(self._weights.values(), self._course.clip)
        for group, scale in zip(self._optimizer.param_groups, self._scales, strict=True):
            group["lr"] = learning_rate * scale
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._steps += 1
        with torch.no_grad():
            for name, mask in self._masks.items():
                self._weights[name].mul_(mask)
            self._follow()

    def copied(self) -> dict[str, Tensor]:
        """The weights as they are now."""
        return {name: weight.detach().clone() for name, weight in self._weights.items()}

    def place(self, weights: Mapping[str, Tensor]) -> None:
        """Give the student these weights."""
        with torch.no_grad():
            for name, weight in weights.items():
                self._weights[name].copy_(weight)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The student with the running mean of its weights, where there is one."""
        if not self._average:
            yield
            return
        own = self.copied()
        self.place(self._average)
        try:
            yield
        finally:
            self.place(own)

    def kept(self) -> dict[str, dict[str, NDArray[Any]]]:
        """All that is needed to go on: weights, running mean, moments."""
        arrays = {"weights": checkpoint.held(self._weights), "average": checkpoint.held(self._average)}
        for moment in _MOMENTS:
            states = {name: self._optimizer.state[weight].get(moment) for name, weight in self._weights.items()}
            arrays[moment] = checkpoint.held({name: state for name, state in states.items() if state is not None})
        return arrays

    def restore(self, arrays: Mapping[str, Mapping[str, NDArray[Any]]], *, steps: int) -> None:
        """Go on from what :meth:`kept` gave after ``steps`` steps."""
        self.place({name: torch.from_numpy(array) for name, array in arrays.get("weights", {}).items()})
        self._average = {name: torch.from_numpy(array) for name, array in arrays.get("average", {}).items()}
        self._steps = steps
        for moment in _MOMENTS:
            for name, array in arrays.get(moment, {}).items():
                state = self._optimizer.state[self._weights[name]]
                state[moment] = torch.from_numpy(array)
                if moment != "momentum_buffer":
                    state["step"] = torch.tensor(float(steps))

    def _regularize(self) -> None:
        """L1's share of the gradients; and no gradient for what stays zero."""
        for name, weight in self._weights.items():
            if weight.grad is None:
                continue
            if self._course.l1 and weight.ndim > 1:
                weight.grad.add_(weight.detach().sign(), alpha=self._course.l1)
            if name in self._masks:
                weight.grad.mul_(self._masks[name])

    def _follow(self) -> None:
        """Move the running mean; young ones forget faster, or the first weights would linger."""
        kept = min(self._course.ema, (1.0 + self._steps) / (10.0 + self._steps))
        for name, mean in self._average.items():
            mean.mul_(kept).add_(self._weights[name].detach(), alpha=1.0 - kept)


def _scales(weights: Sequence[torch.nn.Parameter]) -> list[float]:
    """For each tensor the root of its size over the median size of the matrices and kernels (of all, where there are none); 1 for what is all zeros."""
    sizes = [_size(weight) for weight in weights]
    matrices = [size for size, weight in zip(sizes, weights, strict=True) if weight.ndim > 1 and size]
    middle = statistics.median(matrices or [size for size in sizes if size] or [1.0])
    return [math.sqrt(size / middle) if size else 1.0 for size in sizes]


def _size(weight: torch.nn.Parameter) -> float:
    """The root mean square of what is not zero: what an earlier pass made sparse weighs as much as before."""
    kept = weight.detach()[weight.detach() != 0]
    return float(kept.square().mean().sqrt()) if kept.numel() else 0.0


def _is_sparse(weight: torch.nn.Parameter) -> bool:
    return weight.ndim > 1 and float((weight.detach() == 0).float().mean()) >= _SPARSE_FROM
