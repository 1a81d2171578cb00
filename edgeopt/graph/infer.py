"""Shape inference in a child process: wanted, never trusted.

Stands at the end of ``load``. onnx's C++ inference has crashed on models that its own checker accepts and can run for a
very long time, so it runs where neither hurts: the model's skeleton goes in on standard input, value types and shapes
come back, and what did not come back in time is simply not known. The interface of the model is left as it is.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import onnx_ir as ir

from edgeopt.errors import InputError
from edgeopt.graph.parse import parse
from edgeopt.graph.skeleton import skeleton

_COMMAND = (sys.executable, "-m", "edgeopt.graph.infer")


def infer_shapes(
    model: ir.Model,
    *,
    timeout_s: float = 20.0,
    start: Callable[..., subprocess.CompletedProcess[bytes]] = subprocess.run,
) -> str | None:
    """Give the values of ``model`` the types and shapes that they lack; says in one sentence why it could not."""
    request = skeleton(model).SerializeToString()
    try:
        answer = start(_COMMAND, input=request, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return f"shape inference took longer than {timeout_s:g} s, so shapes inside the model are not known"
    if answer.returncode != 0:
        reason = answer.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {answer.returncode}"]
        return f"shape inference failed, so shapes inside the model are not known: {reason[0][:200]}"
    try:
        inferred = ir.from_proto(parse(answer.stdout))
    except (InputError, ValueError, TypeError) as error:
        return f"shape inference answered with a broken model: {error}"
    _fill_in(model, inferred)
    return None


def _fill_in(model: ir.Model, inferred: ir.Model) -> None:
    for ours, theirs in zip(model.graphs(), inferred.graphs(), strict=False):
        found = ir.convenience.create_value_mapping(theirs)
        for name, value in ir.convenience.create_value_mapping(ours).items():
            known = found.get(name)
            if known is None:
                continue
            if value.type is None:
                value.type = known.type
            if value.shape is None and known.shape is not None:
                value.shape = known.shape


def _main() -> int:
    import onnx

    model = parse(sys.stdin.buffer.read())
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        print(str(error).strip().splitlines()[0], file=sys.stderr)  # noqa: T201  # the answer of this small program
        return 1
    sys.stdout.buffer.write(inferred.SerializeToString())
    return 0


if __name__ == "__main__":
    sys.exit(_main())
