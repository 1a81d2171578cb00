"""What an operator's function is told about its node: attributes, the opset, how many outputs are read.

Every function below ``training.operators`` is called as ``function(call, *inputs)`` with one tensor for each input of the
node, None where an optional one is missing, and gives back one tensor or a tuple of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from edgeopt.errors import PassFailed

Result: TypeAlias = Tensor | tuple[Tensor, ...]
Operator: TypeAlias = Callable[..., Result]


@dataclass(frozen=True, slots=True)
class Call:
    """One node, without the graph around it."""

    kind: str
    """``domain::type``, or the bare type for ai.onnx."""
    opset: int
    attributes: Mapping[str, Any]
    """Numbers, strings, sequences of them, and tensors as torch's."""
    outputs: int
    """How many outputs the node has."""
    read: int
    """How many of them there are up to the last one that anybody reads."""

    def integer(self, name: str, default: int = 0) -> int:
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float) -> float:
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        return str(self.attributes.get(name, default))

    def integers(self, name: str, default: Sequence[int] = ()) -> list[int]:
        return [int(number) for number in self.attributes.get(name, default)]

    def axes(self, given: Tensor | None, name: str = "axes") -> list[int] | None:
        """A list that older opsets keep in an attribute and newer ones in an input; None where neither is there."""
        if given is not None:
            return whole(given)
        return self.integers(name) if name in self.attributes else None

    def refusal(self, fact: str) -> PassFailed:
        """The error for a form of this operator that is not replayed."""
        return PassFailed(f"{self.kind} {fact}", hint="Leave training out for this model.")


def whole(tensor: Tensor) -> list[int]:
    """An integer tensor as a flat list."""
    return [int(number) for number in tensor.reshape(-1).tolist()]
