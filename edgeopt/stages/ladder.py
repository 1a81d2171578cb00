"""What lies between integers and float: the forms that a layer may take which loses too much in the one and too much time in the other.

Stands under ``mixed``. For each rung: the recipe's steps that put certain layers on it, and why it is out of the question where it is. What a rung
costs is measured on the device, once a model, by the runtime's own profile of the whole model; a rung that is not faster than float is
refused with both numbers. What the device's runtime has no kernels for at all says :func:`no_kernels`, and nothing else does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgeopt.protocols import Quantizer
from edgeopt.records import Recipe, Step, Target
from edgeopt.stages import attempt, planner, sensitivity
from edgeopt.stages.attempt import Workbench

if TYPE_CHECKING:
    from edgeopt.protocols import Model

Put = Callable[["Request"], "tuple[Step, ...] | None"]
_GAIN = 0.97
"""A rung must take less than this share of the float form's time to be worth a trial."""

_NO_KERNELS = {
    "float16": "ONNX Runtime's x86 kernels compute float16 in float32, with a cast on either side",
    "bfloat16": "ONNX Runtime has no bfloat16 kernels for Conv and MatMul on a CPU",
}
"""Of ONNX Runtime 1.32. On ARM with float16 arithmetic the planner tries ``cast_fp16`` on whole models, and TensorRT's builder chooses float16 for what
is left in float by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The layers that a rung is asked to take, beside those that stay in float."""

    model: Model
    """What the quantizing step is applied to."""
    step: Step
    """The quantizing step as it is for all layers."""
    floats: tuple[str, ...]
    middle: tuple[str, ...]
    bench: Workbench


@dataclass(frozen=True, slots=True)
class Rung:
    """One form; ``put`` gives the steps, or None where it suits none of the layers."""

    name: str
    put: Put


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A recipe with some layers on a rung, and what the profiles say: seconds of one inference, on the rung and with these layers in float."""

    rung: Rung
    recipe: Recipe
    seconds: float
    float_seconds: float

    @property
    def pays(self) -> bool:
        """Whether it is worth a trial."""
        return self.seconds < _GAIN * self.float_seconds

    @property
    def reason(self) -> str:
        """Why it does not pay, with both numbers."""
        return (
            f"not timed: {self.rung.name} takes {self.seconds * 1e3:.3g} ms by the runtime's profile on this device, "
            f"{self.float_seconds * 1e3:.3g} ms with these layers in float"
        )


def rungs() -> tuple[Rung, ...]:
    """From the fastest to the most exact."""
    return (
        Rung("unsigned weights of full range", _unsigned),
        Rung("8-bit weights in blocks", _packed),
        Rung("16-bit activations", _wide),
    )


def no_kernels(target: Target) -> list[str]:
    """Forms that a float layer could take and that no kernel on ``target`` would be faster in: not tried, one sentence each."""
    if not target.arch.startswith(("x86", "amd64", "AMD64")):
        return []
    return [f"no layer is offered {form}: {reason}" for form, reason in _NO_KERNELS.items()]


def offer(rung: Rung, request: Request, prefix: tuple[Step, ...], plain: Recipe) -> Offer | None:
    """What the rung makes of the request; None where it suits no layer.

    ``plain`` has the same layers in float. Raises :class:`~edgeopt.errors.CandidateError` where it cannot be made.
    """
    steps = rung.put(request)
    if steps is None:
        return None
    recipe = Recipe(steps=(*prefix, *steps))
    seconds = [_seconds(each, request.bench) for each in (recipe, plain)]
    return Offer(rung=rung, recipe=recipe, seconds=seconds[0], float_seconds=seconds[1])


def _seconds(recipe: Recipe, bench: Workbench) -> float:
    """One inference, as the sum of the profiled kernels."""
    artifact = attempt.compile_recipe(attempt.compress(recipe, bench), recipe, bench)
    return sum(bench.runtime.node_seconds(Path(artifact.path), bench.timed, threads=bench.target.threads).values())


def _unsigned(request: Request) -> tuple[Step, ...] | None:
    """Where signed weights of full range saturate: unsigned ones do not, in a kernel that is slower and still of integers."""
    settings = dict(request.step.settings)
    if planner.adds_exactly(request.bench.target) or settings.get("activation") == "int8" or not request.middle:
        return None
    names = json.dumps(_ordered(request, set(request.middle)))
    step = Step.of(request.step.technique, **{**settings, "unsigned": names})
    return (sensitivity.skipping(step, _ordered(request, set(request.floats))),)


def _packed(request: Request) -> tuple[Step, ...] | None:
    """MatMul and Gemm as MatMulNBits: int8 weights and activations with a scale for every 32 inputs."""
    quantizer = cast("Quantizer", request.bench.passes["quantize_weights"])
    packable = quantizer.layers(request.model)
    products = {node.name for node in request.model.graph if node.op_type in ("MatMul", "Gemm")}
    chosen = set(request.middle) & set(packable) & products
    if not chosen:
        return None
    floats = _ordered(request, {*request.floats, *request.middle})
    rest = [name for name in packable if name not in chosen]
    packing = Step.of(
        "quantize_weights", form="kernel", bits=8, accuracy_level=4, skip=json.dumps(rest, separators=(", ", ": "))
    )
    return (packing, sensitivity.skipping(request.step, floats))


def _wide(request: Request) -> tuple[Step, ...] | None:
    """Static ranges in 16 bits instead of 8."""
    settings = dict(request.step.settings)
    if request.step.technique != "quantize_static" or settings.get("symmetric") or not request.middle:
        return None
    wide = json.dumps(_ordered(request, set(request.middle)))
    step = Step.of(request.step.technique, **{**settings, "wide": wide})
    return (sensitivity.skipping(step, _ordered(request, set(request.floats))),)


def _ordered(request: Request, names: set[str]) -> Sequence[str]:
    quantizer = cast("Quantizer", request.bench.passes[request.step.technique])
    return [name for name in quantizer.layers(request.model) if name in names]
