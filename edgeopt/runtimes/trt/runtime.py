"""The ``tensorrt`` and ``tensorrt-rtx`` entries of the catalogue: from an ONNX file to an engine with what is known of it.

An artifact of these runtimes is ``model.engine`` beside the ``model.onnx`` that it was made of. RTX builds without a GPU, for the compute capabilities that the
target names; TensorRT builds on the GPU that will run it. Neither runs without one.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt import device, wire
from edgeopt.errors import CompileFailed, MeasureFailed
from edgeopt.integrity import model_files, sha256_of
from edgeopt.layout import ENGINE_FILE
from edgeopt.records import Artifact, EngineFacts, Recipe, Scalar, Signature, Target, TensorSpec
from edgeopt.runtimes.trt import build, coverage, cuda, preflight
from edgeopt.runtimes.trt import flavours as known
from edgeopt.runtimes.trt.flavours import Flavour
from edgeopt.runtimes.trt.key import engine_key
from edgeopt.runtimes.trt.order import Answer, Order, Progress, Range
from edgeopt.runtimes.trt.profiles import Shapes, Stated, profile
from edgeopt.runtimes.trt.shelf import Finished, Shelf

if TYPE_CHECKING:
    from edgeopt.protocols import Array, Feeds, Session

CAPABILITIES = (7.5, 8.0, 8.6, 8.9, 12.0, 12.1)
"""What RTX 1.7 builds for."""
BUILD_LIMIT_S = 1800.0
"""For one engine, where nothing says otherwise: TensorRT times kernels while it builds, minutes on a small board."""
_BOARDS = ("aarch64", "arm64")
_NO_SHELF = Shelf(None)
_WORKSPACE_SHARE = 0.5
"""Of the memory that a board's GPU shares with everything else: the rest serves the one that is published."""


