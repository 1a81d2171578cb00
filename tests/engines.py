"""A builder of engines for tests: what TensorRT does on a GPU, with ONNX Runtime inside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgeopt.layout import ENGINE_FILE
from edgeopt.records import Artifact, Recipe, Signature, Target, TensorSpec
from edgeopt.runtimes.ort import OnnxRuntime


class Engines(OnnxRuntime):
    """Writes an engine beside the model, for the shapes it was shown, and serves the model."""

    def __init__(self, shapes: Sequence[Mapping[str, tuple[int, ...]]] = ()) -> None:
        super().__init__()
        self.shapes = shapes

    def refuse(self, signature: Signature, target: Target) -> str | None:
        return None

    def taking(self, inputs: Sequence[TensorSpec], seen: Iterable[Mapping[str, tuple[int, ...]]]) -> Engines:
        return Engines(list(seen))

    def compile(self, model: Path, recipe: Recipe, target: Target) -> Artifact:
        model.with_name(ENGINE_FILE).write_text(str(self.shapes))
        return super().compile(model, recipe, replace(target, name="cpu"))
