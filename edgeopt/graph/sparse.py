"""Writing sparse weights into a graph: where they are not zero, what is there, and the nodes that put both together.

Stands under ``passes.prune_weights``; arrays come in ready, no arithmetic lives here. As in ``unpack`` only nodes on constants are written, which ONNX Runtime folds
when it loads the model: the layer sees a dense weight with zeros in it, and runs at the dense weight's speed. ONNX's own sparse initializers are
not used: they take an int64 for every weight that is left, and onnx_ir does not read them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph.compact import Weight
from edgeopt.graph.unpack import Packed, Unpacker

FIRST_OPSET = 11
"""The first with CumSum."""


@dataclass(frozen=True, slots=True)
class Coded:
    """The weights that are left as codes: ``codebook[sum of the planes' digits] * scale``, where ``scale`` broadcasts over the weight."""

    planes: tuple[Packed, ...]
    codebook: NDArray[np.float32]
    scale: NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Masked:
    """A sparse weight, its ``axes`` permuted for storage.

    ``mask`` holds a digit a weight, ``values`` the ``count`` weights whose digit is 1, both in storage order.
    """

    mask: Packed
    values: NDArray[np.float32] | Coded
    count: int
    axes: tuple[int, ...]


class SparseWriter(Unpacker):
    """Replaces weights of one model's main graph."""

    def masked(self, weight: Weight, stored: Masked) -> None:
        """The layer reads zero where the mask is 0 and the next value where it is 1."""
        mask = self._digits(weight, stored.mask, weight.size)
        axis = self._writer.constant("axis", np.array(0, np.int64))
        count = self._at_first("CumSum", [mask, axis], weight)
        # The first value is the zero of all the places that hold none.
        place = self._at_first("Mul", [count, mask], weight)
        value = self._at_first("Gather", [self._values(weight, stored), place], weight)
        value = self._reshaped(value, weight, tuple(weight.shape[side] for side in stored.axes))
        if stored.axes != tuple(sorted(stored.axes)):
            value = self._transposed(value, weight, [int(side) for side in np.argsort(stored.axes)])
        if isinstance(stored.values, Coded):
            value = self._times(value, weight, stored.values.scale)
        self._replace(weight, value)

    def _values(self, weight: Weight, stored: Masked) -> ir.Value:
        """A zero and the values behind it, flat."""
        zero = np.zeros(1, np.float32)
        if not isinstance(stored.values, Coded):
            return self._constant(weight, "values", np.concatenate([zero, stored.values]))
        codes = self._codes(weight, stored.values.planes, stored.count)
        found = self._at_first("Gather", [self._constant(weight, "codebook", stored.values.codebook), codes], weight)
        return self._at_first("Concat", [self._constant(weight, "zero", zero), found], weight, axis=0)

    def _transposed(self, value: ir.Value, weight: Weight, perm: list[int]) -> ir.Value:
        result = self._at_first("Transpose", [value], weight)
        node = result.producer()
        assert node is not None  # noqa: S101 - it was just made
        node.attributes["perm"] = ir.AttrInt64s("perm", perm)
        return result
