"""Settings of ``passes.prune_weights``, checked: which of them go together.

Stands under the pass, whose docstring says what each setting means.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeopt.calibrate.masks import UNSTRUCTURED, Pattern, read_pattern
from edgeopt.errors import PassFailed

METHODS = ("sparsegpt", "magnitude", "found")
SCOPES = ("local", "global")
FORMS = ("masked", "dense")
WIDTHS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseScheme:
    """The settings, checked."""

    pattern: str = UNSTRUCTURED
    ratio: float = 0.5
    method: str = "sparsegpt"
    scope: str = "local"
    bits: int = 0
    noise: float = 0.0
    small: float = 0.05
    form: str = "masked"
    skip: str = "[]"

    @property
    def groups(self) -> Pattern | None:
        return read_pattern(self.pattern)

    def check(self) -> None:
        """Raises :class:`~edgeopt.errors.PassFailed` for what has no meaning."""
        for name, value, known in (
            ("method", self.method, METHODS),
            ("scope", self.scope, SCOPES),
            ("form", self.form, FORMS),
        ):
            if value not in known:
                raise PassFailed(f"{name} is {value!r}", hint=f"Use one of {', '.join(known)}.")
        if self.groups is not None and self.scope == "global":
            raise PassFailed(
                f"pattern {self.pattern} removes the same share everywhere, scope=global does not",
                hint="Use scope=local with a pattern.",
            )
        if self.bits not in (0, *WIDTHS):
            raise PassFailed(
                f"weights in {self.bits} bits have no representation",
                hint=f"Use one of {', '.join(map(str, WIDTHS))} bits, or 0 for float32.",
            )
        if not 0 < self.ratio < 1 or self.noise < 0 or not 0 <= self.small < 1:
            raise PassFailed(
                f"ratio {self.ratio:g}, noise {self.noise:g} or small {self.small:g} is out of its range",
                hint="Give a ratio between 0 and 1, a noise of 0 or more and a small from 0 to below 1.",
            )
