"""What the operator wishes and allows: the goal, the target, the techniques, the limits.

Stands under ``records``. The configuration and a drop's job.yaml become a :class:`Policy`; it goes with the job's order to the worker. Standard library
only. Units end the name (``_s _bytes``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Dim: TypeAlias = int | str
"""A dimension: a length, or the name of a symbolic one (``"?"`` where the model names none)."""

Objective: TypeAlias = Literal["latency", "size", "memory"]
Metric: TypeAlias = Literal["auto", "accuracy", "expected_drop", "agreement", "cosine", "nsr"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRequest:
    """What the configuration asks of the target; ``device.detect`` turns it into a :class:`Target`."""

    name: Literal["auto", "cpu", "arm", "tensorrt", "tensorrt-rtx"] = "auto"
    threads: int | None = None
    compute_capability: tuple[float, ...] = ()
    features: tuple[str, ...] = ()
    """Instruction sets of a processor that is not here; of the one that is here they are read."""
    batch: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    objective: Objective = "latency"
    metric: Metric = "auto"
    max_drop: float = 0.01
    """Largest quality drop a candidate may show at its 95 % bound, as a ratio."""
    min_speedup: float = 1.02
    """The objective's gain a candidate must show at its 95 % bound, as a ratio over the original."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    strategy: Literal["auto", "grid", "random", "bayesian"] = "auto"
    budget_s: float = 600.0
    trials: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Techniques:
    """``auto``, ``off``, or what to use: names of passes, or settings."""

    quantize: str | tuple[str, ...] = "auto"
    prune: Any = "auto"
    distill: Any = "auto"
    merge: Any = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """How a picture becomes a tensor; used for calibration from image folders."""

    resize: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["nchw", "nhwc"] = "nchw"
    color: Literal["rgb", "bgr", "gray"] = "rgb"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The lengths that an open dimension may have in service."""

    least: int
    most: int
    typical: int | None = None
    """The one to be fast at; None leaves it to the samples."""

    def __str__(self) -> str:
        return "..".join(str(length) for length in (self.least, self.typical, self.most) if length is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputHint:
    """What job.yaml says of one input: a shape for its symbolic dimensions, the range of its values."""

    shape: tuple[Dim | Span, ...] | None = None
    range: tuple[float, float] | None = None
    preprocess: Preprocess | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the operator accepts; the configuration's, with a drop's job.yaml laid over it."""

    target: TargetRequest = field(default_factory=TargetRequest)
    goal: Goal = field(default_factory=Goal)
    search: Search = field(default_factory=Search)
    techniques: Techniques = field(default_factory=Techniques)
    inputs: tuple[tuple[str, InputHint], ...] = ()
    teacher: str | None = None
    merge: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """What the worker process may use."""

    sandbox: Literal["auto", "required", "off"] = "auto"
    job_timeout_s: float = 3600.0
    memory_bytes: int = 0
    """0 = no limit."""
    threads: int | None = None
    nice: int = 10
    model_bytes: int = 4 << 30
    torchscript: bool = False
