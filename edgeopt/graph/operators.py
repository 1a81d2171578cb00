"""Which operator sets and operators are known, said before a runtime fails on them with words of its own.

In: a parsed ModelProto. Out: nothing, or :class:`~edgeopt.errors.UnsupportedModel` that names the node, the operator
and the domain. The runtime has the last word: what passes here may still lack a kernel on this device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgeopt.errors import UnsupportedModel
from edgeopt.graph import walk

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET = 7
"""ONNX Runtime promises compatibility from opset 7 on; below, even Add has no kernel."""

_STANDARD = ("", "ai.onnx", "ai.onnx.ml")
_RUNTIME_DOMAINS = ("com.microsoft",)
"""Operators of ONNX Runtime's own; only it can tell which ones it holds."""
_SHOWN = 5


def check(model: onnx.ModelProto) -> None:
    """Raise where the opset, the IR version or an operator is not one that is known."""
    _check_versions(model)
    functions = {(function.domain, function.name) for function in model.functions}
    unknown: Counter[str] = Counter()
    for root in walk.roots(model):
        # a function imports opsets of its own; graphs use the model's
        imports = _imports(root if hasattr(root, "opset_import") else model)
        kinds = Counter((node.domain, node.op_type) for node in walk.nodes(root))
        for kind in kinds.keys() - functions:
            if reason := _why_unknown(*kind, imports):
                first = next(node for node in walk.nodes(root) if (node.domain, node.op_type) == kind)
                unknown[f"{reason} (node {first.name or ', '.join(first.output)!r})"] += kinds[kind]
    if unknown:
        _refuse(unknown)


def default_opset(model: onnx.ModelProto) -> int:
    """The version of ai.onnx that the model imports; 0 where it imports none."""
    return _imports(model).get("", 0)


def _imports(holder: onnx.ModelProto | onnx.FunctionProto) -> dict[str, int]:
    return {_plain(opset.domain): opset.version for opset in holder.opset_import}


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _check_versions(model: onnx.ModelProto) -> None:
    import onnx

    newest = onnx.defs.onnx_opset_version()
    opset = default_opset(model)
    if opset > newest:
        raise UnsupportedModel(
            f"opset {opset} is newer than {newest}, the newest that is known here",
            hint=f"Export the model with opset_version={min(newest, 21)}, or upgrade onnx and onnxruntime.",
        )
    if opset < OLDEST_OPSET and (opset or not model.opset_import):
        raise UnsupportedModel(
            f"opset {opset or 1} is older than {OLDEST_OPSET}, the first that ONNX Runtime runs",
            hint="Export the model again with opset_version=17.",
        )
    if model.ir_version > onnx.IR_VERSION:
        raise UnsupportedModel(
            f"IR version {model.ir_version} is newer than {onnx.IR_VERSION}, the newest that is known here",
            hint="Save the model with an older IR version, or upgrade onnx and onnxruntime.",
        )


def _why_unknown(domain: str, operator: str, imports: Mapping[str, int]) -> str | None:
    """What stands in the way of one operator; None where it is known."""
    import onnx

    domain = _plain(domain)
    if any(domain == ours or domain.startswith(f"{ours}.") for ours in _RUNTIME_DOMAINS):
        return None
    where = f"{operator!r} of domain {domain or 'ai.onnx'!r}"
    if domain not in imports:
        return f"{where} comes without an opset import for its domain"
    if domain not in _STANDARD:
        return f"{where} is a custom operator"
    try:
        schema = onnx.defs.get_schema(operator, imports[domain], domain)
    except onnx.defs.SchemaError:
        return f"{where} is not in opset {imports[domain]}"
    return f"{where} was removed before opset {imports[domain]}" if schema.deprecated else None


def _refuse(unknown: Mapping[str, int]) -> None:
    lines = [f"{reason}{f', {count} times' if count > 1 else ''}" for reason, count in sorted(unknown.items())]
    more = f"; and {len(lines) - _SHOWN} more kinds" if len(lines) > _SHOWN else ""
    raise UnsupportedModel(
        f"unknown operators: {'; '.join(lines[:_SHOWN])}{more}",
        hint="Export the model with standard ONNX operators only; custom operator libraries are not loaded.",
    )
