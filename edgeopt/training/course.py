"""The settings of a distillation, checked: what a recipe says, and what ``training.loop`` and ``training.lesson`` read.

Stands between the recipe's scalars and the training; needs no torch, so that the catalogue can list the pass where torch is missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edgeopt.calibrate.scheme import read_settings
from edgeopt.errors import PassFailed
from edgeopt.records import Scalar

AUTO = 0.0
"""As a learning rate: found by short probes."""
_CHOICES = {
    "loss": ("auto", "kl", "mse", "cosine", "features"),
    "inputs": ("auto", "calibration", "mixed", "noise"),
    "schedule": ("cosine", "linear", "constant"),
    "optimizer": ("adamw", "sgd"),
    "precision": ("float32", "bfloat16"),
    "fake_quantize": ("off", "int8"),
}
_ABOVE_ZERO = ("steps", "batch", "temperature", "patience", "pools")
_NOT_NEGATIVE = ("learning_rate", "weight_decay", "l1", "seconds", "features", "samples", "clip")
_SHARES = ("dropout", "ema")


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Every setting with its default; docs/techniques/distillation.md says what each is good for."""

    steps: int = 1000
    batch: int = 16
    learning_rate: float = AUTO
    """The largest; 0 (or ``auto`` in a recipe): searched."""
    schedule: str = "cosine"
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    """L2, on weights of two and more dimensions."""
    l1: float = 0.0
    dropout: float = 0.0
    """Before each output's last layer."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: any."""
    ema: float = 0.0
    """The share of the old in the running mean of the weights, which is then what is judged and kept; 0: none."""
    temperature: float = 2.0
    loss: str = "auto"
    features: int = 4
    """How many intermediate values ``loss=features`` matches."""
    inputs: str = "auto"
    pools: int = 8
    """How many different views of the samples there are, the samples themselves included."""
    samples: int = 0
    """How many calibration samples are used; 0: all."""
    precision: str = "float32"
    fake_quantize: str = "off"
    reduced_range: bool = False
    """Of the fake-quantized weights."""
    keep_zeros: bool = True
    """Weights that an earlier pass made sparse stay so."""
    patience: int = 6
    """Looks at the held-out samples without a gain before the training ends; there are about twenty in all."""
    seconds: float = 0.0
    """How long the training may take; 0: as long as the job's budget lasts."""
    seed: int = 0


def read(settings: Mapping[str, Scalar], *, technique: str) -> Course:
    """The course that a recipe asks for; :class:`~edgeopt.errors.PassFailed` names the first setting that makes no sense."""
    given = dict(settings)
    if given.get("learning_rate") == "auto":
        given["learning_rate"] = AUTO
    course = read_settings(Course, given, technique=technique)
    for name, known in _CHOICES.items():
        if getattr(course, name) not in known:
            raise _senseless(technique, name, getattr(course, name), f"Use one of {', '.join(known)}.")
    for name in (*_ABOVE_ZERO, *_NOT_NEGATIVE, *_SHARES):
        value = getattr(course, name)
        if not math.isfinite(value) or value < 0 or (name in _ABOVE_ZERO and value == 0):
            raise _senseless(technique, name, value, f"Give {'more than 0' if name in _ABOVE_ZERO else '0 or more'}.")
        if name in _SHARES and value >= 1:
            raise _senseless(technique, name, value, "Give a share below 1.")
    return course


def _senseless(technique: str, name: str, value: Scalar, hint: str) -> PassFailed:
    return PassFailed(f"{technique}: {name} is {value!r}", hint=hint)
