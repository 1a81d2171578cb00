"""What TensorRT says when it refuses, as one sentence with node, operator and hint.

In come the parser's complaints or the log of a build, out goes a :class:`~edgeopt.errors.CompileFailed`. The library reports no reason but through its log,
surrounds it with its own file names, and on a machine without a GPU adds lines about a missing driver that have nothing to do with it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgeopt.errors import CompileFailed
from edgeopt.runtimes.trt.order import Answer, ParseFault

_NO_GPU = re.compile(r"cudaError|Cuda Runtime|CUDA (initialization|driver)", re.IGNORECASE)
_SPEAKER = re.compile(r"^(\[[^\]]*\]\s*)?(I?[A-Z]\w+::\w+:\s*)?")
_CODE = re.compile(r"Error Code \d+: ")
_PLACE = re.compile(r"\s*\(?\bIn \w+ at \S+:\d+\)?\.?|\s*At \S+:\d+")
_ASSERTION = re.compile(r"Assertion failed: .*?: (.+)$")
_CHECK = re.compile(r"\[[\w.]+:\d+: \w+\]\s*")
_LONGEST = 300
_REASONS = (
    (re.compile(r"Plugin not found"), "is no operator of TensorRT"),
    (
        re.compile(r"zero point", re.IGNORECASE),
        "has a zero point that is not zero; TensorRT takes symmetric codes only",
    ),
    (re.compile(r"Scale coefficients must all be positive"), "has a scale that is not above zero"),
    (re.compile(r"must have type FP8, FP4, Int4, Int8"), "dequantizes another type than int8, int4 or fp8"),
    (re.compile(r"^(false|)$"), "is not supported"),
)
_HINTS = (
    (
        re.compile(r"HW-specific|datatypes?: fp8|fp8_e4m3"),
        "Leave out the compute capabilities below 8.9, which have no fp8.",
    ),
    (re.compile(r"Turing|SM75"), "Leave compute capability 7.5 out."),
    (
        re.compile(r"Quantized constant"),
        "Quantize with form=portable, which leaves float what no DequantizeLinear reads.",
    ),
    (
        re.compile(r"[Oo]ut ?[Oo]f ?[Mm]emory|insufficient workspace|workspace limit|memory pool"),
        "Allow more workspace.",
    ),
    (re.compile(r"at least one output"), "Give a model with an output."),
    (re.compile(r"different constant values|[Dd]imension"), "State the shapes of the open inputs in the job file."),
    (
        re.compile(r"Internal Error|Assertion|Myelin"),
        "Use the target cpu for this model: this is a fault inside of TensorRT.",
    ),
)
_EXPORT_HINT = "Export the model without this operator, or use the target cpu."


def translate(answer: Answer, *, gpus: Sequence[str] = ()) -> CompileFailed:
    """The failure that an answer other than ``built`` tells of."""
    where = f" for {', '.join(gpus)}" if gpus else ""
    name = f"TensorRT {answer.version}".strip()
    if answer.stage == "import":
        said = answer.log[0] if answer.log else "no reason given"
        return CompileFailed(
            f"TensorRT cannot be loaded: {_short(said)}", hint="Install it again; `edgeopt doctor` says how."
        )
    if answer.stage == "cancelled":
        return CompileFailed("the engine's build was cancelled", hint="Start it again.")
    if answer.stage == "parse":
        return _parse_failure(answer, name)
    reason = said_in(answer.log)
    if answer.stage == "profile":
        hint = "State a shape for every open dimension, with the least no larger than the most."
        return CompileFailed(f"{name} does not take the shapes of the optimization profile: {reason}", hint=hint)
    hint = next((hint for pattern, hint in _HINTS if pattern.search(reason)), "Use the target cpu for this model.")
    return CompileFailed(f"{name} does not build the engine{where}: {reason}", hint=hint)


def said_in(log: Sequence[str]) -> str:
    """The line of a build's log that holds the reason, without what surrounds it."""
    lines = [_plain(line) for line in log if not _NO_GPU.search(line)]
    told = [line for line in lines if line]
    if told:
        return told[0]
    return "CUDA finds no GPU or no driver, which this build needs" if log else "it gave no reason"


def _parse_failure(answer: Answer, name: str) -> CompileFailed:
    fault = answer.faults[0] if answer.faults else ParseFault(code="", node="", operator="", text=said_in(answer.log))
    if fault.code == "MODEL_DESERIALIZE_FAILED":
        return CompileFailed(f"{name} cannot read the model: it is no ONNX file", hint="Export the model again.")
    reason = _reason(fault.text)
    if not fault.operator:
        return CompileFailed(f"{name} does not parse the model: {reason}", hint=_EXPORT_HINT)
    node = f" at node {fault.node!r:.120}" if fault.node and fault.node != fault.operator else ""
    more = f" ({len(answer.faults) - 1} more complaints)" if len(answer.faults) > 1 else ""
    return CompileFailed(f"{name} does not take the model: {fault.operator}{node} {reason}{more}", hint=_EXPORT_HINT)


def _reason(text: str) -> str:
    plain = _plain(text)
    return next((reason for pattern, reason in _REASONS if pattern.search(plain)), f"is refused: {plain}")


def _plain(text: str) -> str:
    """One sentence out of a log line: the last assertion's own words, without source files and error codes."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _NO_GPU.search(line)]
    told = [line for line in lines if not line.startswith("Invalid Node")] or lines
    line = told[0] if told else ""
    line = _CODE.sub("", _PLACE.sub("", _SPEAKER.sub("", line)))
    if match := _ASSERTION.search(line):
        line = match.group(1)
    line = _CHECK.sub("", line).rstrip(" .")
    return _short(line + ")" * (line.count("(") - line.count(")")))


def _short(text: str) -> str:
    line = " ".join(text.split()).rstrip(" .")
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
