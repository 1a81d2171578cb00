"""Builders of engines for tests: what TensorRT does on a GPU, with ONNX Runtime inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from edgeopt.layout import ENGINE_FILE
from edgeopt.policy import InputHint
from edgeopt.records import Artifact, Recipe, Signature, Target, TensorSpec
from edgeopt.runtimes.ort import OnnxRuntime


class Engines(OnnxRuntime):
    """Writes an engine beside the model, for the shapes it was shown, and serves the model."""

    def __init__(self, shapes: Sequence[Mapping[str, tuple[int, ...]]] = ()) -> None:
        super().__init__()
        self.shapes = shapes
        self._limit_s = 0.0
        self._tell: Callable[[float, str], None] = lambda _share, _words: None

    def refuse(self, signature: Signature, target: Target) -> str | None:
        return None

    def under(self, *, limit_s: float, tell: Callable[[float, str], None], cache: Path | None = None) -> Engines:
        self._limit_s, self._tell = limit_s, tell
        return self

    def taking(
        self,
        inputs: Sequence[TensorSpec],
        seen: Iterable[Mapping[str, tuple[int, ...]]],
        *,
        stated: Sequence[tuple[str, InputHint]] = (),
    ) -> Engines:
        return type(self)(list(seen)).under(limit_s=self._limit_s, tell=self._tell)

    def compile(self, model: Path, recipe: Recipe, target: Target) -> Artifact:
        self._tell(0.5, f"engine: half of it, {self._limit_s:g} s at most")
        model.with_name(ENGINE_FILE).write_text(str(self.shapes))
        return super().compile(self.served(model), recipe, replace(target, name="cpu"))

    def served(self, model: Path) -> Path:
        """What runs in the engine's place."""
        return model


class ForgetfulEngines(Engines):
    """Engines that answer nothing but zeros: no builder is right by definition."""

    def served(self, model: Path) -> Path:
        proto = onnx.load(model)
        for weight in proto.graph.initializer:
            if weight.data_type == onnx.TensorProto.FLOAT:
                weight.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(weight)), weight.name))
        forgetful = model.with_name("forgetful.onnx")
        onnx.save(proto, forgetful)
        return forgetful
