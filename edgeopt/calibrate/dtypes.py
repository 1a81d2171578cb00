"""Types of arrays by name, and when values of one may stand for values of another.

A signature names types as numpy does, and numpy lacks bfloat16, the 8-bit floats and 4-bit integers; those are
ml_dtypes' (which onnx brings along).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray


def named(name: str) -> np.dtype[Any]:
    """The dtype that a signature calls ``name``."""
    return np.dtype(getattr(ml_dtypes, name, name))


@dataclass(slots=True)
class Seen:
    """What a scan over an array's values found."""

    low: float = np.inf
    high: float = -np.inf
    nans: int = 0
    infinities: int = 0

    def add(self, values: NDArray[Any]) -> None:
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            if not finite.all():
                nans = int(np.isnan(values).sum())
                self.nans += nans
                self.infinities += int(values.size - finite.sum()) - nans
                values = values[finite]
        if values.size:
            self.low, self.high = min(self.low, values.min().item()), max(self.high, values.max().item())


def why_not(stored: np.dtype[Any], wanted: np.dtype[Any], seen: Seen) -> str | None:
    """Why values that span ``seen`` cannot be cast from ``stored`` to ``wanted`` without changing their meaning."""
    if stored == wanted or (stored.kind == "b" and wanted.kind != "b"):
        return None
    whole = "int" in wanted.name
    if wanted.kind == "b" or (whole and stored.kind == "f"):
        return f"is {stored.name}, but the model takes {wanted.name}"
    if seen.low > seen.high:  # no values at all
        return None
    low, high = _span(wanted, exact=stored.kind in "iu")
    if low <= seen.low and seen.high <= high:
        return None
    exactly = " exactly" if stored.kind in "iu" and not whole else ""
    return f"is {stored.name} with values from {seen.low} to {seen.high}, which {wanted.name} cannot hold{exactly}"


def _span(dtype: np.dtype[Any], *, exact: bool) -> tuple[float, float]:
    """Least and largest value of a type; ``exact`` is up to where a float holds every integer."""
    limits: Any = ml_dtypes
    if "int" in dtype.name:
        found = limits.iinfo(dtype)
        return found.min, found.max
    found = limits.finfo(dtype)
    largest = min(float(found.max), 2.0 ** (found.nmant + 1)) if exact else float(found.max)
    return -largest, largest
