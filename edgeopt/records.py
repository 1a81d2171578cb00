"""The frozen dataclasses that flow through edgeopt, from a drop to a manifest.

``JobOrder (orders) > Signature > Recipes > (Artifact, Measurement)* = Trials > Verdict > manifest``

Standard library only: the daemon, the worker and the command line share these. Units end the name
(``_ms _s _bytes _ratio``). "Nothing beat the original" is a :class:`Verdict`, not a failure.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgeopt.policy import Dim

Scalar: TypeAlias = str | int | float | bool

QualityKind: TypeAlias = Literal["accuracy", "agreement", "synthetic"]


# ---------------------------------------------------------------- what the model is
@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output of a model; ``dtype`` is numpy's name for it, such as ``float32``."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePair:
    """An output that the caller feeds back as an input in the next step."""

    input: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a model is: enough to plan with, without the model itself."""

    format: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: tuple[tuple[str, int], ...]
    """(``domain::type`` or bare type for ai.onnx, count), sorted; counts nodes of subgraphs too."""
    states: tuple[StatePair, ...] = ()
    parameter_bytes: int = 0
    quantized: bool = False
    """The model already holds integer kernels or QDQ pairs."""
    zeros: float = 0.0
    """Share of the large float weights that is exactly zero: a model that was pruned before it was dropped."""

    half: bool = False
    """Some of its weights are float16: it was exported to be computed in half precision, or stored so."""

    def count(self, *operators: str) -> int:
        """How many nodes are of one of these operator types."""
        return sum(number for name, number in self.operators if name in operators)


# ---------------------------------------------------------------- what the device is
@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The device and runtime that candidates are made for."""

    name: str
    """``cpu``, ``arm``, ``tensorrt`` or ``tensorrt-rtx``."""
    device: str
    arch: str
    features: tuple[str, ...]
    """Instruction sets that change which kernels run, in Linux' words: ``avx2 avx512_vnni asimddp i8mm`` ..."""
    threads: int
    memory_bytes: int
    batch: int = 1
    compute_capability: tuple[float, ...] = ()
    """Of the GPUs that engines are built for ahead of time, such as 8.6; empty: the GPU that is there."""


# ---------------------------------------------------------------- what is tried, and what came of it
@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One pass with its settings, sorted by name."""

    technique: str
    settings: tuple[tuple[str, Scalar], ...] = ()

    @staticmethod
    def of(technique: str, **settings: Scalar) -> Step:
        return Step(technique=technique, settings=tuple(sorted(settings.items())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Passes in order. The empty recipe is the original as dropped: the baseline."""

    steps: tuple[Step, ...] = ()

    @property
    def id(self) -> str:
        """Hash of the steps: 12 hex digits."""
        text = json.dumps([[step.technique, list(step.settings)] for step in self.steps])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """What a table shows: ``tidy + quantize_static(method=mse)``."""
        return " + ".join(_step_label(step) for step in self.steps) or "original"


def _step_label(step: Step) -> str:
    settings = ", ".join(f"{name}={_value_label(value)}" for name, value in step.settings)
    return f"{step.technique}({settings})" if settings else step.technique


def _value_label(value: Scalar) -> str:
    """A value as a table shows it; a JSON list by its length."""
    if isinstance(value, str) and value.startswith("["):
        return f"{len(json.loads(value))} layers"
    return str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What a builder told of a TensorRT engine; None where its log did not tell."""

    key: str
    """Hash of everything that the engine depends on."""
    gpus: tuple[str, ...]
    """Such as ``SM86``."""
    build_s: float
    weights_bytes: int | None = None
    activation_bytes: int | None = None
    traffic_bytes: int | None = None
    """Read and written by one inference, over all layers."""
    layers: int | None = None
    products: int | None = None
    """Layers that multiply by weights; of these, in ``int8_products`` both operands have 8 bits."""
    int8_products: int | None = None
    packed_products: int | None = None
    """Weights in 8 or 4 bits, activations wider."""
    half_products: int | None = None
    quantized_products: int | None = None
    """Of the ONNX file, not of the engine: products whose operands both come out of 8-bit codes."""

    @property
    def coverage(self) -> str:
        """``48 of 64 layers multiply in int8 on SM86, 2 in float16``; empty where the builder's log did not tell."""
        if self.products is None:
            return ""
        where = f" on {', '.join(self.gpus)}" if self.gpus else ""
        others = [
            f"{count} {what}"
            for count, what in ((self.packed_products, "by packed weights"), (self.half_products, "in float16"))
            if count
        ]
        return ", ".join((f"{self.int8_products} of {self.products} layers multiply in int8{where}", *others))

    @property
    def undone(self) -> str:
        """Says that TensorRT built a quantized model in float, which it does without a word; empty where it did not."""
        if not self.quantized_products or self.products is None or self.int8_products:
            return ""
        several = len(self.gpus) > 1
        who = (
            "one of these GPUs has no kernels for it, and one engine serves them all"
            if several
            else "this GPU has no kernels for it"
        )
        return f"0 of {self.products} layers run in int8 on {', '.join(self.gpus) or 'this GPU'}: TensorRT undid the quantization of {self.quantized_products}, since {who}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A model in the form that a runtime loads, and the session settings it is loaded with."""

    path: str
    format: Literal["onnx", "tensorrt-engine"]
    sha256: str
    bytes: int
    """On disk, external data included."""
    runtime: str
    runtime_version: str
    session: tuple[tuple[str, Scalar], ...]
    engine: EngineFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    p50_ms: float
    p90_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How right a candidate is. ``drop`` is what is held against ``goal.max_drop``, at ``ci95``'s upper end."""

    kind: QualityKind
    metric: str
    value: float
    drop: float
    ci95: tuple[float, float]
    samples: int
    details: tuple[tuple[str, float], ...] = ()
    """Reported beside it, never decisive: raw agreement, KL, mask IoU ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What was seen on the device. ``speedup`` and ``bytes_ratio`` are the original's over the candidate's: above 1 is better."""

    latency: Latency
    speedup: Interval
    bytes: int
    bytes_ratio: float
    peak_memory_bytes: int
    memory_ratio: float
    quality: Quality
    original_latency: Latency | None = None
    """The original's in the same turns: the machine's speed drifts, and only these two belong together."""
    conditions: tuple[tuple[str, float], ...] = ()
    """What a GPU said of the timing: its parts in milliseconds, clocks, temperature, power; empty where none was told."""
    measured: bool = True
    """False where the artifact's device is not here: then latencies say nothing of it, and ``speedup`` is the ratio of the bytes that one inference moves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One candidate: measured, or refused with the reason."""

    recipe: Recipe
    artifact: Artifact | None = None
    measurement: Measurement | None = None
    refused: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOrigin:
    """Where calibration or eval samples came from: ``drop``, ``calibration`` (eval reusing it) or ``synthetic``."""

    sha256: str
    samples: int
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Chosen, why, and why not the others. ``winner`` is one of ``trials``; ``baseline`` is the original's trial."""

    winner: Trial
    baseline: Trial
    trials: tuple[Trial, ...]
    reason: str
