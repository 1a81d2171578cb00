"""ONNX Runtime on a CPU: compiles, opens and observes ONNX models.

The only module that imports onnxruntime. An artifact of this runtime is the ONNX file itself together with the session
settings it was measured with; whoever serves it must open it with the same settings, since a graph level below ``all``
alone costs up to 2.7 times. Errors of onnxruntime are translated here.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt import fingerprint
from edgeopt.errors import CompileFailed, MeasureFailed
from edgeopt.integrity import model_files, sha256_of
from edgeopt.records import Artifact, Recipe, Scalar, Signature, Target

if TYPE_CHECKING:
    from edgeopt.protocols import Array, Feeds

_QUIET = 4
"""ORT_LOGGING_LEVEL_FATAL: what goes wrong is raised anyway; its log lines would reach the user twice."""
_PROFILED_RUNS = 8
_KERNEL_SUFFIX = "_kernel_time"
_MOVED = ("parameter_size", "activation_size", "output_size")
_PROVIDERS = ["CPUExecutionProvider"]


class OrtSession:
    """An opened model; ``run`` takes and gives numpy arrays."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.input_names: tuple[str, ...] = tuple(item.name for item in session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(item.name for item in session.get_outputs())

    def run(self, feeds: Feeds) -> list[Array]:
        """One inference, outputs in the order of ``output_names``; :class:`MeasureFailed` with the runtime's reason."""
        try:
            outputs: list[Array] = self._session.run(list(self.output_names), dict(feeds))
        except _failures() as error:
            raise MeasureFailed(f"onnxruntime stopped while running the model: {_first_line(error)}") from error
        return outputs


class OnnxRuntime:
    """The ``onnxruntime`` entry of the catalogue."""

    name = "onnxruntime"

    def __init__(self) -> None:
        self.version = fingerprint.installed(self.name) or ""

    def refuse(self, signature: Signature, target: Target) -> str | None:
        """Only CPU targets are served here, by whichever of its packages is installed."""
        del signature
        if not self.version:
            return "onnxruntime is not installed here (pip install onnxruntime)"
        if target.name not in ("cpu", "arm"):
            return f"onnxruntime serves cpu and arm targets, not {target.name}"
        return None

    def load(self) -> None:
        """Import onnxruntime."""
        import onnxruntime  # noqa: F401

    def compile(self, model: Path, recipe: Recipe, target: Target) -> Artifact:
        """Open ``model`` once with the session settings of ``target``; what opens is an artifact.

        Raises :class:`CompileFailed` with onnxruntime's own reason, such as an operator it has no kernel for.
        """
        settings = session_settings(target)
        try:
            _start(model, dict(settings))
        except _failures() as error:
            raise CompileFailed(
                f"onnxruntime {self.version} does not open the model made by {recipe.label}: {_first_line(error)}",
                hint="Export the model with operators that this onnxruntime has kernels for.",
            ) from error
        return Artifact(
            path=str(model),
            format="onnx",
            sha256=sha256_of(model),
            bytes=sum(file.stat().st_size for file in model_files(model)),
            runtime=self.name,
            runtime_version=self.version,
            session=settings,
        )

    @contextmanager
    def open(self, artifact: Artifact) -> Iterator[OrtSession]:
        """A session with the artifact's own settings; :class:`CompileFailed` where it does not open."""
        try:
            session = _start(Path(artifact.path), dict(artifact.session))
        except _failures() as error:
            raise CompileFailed(
                f"onnxruntime {self.version} does not open {artifact.path}: {_first_line(error)}"
            ) from error
        yield OrtSession(session)

    def node_seconds(self, model: Path, feeds: Feeds, *, threads: int) -> dict[str, float]:
        """Seconds that one warm inference spends in each node of the optimized graph, by the name onnxruntime gave it.

        Fused nodes carry the name of the node or of the value that they replace, with a suffix.
        """
        return _kernel_seconds(_profiled(model, feeds, {"intra_op_num_threads": threads}, runs=_PROFILED_RUNS))

    def node_bytes(self, artifact: Artifact, feeds: Feeds) -> dict[str, int]:
        """Bytes that one inference reads and writes in each node of the optimized graph: constants, inputs and outputs."""
        # a packed constant is the kernel's own and would no longer be counted
        settings = {**dict(artifact.session), "keep_constants": True}
        return _kernel_bytes(_profiled(Path(artifact.path), feeds, settings, runs=1))

    def observe(
        self, model: Path, samples: Iterable[Feeds], names: Sequence[str], *, threads: int
    ) -> Iterator[dict[str, Array]]:
        """Run ``model`` over ``samples`` and yield the outputs called ``names``, one sample at a time.

        Raises :class:`MeasureFailed` where a sample does not run.
        """
        try:
            session = _start(model, {"intra_op_num_threads": threads, "graph_optimization_level": "all"})
        except _failures() as error:
            raise MeasureFailed(f"onnxruntime does not open the model to observe: {_first_line(error)}") from error
        for index, feeds in enumerate(samples):
            try:
                outputs = session.run(list(names), dict(feeds))
            except _failures() as error:
                raise MeasureFailed(f"calibration sample {index} does not run: {_first_line(error)}") from error
            yield dict(zip(names, outputs, strict=True))


