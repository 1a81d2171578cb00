"""Running an engine on a GPU through cuda-bindings: buffers made once, one inference at a time, numpy in and out.

Stands behind ``runtime.open``. Written against the documented interface and never run: no GPU was at hand. Its tests are marked ``gpu``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.errors import CompileFailed, MeasureFailed

if TYPE_CHECKING:
    from edgeopt.protocols import Array, Feeds


class EngineSession:
    """An engine that is loaded on the GPU."""

    def __init__(self, library: Any, cuda: Any, engine: Any) -> None:
        self._library, self._cuda, self._engine = library, cuda, engine
        self._context = engine.create_execution_context()
        self._stream = _checked(cuda.cudaStreamCreate())
        self._buffers: dict[str, tuple[int, int]] = {}
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        takes = {name: engine.get_tensor_mode(name) == library.TensorIOMode.INPUT for name in names}
        self.input_names: tuple[str, ...] = tuple(name for name in names if takes[name])
        self.output_names: tuple[str, ...] = tuple(name for name in names if not takes[name])

    def run(self, feeds: Feeds) -> list[Array]:
        """One inference, copies included; outputs in the order of ``output_names``."""
        copies = self._cuda.cudaMemcpyKind
        held = {name: np.ascontiguousarray(feeds[name]) for name in self.input_names}
        for name, array in held.items():
            if not self._context.set_input_shape(name, array.shape):
                raise MeasureFailed(f"the engine was not built for input {name!r} of shape {list(array.shape)}")
            place = self._place(name, array.nbytes)
            arguments = (place, array.ctypes.data, array.nbytes, copies.cudaMemcpyHostToDevice, self._stream)
            _checked(self._cuda.cudaMemcpyAsync(*arguments))
        outputs = [self._output(name) for name in self.output_names]
        if not self._context.execute_async_v3(int(self._stream)):
            raise MeasureFailed("TensorRT stopped while running the engine")
        for name, array in zip(self.output_names, outputs, strict=True):
            place = self._place(name, array.nbytes)
            back = (array.ctypes.data, place, array.nbytes, copies.cudaMemcpyDeviceToHost, self._stream)
            _checked(self._cuda.cudaMemcpyAsync(*back))
        _checked(self._cuda.cudaStreamSynchronize(self._stream))
        return outputs

    def close(self) -> None:
        """Give the GPU's memory back."""
        for place, _ in self._buffers.values():
            self._cuda.cudaFree(place)
        self._buffers.clear()
        self._cuda.cudaStreamDestroy(self._stream)

    def _output(self, name: str) -> Array:
        shape = tuple(self._context.get_tensor_shape(name))
        kind = np.dtype(self._library.nptype(self._engine.get_tensor_dtype(name)))
        array: Array = np.empty(shape, kind)
        self._place(name, array.nbytes)
        return array

    def _place(self, name: str, size: int) -> int:
        """Where the tensor lies on the GPU, with room for ``size`` bytes."""
        place, room = self._buffers.get(name, (0, -1))
        if room < size:
            if place:
                self._cuda.cudaFree(place)
            place = int(_checked(self._cuda.cudaMalloc(max(1, size))))
            self._buffers[name] = (place, size)
            self._context.set_tensor_address(name, place)
        return place


@contextmanager
def opened(engine: Path, module: str) -> Iterator[EngineSession]:
    """A session on ``engine``; raises :class:`~edgeopt.errors.CompileFailed` where this GPU or release does not take it."""
    library = importlib.import_module(module)
    try:
        cuda = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise CompileFailed("cuda-bindings is not installed", hint="Run pip install cuda-bindings.") from error
    runtime = library.Runtime(library.Logger(library.Logger.ERROR))
    loaded = runtime.deserialize_cuda_engine(engine.read_bytes())
    if loaded is None:
        raise CompileFailed(
            f"this GPU or this release, {library.__version__}, does not take {engine.name}",
            hint="Build the engine again on this device from the model.onnx beside it.",
        )
    session = EngineSession(library, cuda, loaded)
    try:
        yield session
    finally:
        session.close()


def _checked(result: tuple[Any, ...]) -> Any:
    """What a CUDA call returned; MeasureFailed where it failed."""
    code, *values = result
    if int(code) != 0:
        raise MeasureFailed(f"CUDA answered {code!s}")
    return values[0] if values else None
