"""The CUDA runtime as ``execute`` needs it: buffers, copies and events on one stream, through cuda-bindings and nothing else.

The binding's functions return their error as the first of a tuple; here it becomes a :class:`~edgeopt.errors.MeasureFailed` with CUDA's own name for it. Memory on the
host is page-locked, since only such copies run beside the GPU. The binding is a parameter: it is imported by :func:`binding` alone.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from edgeopt.errors import CompileFailed, MeasureFailed
from edgeopt.runtimes.trt import flavours

if TYPE_CHECKING:
    from edgeopt.protocols import Array

_MODULE = "cuda.bindings.runtime"


class CopyKinds(Protocol):
    @property
    def cudaMemcpyHostToDevice(self) -> Any: ...  # noqa: N802  # the library's own name, as all below
    @property
    def cudaMemcpyDeviceToHost(self) -> Any: ...  # noqa: N802


class Cuda(Protocol):
    """What is used of ``cuda.bindings.runtime``; each function returns (error, values ...)."""

    @property
    def cudaMemcpyKind(self) -> CopyKinds: ...  # noqa: N802
    def cudaGetDeviceCount(self) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaDeviceGetPCIBusId(self, length: int, device: int, /) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaGetDeviceProperties(self, device: int, /) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaMemGetInfo(self) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaMalloc(self, size: int, /) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaFree(self, place: Any, /) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaMallocHost(self, size: int, /) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaFreeHost(self, place: Any, /) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaMemcpyAsync(self, to: Any, source: Any, size: int, kind: Any, stream: Any, /) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaStreamCreate(self) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaStreamSynchronize(self, stream: Any, /) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaStreamDestroy(self, stream: Any, /) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaEventCreate(self) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaEventRecord(self, event: Any, stream: Any, /) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaEventSynchronize(self, event: Any, /) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaEventElapsedTime(self, first: Any, second: Any, /) -> tuple[Any, ...]: ...  # noqa: N802
    def cudaEventDestroy(self, event: Any, /) -> tuple[Any, ...]: ...  # noqa: N802


def binding() -> Cuda:
    """cuda-bindings; raises :class:`~edgeopt.errors.CompileFailed` where it is not installed."""
    try:
        return cast("Cuda", importlib.import_module(_MODULE))
    except ImportError as error:
        raise CompileFailed(
            f"cuda-bindings is not installed ({error})", hint=f"Run {flavours.CUDA_INSTALL}."
        ) from error


def absence(cuda: Cuda) -> str | None:
    """Why CUDA finds no GPU, in one sentence; None where it finds one. Never fails: this is the probe."""
    code, *count = cuda.cudaGetDeviceCount()
    if int(code) != 0:
        return f"CUDA finds no GPU: {_name(code)} ({int(code)})"
    return None if count and count[0] else "CUDA finds no GPU: there are 0"


def checked(result: tuple[Any, ...]) -> Any:
    """What a CUDA call returned, None where nothing; raises :class:`~edgeopt.errors.MeasureFailed` where it failed."""
    code, *values = result
    if int(code) != 0:
        raise MeasureFailed(f"CUDA answered {_name(code)} ({int(code)})")
    return values[0] if values else None


def free_bytes(cuda: Cuda) -> int:
    """Memory of the GPU that nobody holds."""
    code, *values = cuda.cudaMemGetInfo()
    return int(values[0]) if int(code) == 0 else 0


def size(cuda: Cuda) -> str:
    """``16 multiprocessors, 8589934592 bytes`` of the GPU that engines run on; empty where CUDA does not tell. Never fails."""
    code, *told = cuda.cudaGetDeviceProperties(0)
    if int(code) != 0 or not told:
        return ""
    return f"{told[0].multiProcessorCount} multiprocessors, {told[0].totalGlobalMem} bytes"


def _name(code: Any) -> str:
    return str(getattr(code, "name", code))


class Buffer:
    """A tensor's place on the GPU and its page-locked twin on the host; both grow and never shrink."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._room = -1
        self.device = 0
        self._host = 0

    def fit(self, size: int) -> bool:
        """Make room for ``size`` bytes; True where the tensor has moved."""
        if size <= self._room:
            return False
        self.free()
        self.device = int(checked(self._cuda.cudaMalloc(max(1, size))))
        self._host = int(checked(self._cuda.cudaMallocHost(max(1, size))))
        self._room = size
        return True

    @property
    def host(self) -> int:
        return self._host

    def view(self, shape: tuple[int, ...], kind: np.dtype[Any]) -> Array:
        """The host's twin as an array; what it shows changes with the next copy."""
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        raw = (ctypes.c_uint8 * size).from_address(self._host)
        array: Array = np.frombuffer(memoryview(raw), dtype=kind).reshape(shape) if size else np.empty(shape, kind)
        return array

    def copy_in(self, size: int, stream: Any) -> None:
        """Enqueue host to GPU."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        checked(self._cuda.cudaMemcpyAsync(self.device, self._host, size, kind, stream))

    def copy_out(self, size: int, stream: Any) -> None:
        """Enqueue GPU to host."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        checked(self._cuda.cudaMemcpyAsync(self._host, self.device, size, kind, stream))

    def free(self) -> None:
        """Give both back. A failure is left alone: the process ends soon, and with it the memory."""
        if self._room >= 0:
            self._cuda.cudaFree(self.device)
            self._cuda.cudaFreeHost(self._host)
        self._room, self.device, self._host = -1, 0, 0


class Marks:
    """Four events of one inference on a stream: before the copies in, before the work, after it, after the copies out."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._events = [checked(cuda.cudaEventCreate()) for _ in range(4)]

    def record(self, index: int, stream: Any) -> None:
        checked(self._cuda.cudaEventRecord(self._events[index], stream))

    def spans_ms(self) -> tuple[float, float, float]:
        """Wait for the last event; milliseconds of the copies in, the work and the copies out."""
        checked(self._cuda.cudaEventSynchronize(self._events[3]))
        pairs = zip(self._events, self._events[1:], strict=False)
        into, work, back = (float(checked(self._cuda.cudaEventElapsedTime(one, two))) for one, two in pairs)
        return into, work, back

    def close(self) -> None:
        for event in self._events:
            self._cuda.cudaEventDestroy(event)