class TensorRt:
    """One flavour of TensorRT as a runtime; ``profiles`` say which shapes its engines must take."""

    def __init__(
        self,
        flavour: Flavour = known.TENSORRT,
        *,
        profiles: Sequence[Sequence[Range]] = (),
        limit_s: float = BUILD_LIMIT_S,
        on_progress: build.OnProgress = lambda _progress: None,
        shelf: Shelf = _NO_SHELF,
    ) -> None:
        self._flavour, self._shelf = flavour, shelf
        self._profiles = tuple(tuple(profile) for profile in profiles)
        self._limit_s, self._on_progress = limit_s, on_progress
        self.name = flavour.name
        self.version = known.version_of(flavour) or ""

    def refuse(self, signature: Signature, target: Target) -> str | None:
        """Another target, a library that is not installed, no GPU where one is needed, GPUs that the library does not know."""
        del signature
        if target.name != self.name:
            return f"{self.name} serves the target {self.name}, not {target.name}"
        if known.module_of(self._flavour) is None:
            return f"{self.name} is not installed here ({self._flavour.install})"
        if reason := known.unfit(self._flavour, self.version):
            return f"{reason} ({self._flavour.install})"
        if self._flavour.needs_gpu:
            return self._refuse_gpu() or self._refuse_cuda()
        if not target.compute_capability:
            if device.gpu_present():
                return self._refuse_cuda()
            return "there is no GPU here, so target.compute_capability must say which GPUs the engine is for, such as [8.6, 8.9]"
        if unknown := [value for value in target.compute_capability if value not in CAPABILITIES]:
            return f"{self.name} builds for compute capabilities {_listed(CAPABILITIES)}, not {_listed(unknown)}"
        return None

    def taking(self, inputs: Sequence[TensorSpec], seen: Iterable[Shapes], *, stated: Stated = ()) -> TensorRt:
        """The same runtime for models whose open ``inputs`` take the shapes ``seen``, and those ``stated`` by a job file."""
        ranges = profile(inputs, seen, stated=stated)
        return TensorRt(
            self._flavour,
            profiles=[ranges] if ranges else [],
            limit_s=self._limit_s,
            on_progress=self._on_progress,
            shelf=self._shelf,
        )

    def _refuse_gpu(self) -> str | None:
        there = f"{self.name} builds on the GPU that will run it"
        return None if device.gpu_present() else f"{there}, and there is none here"

    def _refuse_cuda(self) -> str | None:
        """What is built for the GPU that is here is also timed on it."""
        return None if known.has_cuda() else f"cuda-bindings is not installed here ({known.CUDA_INSTALL})"

    def under(self, *, limit_s: float, tell: Callable[[float, str], None], cache: Path | None = None) -> TensorRt:
        """The same runtime with ``limit_s`` for each build, which tells ``tell`` how far it is, and builds nothing that lies in ``cache``."""

        def on_progress(progress: Progress) -> None:
            tell(progress.share, f"engine: {progress.phase}, {progress.done} of {progress.steps}")

        return TensorRt(
            self._flavour, profiles=self._profiles, limit_s=limit_s, on_progress=on_progress, shelf=Shelf(cache)
        )

    def load(self) -> None:
        """Import the library."""
        importlib.import_module(self._module())

    def compile(self, model: Path, recipe: Recipe, target: Target) -> Artifact:
        """Build ``model.engine`` beside ``model``, or take it out of the cache; raises :class:`~edgeopt.errors.CompileFailed` with TensorRT's reason."""
        del recipe
        order = Order(
            module=self._module(),
            model=str(model),
            engine=str(model.with_name(ENGINE_FILE)),
            gpus=tuple(gpu_name(value) for value in target.compute_capability),
            profiles=self._profiles,
            workspace_bytes=self._workspace_bytes(target),
        )
        kept = preflight.kept(model)
        told = self._device(target)
        found = self._shelf.find(self._key(model, order, self.version, told), Path(order.engine))
        if found is None:
            found = self._built(model, order, target, told, quantized=kept.quantized_products)
        else:
            self._on_progress(Progress(phase="Taking it from the cache", done=1, steps=1, share=1.0))
        session: dict[str, Scalar] = {
            "outputs": json.dumps(kept.outputs),
            "profiles": json.dumps(wire.encode(self._profiles)),
        }
        return self._artifact(Path(order.engine), found, session)

    def _built(self, model: Path, order: Order, target: Target, told: str, *, quantized: int) -> Finished:
        prepared = preflight.prepare(model, capabilities=target.compute_capability, profiles=self._profiles)
        started_s = time.monotonic()
        try:
            parsed = replace(order, model=str(prepared))
            answer = build.build(parsed, limit_s=self._limit_s, on_progress=self._on_progress)
        finally:
            if prepared != model:
                prepared.unlink(missing_ok=True)
        seconds, version = time.monotonic() - started_s, answer.version or self.version
        key = self._key(model, order, version, told)
        engine = Path(order.engine)
        facts = _facts(answer, order, key, quantized=quantized, seconds=seconds)
        found = Finished(facts=facts, version=version, sha256=sha256_of(engine))
        self._shelf.keep(found, engine)
        return found

    def _key(self, model: Path, order: Order, version: str, told: str) -> str:
        return engine_key(model_files(model), order, flavour=self.name, version=version, device=told)

    @contextmanager
    def open(self, artifact: Artifact) -> Iterator[Session]:
        """A session on the GPU; :class:`~edgeopt.errors.CompileFailed` where there is none."""
        if not device.gpu_present():
            raise CompileFailed(
                f"{Path(artifact.path).name} runs on an NVIDIA GPU, and there is none here or its driver is not loaded",
                hint="Serve it on the device it was built for, or open the model.onnx beside it.",
            )
        from edgeopt.runtimes.trt import execute

        outputs = json.loads(str(dict(artifact.session).get("outputs", "[]")))
        with execute.opened(Path(artifact.path), self._module(), outputs=outputs) as session:
            yield session

    def node_seconds(self, model: Path, feeds: Feeds, *, threads: int) -> dict[str, float]:
        """Not told by engines; raises :class:`~edgeopt.errors.MeasureFailed`."""
        del model, feeds, threads
        raise MeasureFailed(f"{self.name} does not tell the seconds of a node")

    def node_bytes(self, artifact: Artifact, feeds: Feeds) -> dict[str, int]:
        """Not told by node; raises :class:`~edgeopt.errors.MeasureFailed`. The whole is in ``EngineFacts.traffic_bytes``."""
        del artifact, feeds
        raise MeasureFailed(f"{self.name} does not tell the bytes of a node")

    def observe(
        self, model: Path, samples: Iterable[Feeds], names: Sequence[str], *, threads: int
    ) -> Iterator[dict[str, Array]]:
        """Not possible inside of an engine; raises :class:`~edgeopt.errors.MeasureFailed`."""
        del model, samples, names, threads
        raise MeasureFailed(f"{self.name} does not show what lies inside of an engine")

    def _module(self) -> str:
        module = known.module_of(self._flavour)
        if module is None:
            raise CompileFailed(f"{self.name} is not installed here", hint=f"Run {self._flavour.install}.")
        return module

    def _workspace_bytes(self, target: Target) -> int:
        """For scratch memory of kernels; 0, all that the GPU has, where it has its own, and for RTX, which picks kernels on the device."""
        shared = self._flavour.needs_gpu and target.arch in _BOARDS
        return int(_WORKSPACE_SHARE * target.memory_bytes) if shared else 0

    def _device(self, target: Target) -> str:
        """TensorRT's engines are for the very GPU and driver they were built on, and so are RTX's for the one that is here; others for those they name."""
        if target.compute_capability and not self._flavour.needs_gpu:
            return ""
        size = cuda.size(cuda.binding()) if known.has_cuda() else ""
        return "; ".join((target.device, *device.gpu_names(), size, device.gpu_driver()))

    def _artifact(self, engine: Path, found: Finished, session: dict[str, Scalar]) -> Artifact:
        return Artifact(
            path=str(engine),
            format="tensorrt-engine",
            sha256=found.sha256,
            bytes=engine.stat().st_size,
            runtime=self.name,
            runtime_version=found.version,
            session=tuple(sorted(session.items())),
            engine=found.facts,
        )


def rtx() -> TensorRt:
    """TensorRT for RTX, as the catalogue makes it."""
    return TensorRt(known.RTX)


def gpu_name(capability: float) -> str:
    """``SM86`` for 8.6."""
    return f"SM{round(capability * 10)}"


def _facts(answer: Answer, order: Order, key: str, *, quantized: int, seconds: float) -> EngineFacts:
    found = coverage.of_build(answer.tables)
    memory = dict(answer.memory)
    return EngineFacts(
        key=key,
        gpus=order.gpus,
        build_s=round(seconds, 3),
        weights_bytes=memory.get("weights"),
        activation_bytes=memory.get("activation"),
        traffic_bytes=found.traffic_bytes if found else None,
        layers=found.layers if found else None,
        products=found.products if found else None,
        int8_products=found.int8 if found else None,
        packed_products=found.packed if found else None,
        half_products=found.half if found else None,
        quantized_products=quantized,
    )


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
