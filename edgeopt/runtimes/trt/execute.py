"""Running an engine on a GPU: numpy in and out for whoever judges it, GPU time by CUDA's events for whoever times it.

Stands behind ``runtime.open``; conforms to :class:`~edgeopt.protocols.GpuSession`, so that the judges, the races and the confirmation work on it as on any session. One
stream, one context, buffers made once and page-locked on the host. Timing keeps one inference enqueued ahead of the one that runs, so that what it costs
to enqueue hides behind the GPU's work; each inference is measured from before its copies in to after its copies out, by events on the stream.
Never run on a GPU so far: a stand-in for CUDA that keeps the order of a stream tests it, and tests marked ``gpu`` wait.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edgeopt.errors import CompileFailed, MeasureFailed
from edgeopt.runtimes.trt import telemetry
from edgeopt.runtimes.trt.api import Context, Engine, Library
from edgeopt.runtimes.trt.cuda import Buffer, Cuda, Marks, binding, checked, free_bytes

if TYPE_CHECKING:
    from edgeopt.protocols import Array, Feeds

_KINDS = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}
"""TensorRT's names of data types to numpy's; numpy has no others."""
_LANES = 2
"""Inferences under way while timing: the one that runs and the one behind it."""


class EngineSession:
    """An engine that is loaded on the GPU."""

    def __init__(
        self, library: Library, cuda: Cuda, engine: Engine, *, outputs: Sequence[str] = (), free: int = 0
    ) -> None:
        """``outputs`` is the order to give them in, ``free`` how many bytes the GPU had left before ``engine`` came."""
        self._cuda, self._engine, self._free = cuda, engine, free
        context = engine.create_execution_context()
        if context is None:
            raise CompileFailed("TensorRT makes no context for the engine", hint="Free memory of the GPU.")
        self._context: Context = context
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        takes = {name: engine.get_tensor_mode(name) == library.TensorIOMode.INPUT for name in names}
        self.input_names: tuple[str, ...] = tuple(name for name in names if takes[name])
        self.output_names: tuple[str, ...] = _ordered([name for name in names if not takes[name]], outputs)
        on_host = library.TensorLocation.HOST
        self._on_host = {name for name in names if engine.get_tensor_location(name) == on_host}
        self._kinds = {name: _kind(name, engine.get_tensor_dtype(name).name) for name in names}
        self._buffers = {name: Buffer(cuda) for name in names}
        self._stream = checked(cuda.cudaStreamCreate())
        # whoever serves a model calls from several threads; the buffers are one set
        self._turn = threading.Lock()
        self._spans: list[tuple[float, float, float, float]] = []

    def run(self, feeds: Feeds) -> list[Array]:
        """One inference, copies included; outputs in the order of ``output_names``, each an array of its own."""
        with self._turn:
            sizes = self._load(feeds)
            shapes = self._make_room()
            self._enqueue(sizes, self._sizes(shapes))
            checked(self._cuda.cudaStreamSynchronize(self._stream))
            return [self._buffers[name].view(shapes[name], self._kinds[name]).copy() for name in self.output_names]

    def durations_ns(self, feeds: Feeds, count: int) -> list[int]:
        """Nanoseconds on the GPU of ``count`` inferences of the same ``feeds``, each with its copies, one enqueued ahead."""
        with self._turn:
            self._spans = self._timed(feeds, count)
        return [round(sum(span[:3]) * 1e6) for span in self._spans]

    def conditions(self) -> dict[str, float]:
        """How the last timing went: the medians of its parts in milliseconds, and what the GPU says of itself right after."""
        names = ("copies_in_ms", "work_ms", "copies_out_ms", "enqueue_ms")
        parts = {name: median(column) for name, column in zip(names, zip(*self._spans, strict=True), strict=False)}
        return parts | telemetry.readings(self._bus())

    def device_bytes(self) -> int:
        """What the GPU has less since before the engine was loaded: weights, activations, kernels, buffers; others' doings too."""
        return max(0, self._free - free_bytes(self._cuda))

    def close(self) -> None:
        """Give the GPU's memory back."""
        for buffer in self._buffers.values():
            buffer.free()
        self._cuda.cudaStreamDestroy(self._stream)

    def _timed(self, feeds: Feeds, count: int) -> list[tuple[float, float, float, float]]:
        """Of each inference the milliseconds of copies in, work, copies out on the GPU, and of enqueuing on the host."""
        sizes = self._load(feeds)
        out = self._sizes(self._make_room())
        lanes = [Marks(self._cuda) for _ in range(min(_LANES, max(1, count)))]
        spans: list[tuple[float, float, float, float]] = []
        enqueued_ms = [0.0] * len(lanes)
        try:
            for turn in range(count + len(lanes) - 1):
                if turn < count:
                    started = time.perf_counter()
                    self._enqueue(sizes, out, lanes[turn % len(lanes)])
                    enqueued_ms[turn % len(lanes)] = (time.perf_counter() - started) * 1e3
                if (done := turn - len(lanes) + 1) >= 0:
                    lane = done % len(lanes)
                    spans.append((*lanes[lane].spans_ms(), enqueued_ms[lane]))
        finally:
            self._cuda.cudaStreamSynchronize(self._stream)
            for lane_marks in lanes:
                lane_marks.close()
        return spans

    def _load(self, feeds: Feeds) -> dict[str, int]:
        """Put the inputs into the host's buffers; bytes of each."""
        sizes = {}
        for name in self.input_names:
            array = np.asarray(feeds[name])
            kind = self._kinds[name]
            if not self._context.set_input_shape(name, array.shape):
                raise MeasureFailed(
                    f"the engine was not built for input {name!r:.120} of shape {list(array.shape)}, {self._taken(name)}"
                )
            sizes[name] = array.size * kind.itemsize
            self._place(name, sizes[name])
            self._buffers[name].view(array.shape, kind)[...] = array
        return sizes

    def _make_room(self) -> dict[str, tuple[int, ...]]:
        """Room for the outputs that these inputs give; their shapes."""
        shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in self.output_names}
        for name, shape in shapes.items():
            if any(side < 0 for side in shape):
                raise MeasureFailed(f"the shape of output {name!r:.120} depends on the inputs' values: {list(shape)}")
            self._place(name, self._sizes({name: shape})[name])
        return shapes

    def _sizes(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
        return {
            name: int(np.prod(shape, dtype=np.int64)) * self._kinds[name].itemsize for name, shape in shapes.items()
        }

    def _enqueue(self, inputs: dict[str, int], outputs: dict[str, int], marks: Marks | None = None) -> None:
        """Copies in, work, copies out, all behind what the stream has already."""
        mark: Callable[[int], None] = (lambda _index: None) if marks is None else _recorder(marks, self._stream)
        mark(0)
        for name, size in inputs.items():
            if name not in self._on_host:
                self._buffers[name].copy_in(size, self._stream)
        mark(1)
        if not self._context.execute_async_v3(int(self._stream)):
            raise MeasureFailed("TensorRT stopped while running the engine")
        mark(2)
        for name, size in outputs.items():
            if name not in self._on_host:
                self._buffers[name].copy_out(size, self._stream)
        mark(3)

    def _place(self, name: str, size: int) -> None:
        """Room for ``size`` bytes of a tensor, where the context knows it; what shapes are made of stays on the host."""
        buffer = self._buffers[name]
        if buffer.fit(size):
            self._context.set_tensor_address(name, buffer.host if name in self._on_host else buffer.device)

    def _taken(self, name: str) -> str:
        """Which shapes the engine was built for."""
        least, _, most = (list(shape) for shape in self._engine.get_tensor_profile_shape(name, 0))
        return f"but for {least} to {most}"

    def _bus(self) -> str:
        """The PCI address of the GPU in use, which NVML knows it by; empty where it has none."""
        code, *found = self._cuda.cudaDeviceGetPCIBusId(32, 0)
        return bytes(found[0]).split(b"\0")[0].decode() if int(code) == 0 and found and found[0] else ""


def _recorder(marks: Marks, stream: Any) -> Callable[[int], None]:
    """Records the event of an index on ``stream``."""
    return lambda index: marks.record(index, stream)


@contextmanager
def opened(
    engine: Path, module: str, *, outputs: Sequence[str] = (), cuda: Cuda | None = None
) -> Iterator[EngineSession]:
    """A session on ``engine``; raises :class:`~edgeopt.errors.CompileFailed` where this GPU or release does not take it."""
    library = cast("Library", importlib.import_module(module))
    driver = binding() if cuda is None else cuda
    free = free_bytes(driver)
    heard: list[str] = []
    runtime = library.Runtime(_logger(library, heard))
    loaded = runtime.deserialize_cuda_engine(engine.read_bytes())
    if loaded is None:
        said = f": {heard[0]:.200}" if heard else ""
        raise CompileFailed(
            f"this GPU or this release, {library.__version__}, does not take {engine.name}{said}",
            hint="Build the engine again on this device from the model.onnx beside it.",
        )
    session = EngineSession(library, driver, loaded, outputs=outputs, free=free)
    try:
        yield session
    finally:
        session.close()


def _logger(library: Any, heard: list[str]) -> Any:
    class Logger(library.ILogger):  # type: ignore[misc]  # a base class that is only known here
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if "ERROR" in str(severity):
                heard.append(" ".join(text.split()))

    return Logger()


def _ordered(found: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """The engine's outputs in the model's order, which the engine need not keep."""
    if not wanted:
        return tuple(found)
    if missing := sorted(set(wanted) - set(found)):
        raise CompileFailed(f"the engine lacks the output {missing[0]!r:.120}", hint="Build the engine again.")
    return tuple(wanted)


def _kind(name: str, told: str) -> np.dtype[Any]:
    if told not in _KINDS:
        raise CompileFailed(
            f"{name!r:.120} is {told.lower()}, which numpy has no type for",
            hint="Export the model with float32 inputs and outputs.",
        )
    return np.dtype(_KINDS[told])