def session_settings(target: Target) -> tuple[tuple[str, Scalar], ...]:
    """The settings an artifact for ``target`` is measured and served with, sorted by name."""
    return (
        ("execution_mode", "sequential"),
        ("graph_optimization_level", "all"),
        ("inter_op_num_threads", 1),
        ("intra_op_num_threads", target.threads),
    )


def _profiled(model: Path, feeds: Feeds, settings: Mapping[str, Scalar], *, runs: int) -> list[dict[str, Any]]:
    """The events of ``runs`` inferences; :class:`MeasureFailed` with the runtime's reason."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            session = _start(model, {**settings, "profile_prefix": str(Path(folder) / "profile")})
            for _ in range(runs):
                session.run(None, dict(feeds))
        except _failures() as error:
            raise MeasureFailed(f"onnxruntime does not profile the model: {_first_line(error)}") from error
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    return events


def _start(model: Path, settings: Mapping[str, Scalar]) -> Any:
    import onnxruntime as ort

    levels = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    if prefix := settings.get("profile_prefix"):
        options.enable_profiling = True
        options.profile_file_prefix = str(prefix)
    if settings.get("fuse_int8_activations"):
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    if settings.get("float_codes"):
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if settings.get("keep_constants"):
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.intra_op_num_threads = int(settings.get("intra_op_num_threads", 0))
    options.inter_op_num_threads = int(settings.get("inter_op_num_threads", 1))
    options.graph_optimization_level = {
        "off": levels.ORT_DISABLE_ALL,
        "basic": levels.ORT_ENABLE_BASIC,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "all": levels.ORT_ENABLE_ALL,
    }[str(settings.get("graph_optimization_level", "all"))]
    return ort.InferenceSession(str(model), options, providers=_PROVIDERS)


def _kernel_seconds(events: list[dict[str, Any]]) -> dict[str, float]:
    durations: dict[str, list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_KERNEL_SUFFIX):
            durations.setdefault(name.removesuffix(_KERNEL_SUFFIX), []).append(event["dur"] / 1e6)
    return {name: statistics.median(seconds) for name, seconds in durations.items()}


def _kernel_bytes(events: list[dict[str, Any]]) -> dict[str, int]:
    """Of one inference; a node in a loop moves its bytes in every turn."""
    moved: dict[str, int] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_KERNEL_SUFFIX):
            sizes = event.get("args", {})
            moved[name] = moved.get(name, 0) + sum(int(sizes.get(part, 0)) for part in _MOVED)
    return {name.removesuffix(_KERNEL_SUFFIX): size for name, size in moved.items()}


def _failures() -> tuple[type[BaseException], ...]:
    """The classes that onnxruntime raises: its own derive from Exception directly and share no base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception)]
    return (*own, RuntimeError, ValueError, MemoryError)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:400]
