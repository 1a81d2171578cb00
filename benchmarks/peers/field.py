"""The field: which tool with which recipe is held against edgeopt, and on which models it makes sense.

A recipe is the tool's own recommended or default one; its name is what ``recipes/with_TOOL.py`` knows it by. The label is
what the table shows. edgeopt's two picks are entries like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
OWN = "edgeopt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What decides which recipes fit a model; see ``prepare``."""

    operators: dict[str, int]
    """Node counts by operator type, bodies of control flow included."""
    judged_output: int
    judged_by: str
    """``agreement``, ``cosine`` or ``nsr``: what a tool with an accuracy loop of its own is told to keep."""

    @property
    def is_transformer(self) -> bool:
        return self.operators.get("LayerNormalization", 0) > 0 and self.operators.get("Softmax", 0) > 0

    def has(self, *types: str) -> bool:
        return any(self.operators.get(kind, 0) for kind in types)


def _always(_facts: Facts) -> bool:
    return True


def _with_matrices(facts: Facts) -> bool:
    return facts.has("MatMul")


def _transformer(facts: Facts) -> bool:
    return facts.is_transformer


def _no_transformer(facts: Facts) -> bool:
    return not facts.is_transformer


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row to be: a tool with one recipe."""

    tool: str
    recipe: str
    label: str
    fits: Callable[[Facts], bool] = _always

    @property
    def key(self) -> str:
        return f"{self.tool}-{self.recipe}"

    @property
    def script(self) -> Path:
        return HERE / "recipes" / f"with_{self.tool}.py"

    @property
    def requirements(self) -> Path:
        return HERE / "requirements" / f"{self.tool}.txt"


_ORT, _OLIVE, _INC = "onnxruntime", "olive", "neural_compressor"
FIELD: tuple[Entry, ...] = (
    Entry(tool=_ORT, recipe="optimized", label="ORT offline optimized"),
    Entry(tool=_ORT, recipe="static", label="ORT static, default (S8S8 min-max)"),
    Entry(tool=_ORT, recipe="static_u8u8", label="ORT static U8U8"),
    Entry(tool=_ORT, recipe="static_u8u8_per_channel", label="ORT static U8U8 per channel"),
    Entry(tool=_ORT, recipe="static_u8u8_qoperator", label="ORT static U8U8 per channel, QOperator"),
    Entry(tool=_ORT, recipe="static_u8s8_per_channel", label="ORT static U8S8 per channel"),
    Entry(tool=_ORT, recipe="static_u8s8_reduced", label="ORT static U8S8 per channel, reduced range"),
    Entry(tool=_ORT, recipe="static_u8s8_percentile", label="ORT static U8S8 per channel, percentile"),
    Entry(tool=_ORT, recipe="static_u8s8_entropy", label="ORT static U8S8 per channel, entropy"),
    Entry(tool=_ORT, recipe="dynamic", label="ORT dynamic"),
    Entry(tool=_ORT, recipe="dynamic_uint8", label="ORT dynamic, uint8 weights"),
    Entry(tool=_ORT, recipe="dynamic_per_channel", label="ORT dynamic per channel"),
    Entry(tool=_ORT, recipe="dynamic_reduced", label="ORT dynamic per channel, reduced range"),
    Entry(tool=_ORT, recipe="matmul_8_bits", label="ORT MatMulNBits, 8 bits", fits=_with_matrices),
    Entry(tool=_ORT, recipe="matmul_8_bits_integer", label="ORT MatMulNBits, 8 bits, level 4", fits=_with_matrices),
    Entry(tool=_ORT, recipe="matmul_4_bits", label="ORT MatMulNBits, 4 bits", fits=_with_matrices),
    Entry(tool=_ORT, recipe="matmul_4_bits_integer", label="ORT MatMulNBits, 4 bits, level 4", fits=_with_matrices),
    Entry(tool=_ORT, recipe="fusion", label="ORT transformer fusion", fits=_transformer),
    Entry(tool=_ORT, recipe="fusion_dynamic", label="ORT transformer fusion, then dynamic", fits=_transformer),
    Entry(tool="onnxslim", recipe="slim", label="onnxslim"),
    Entry(tool="onnxsim", recipe="simplify", label="onnxsim"),
    Entry(tool="onnxconverter", recipe="fp16", label="onnxconverter-common fp16"),
    Entry(tool="nncf", recipe="quantize", label="NNCF quantize", fits=_no_transformer),
    Entry(tool="nncf", recipe="quantize_transformer", label="NNCF quantize, transformer", fits=_transformer),
    Entry(tool=_OLIVE, recipe="quantize", label="Olive `quantize`"),
    Entry(tool=_OLIVE, recipe="static", label="Olive static"),
    Entry(tool="modelopt", recipe="int8_entropy", label="ModelOpt int8 entropy"),
    Entry(tool=_INC, recipe="static", label="Neural Compressor static"),
    Entry(tool=_INC, recipe="dynamic", label="Neural Compressor dynamic"),
    Entry(tool="quark", recipe="int8_cnn_default", label="Quark INT8_CNN_DEFAULT", fits=_no_transformer),
    Entry(tool="quark", recipe="int8_transformer_default", label="Quark INT8_TRANSFORMER_DEFAULT", fits=_transformer),
    Entry(tool="aimet", recipe="int8", label="AIMET int8 (QDQ, float weights)"),
    Entry(tool="nncf", recipe="accuracy_control", label="NNCF with accuracy control (max_drop 0.01)"),
    Entry(tool=OWN, recipe="latency", label="**edgeopt, objective latency**"),
    Entry(tool=OWN, recipe="size", label="**edgeopt, objective size**"),
)


def chosen(facts: Facts, peers: Iterable[str] = ()) -> Iterator[Entry]:
    """Entries that fit a model; with ``peers``, only those tools (or single entries by their key)."""
    wanted = set(peers)
    for entry in FIELD:
        if entry.fits(facts) and (not wanted or entry.tool in wanted or entry.key in wanted):
            yield entry
