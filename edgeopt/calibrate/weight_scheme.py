"""Settings of ``passes.quantize_weights``, checked: which of them go together.

Stands under the pass, whose docstring says what each setting means.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeopt.errors import PassFailed
from edgeopt.graph import nbits, portable

WIDTHS = (2, 3, 4, 5, 6, 8)
LEVELS = ("integer", "affine", "palette", "ternary")
COMPENSATIONS = ("none", "gptq", "hqq")
FORMS = ("unpacked", "kernel", "portable")
_KERNEL_BLOCK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightScheme:
    """The settings, checked."""

    bits: int = 8
    levels: str = "integer"
    block: int = 0
    table_bits: int = 0
    compensation: str = "none"
    small: float = 0.05
    noise: float = 0.0
    mean_bits: float = 0.0
    form: str = "unpacked"
    accuracy_level: int = 0
    skip: str = "[]"

    @property
    def kernel_block(self) -> int:
        return self.block or _KERNEL_BLOCK

    @property
    def has_zeros(self) -> bool:
        """Evenly spaced levels with a zero for each block, which half-quadratic splitting finds."""
        return self.levels == "affine" or self.compensation == "hqq"

    def check(self) -> None:
        """Raises :class:`~edgeopt.errors.PassFailed` for what has no representation."""
        if self.bits not in WIDTHS or self.table_bits not in (0, *WIDTHS):
            raise PassFailed(
                f"weights in {self.bits} bits, tables in {self.table_bits} have no representation",
                hint=f"Use one of {', '.join(map(str, WIDTHS))} bits.",
            )
        for name, value, known in (
            ("levels", self.levels, LEVELS),
            ("compensation", self.compensation, COMPENSATIONS),
            ("form", self.form, FORMS),
        ):
            if value not in known:
                raise PassFailed(f"{name} is {value!r}", hint=f"Use one of {', '.join(known)}.")
        if self.compensation == "hqq" and self.levels not in ("integer", "affine"):
            raise PassFailed(
                f"half-quadratic splitting finds zeros of evenly spaced levels, not of {self.levels} ones",
                hint="Use levels=affine, or compensation=gptq.",
            )
        if self.form == "kernel":
            self._check_kernel()
        if self.form == "portable" and (self.bits not in portable.BITS or self.levels != "integer" or self.has_zeros):
            raise PassFailed(
                f"DequantizeLinear has no {self.bits}-bit {self.levels} levels",
                hint="Use integer levels of 4 or 8 bits.",
            )
        if self.mean_bits and (self.mean_bits < self.bits or self.form != "unpacked"):
            raise PassFailed(
                f"mean_bits {self.mean_bits:g} is below {self.bits} bits or goes with form {self.form}",
                hint="Give more mean_bits than bits, and form=unpacked.",
            )
        if self.block < 0 or self.noise < 0 or not 0 <= self.small <= 1:
            raise PassFailed(
                f"block {self.block}, noise {self.noise:g} or small {self.small:g} is out of its range",
                hint="Give a block and a noise of 0 or more and a small between 0 and 1.",
            )

    def _check_kernel(self) -> None:
        known = self.bits in (nbits.ZERO_BITS if self.has_zeros else nbits.BITS) and self.kernel_block in nbits.BLOCKS
        evenly = self.levels in ("integer", "affine")
        if not known or not evenly or self.accuracy_level not in nbits.ACCURACY_LEVELS:
            raise PassFailed(
                f"MatMulNBits has no {self.bits}-bit {self.levels} levels in blocks of {self.kernel_block} "
                f"at accuracy level {self.accuracy_level}",
                hint="Use integer levels of 2, 4 or 8 bits (affine: 2 or 4), a block of 16, 32, 64, 128 or 256, accuracy level 0 or 4.",
            )
