"""Running an engine, on a stand-in for CUDA that keeps a stream's order: nothing happens on it until somebody waits, and time is counted, not taken."""

# ruff: noqa: N802, N815  # the stand-ins have the libraries' own names

from __future__ import annotations

import ctypes
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.errors import CompileFailed, MeasureFailed
from edgeopt.protocols import GpuSession
from edgeopt.runtimes.trt import cuda as door
from edgeopt.runtimes.trt import execute
from edgeopt.stages import measure
from edgeopt.stages.measure import Effort

WORK_MS, BYTES_A_MS = 5.0, 64


class Gpu:
    """The surface of ``cuda.bindings.runtime``: one stream, a queue of what was asked, a clock that the work moves."""

    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out")

    def __init__(self) -> None:
        self.queue: list[tuple[str, Callable[[], None]]] = []
        self.now_ms = 0.0
        self.events: dict[int, float] = {}
        self.held: dict[int, Any] = {}
        self.pinned: set[int] = set()
        self.behind: list[int] = []
        """How many inferences wait behind the one that is waited for, at each wait."""
        self.streams = self.marks = self.event = 0

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return 0, 1

    def cudaDeviceGetPCIBusId(self, _length: int, _device: int) -> tuple[int, bytes]:
        return 0, b"0000:01:00.0\0\0\0"

    def cudaGetDeviceProperties(self, _device: int) -> tuple[int, Any]:
        return 0, types.SimpleNamespace(multiProcessorCount=16, totalGlobalMem=8 << 30)

    def cudaMemGetInfo(self) -> tuple[int, int, int]:
        return 0, (1 << 30) - sum(ctypes.sizeof(each) for each in self.held.values()), 1 << 30

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        room = (ctypes.c_uint8 * size)()
        self.held[ctypes.addressof(room)] = room
        return 0, ctypes.addressof(room)

    def cudaMallocHost(self, size: int) -> tuple[int, int]:
        code, place = self.cudaMalloc(size)
        self.pinned.add(place)
        return code, place

    def cudaFree(self, place: int) -> tuple[int]:
        del self.held[place]
        self.pinned.discard(place)
        return (0,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: str, _stream: int) -> tuple[int]:
        assert (to if kind == "out" else source) in self.pinned

        def copy() -> None:
            ctypes.memmove(to, source, size)
            self.now_ms += size / BYTES_A_MS

        self.queue.append((kind, copy))
        return (0,)

    def cudaStreamCreate(self) -> tuple[int, int]:
        self.streams += 1
        return 0, 7

    def cudaStreamDestroy(self, _stream: int) -> tuple[int]:
        self.streams -= 1
        return (0,)

    def cudaStreamSynchronize(self, _stream: int) -> tuple[int]:
        while self.queue:
            self.queue.pop(0)[1]()
        return (0,)

    def cudaEventCreate(self) -> tuple[int, int]:
        self.marks += 1
        self.event += 1
        return 0, self.event

    def cudaEventRecord(self, event: int, _stream: int) -> tuple[int]:
        self.events.pop(event, None)
        self.queue.append((f"event {event}", lambda: self.events.__setitem__(event, self.now_ms)))
        return (0,)

    def cudaEventSynchronize(self, event: int) -> tuple[int]:
        while event not in self.events:
            self.queue.pop(0)[1]()
        self.behind.append(sum(kind == "work" for kind, _ in self.queue))
        return (0,)

    def cudaEventElapsedTime(self, first: int, second: int) -> tuple[int, float]:
        return 0, self.events[second] - self.events[first]

    def cudaEventDestroy(self, _event: int) -> tuple[int]:
        self.marks -= 1
        return (0,)


class Engine:
    """``low`` and ``high``: the smallest and largest of each row of ``x``, which takes 1 to 8 rows of 4; told in another order than the model's."""

    tensors = (("high", "out", "FLOAT"), ("x", "in", "FLOAT"), ("low", "out", "HALF"))
    num_io_tensors = 3
    device_memory_size_v2 = 0

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.shape, self.places = gpu, (1, 4), dict[str, int]()
        self.stops = False

    def get_tensor_name(self, index: int) -> str:
        return self.tensors[index][0]

    def get_tensor_mode(self, name: str) -> str:
        return next(mode for each, mode, _ in self.tensors if each == name)

    def get_tensor_location(self, name: str) -> str:
        return "device"

    def get_tensor_dtype(self, name: str) -> Any:
        return types.SimpleNamespace(name=next(kind for each, _, kind in self.tensors if each == name))

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, 4), (2, 4), (8, 4)]

    def create_execution_context(self) -> Engine:
        return self

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return len(shape) == 2 and shape[1] == 4 and 1 <= shape[0] <= 8

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0],)

    def set_tensor_address(self, name: str, place: int) -> bool:
        assert place not in self.gpu.pinned
        self.places[name] = place
        return True

    def execute_async_v3(self, stream: int) -> bool:
        shape, places = self.shape, dict(self.places)

        def work() -> None:
            held = {name: self.gpu.held[place] for name, place in places.items()}
            given = np.frombuffer(held["x"], np.float32)[: shape[0] * 4].reshape(shape)
            np.frombuffer(held["low"], np.float16)[: shape[0]] = given.min(axis=1)
            np.frombuffer(held["high"], np.float32)[: shape[0]] = given.max(axis=1)
            self.gpu.now_ms += WORK_MS

        self.gpu.queue.append(("work", work))
        return not self.stops


class Library:
    """TensorRT's surface: what is deserialized is the engine above, unless the file says otherwise."""

    __version__ = "11.4.0"
    TensorIOMode = types.SimpleNamespace(INPUT="in")
    TensorLocation = types.SimpleNamespace(HOST="host")

    class ILogger:
        def __init__(self) -> None: ...

    def __init__(self, gpu: Gpu) -> None:
        self.engine = Engine(gpu)

    def Runtime(self, logger: Any) -> Any:
        def deserialize(plan: bytes) -> Engine | None:
            if plan == b"good":
                return self.engine
            logger.log("Severity.ERROR", "The engine plan file is\nnot compatible")
            return None

        return types.SimpleNamespace(deserialize_cuda_engine=deserialize)


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


@pytest.fixture
def library(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library(gpu)
    monkeypatch.setitem(sys.modules, "stand_in_tensorrt", library)  # type: ignore[arg-type]  # imported by its name
    return library


@pytest.fixture
def session(gpu: Gpu, library: Library, tmp_path: Path) -> Iterator[execute.EngineSession]:
    (tmp_path / "model.engine").write_bytes(b"good")
    with execute.opened(tmp_path / "model.engine", "stand_in_tensorrt", outputs=["low", "high"], cuda=gpu) as opened:
        yield opened


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)}


def test_outputs_come_in_the_models_order_and_type_for_every_length(session: execute.EngineSession) -> None:
    assert (session.input_names, session.output_names) == (("x",), ("low", "high"))
    for count in (1, 8, 3):
        feeds = rows(count, seed=count)
        low, high = session.run(feeds)
        assert (low.dtype, high.dtype) == (np.float16, np.float32)
        np.testing.assert_array_equal(low, feeds["x"].min(axis=1).astype(np.float16))
        np.testing.assert_array_equal(high, feeds["x"].max(axis=1))


def test_answers_stay_what_they_were_when_the_next_inference_runs(session: execute.EngineSession) -> None:
    first = session.run(rows(4, seed=1))
    kept = [array.copy() for array in first]
    session.run(rows(4, seed=2))
    for array, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_inputs_of_another_type_and_order_in_memory_are_converted(session: execute.EngineSession) -> None:
    feeds = rows(4)
    wide = {"x": np.asfortranarray(feeds["x"].astype(np.float64))}
    np.testing.assert_array_equal(session.run(wide)[1], feeds["x"].max(axis=1))


def test_shape_outside_of_the_profile_is_named_with_what_is_inside(session: execute.EngineSession) -> None:
    with pytest.raises(MeasureFailed, match=r"shape \[9, 4\], but for \[1, 4\] to \[8, 4\]"):
        session.run(rows(9))


def test_time_is_the_gpus_own_with_copies_and_one_inference_waits_behind(
    session: execute.EngineSession, gpu: Gpu
) -> None:
    found = session.durations_ns(rows(8), 6)
    moved = (8 * 4 * 4 + 8 * 4 + 8 * 2) / BYTES_A_MS
    assert found == [round((WORK_MS + moved) * 1e6)] * 6
    # one is enqueued before anybody waits for the one ahead of it; the last has nobody behind
    assert gpu.behind == [1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_inferences_are_timed_as_well(session: execute.EngineSession, count: int) -> None:
    assert len(session.durations_ns(rows(1), count)) == count


def test_conditions_tell_the_parts_of_the_last_timing(session: execute.EngineSession) -> None:
    session.durations_ns(rows(8), 5)
    told = session.conditions()
    assert told["work_ms"] == WORK_MS
    assert told["copies_in_ms"] == 8 * 4 * 4 / BYTES_A_MS
    assert told["copies_out_ms"] == (8 * 4 + 8 * 2) / BYTES_A_MS
    assert told["enqueue_ms"] >= 0


def test_conditions_before_any_timing_are_no_error(session: execute.EngineSession) -> None:
    assert "work_ms" not in session.conditions()


def test_session_conforms_and_counts_the_gpus_memory(session: execute.EngineSession) -> None:
    assert isinstance(session, GpuSession)
    session.run(rows(8))
    # each tensor has a place on the GPU, and the stand-in counts its page-locked twin as well
    assert session.device_bytes() == 2 * (8 * 4 * 4 + 8 * 4 + 8 * 2)


def test_everything_is_given_back(gpu: Gpu, library: Library, tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(b"good")
    with execute.opened(tmp_path / "model.engine", "stand_in_tensorrt", cuda=gpu) as session:
        session.run(rows(2))
        session.durations_ns(rows(3), 3)
        library.engine.stops = True
        with pytest.raises(MeasureFailed, match="stopped"):
            session.durations_ns(rows(3), 3)
    assert (gpu.held, gpu.streams, gpu.marks) == ({}, 0, 0)


def test_callers_from_several_threads_get_their_own_answers(session: execute.EngineSession) -> None:
    wrong: list[int] = []

    def ask(seed: int) -> None:
        for _ in range(50):
            feeds = rows(1 + seed, seed=seed)
            if not np.array_equal(session.run(feeds)[1], feeds["x"].max(axis=1)):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_engine_that_this_release_does_not_take_says_why(gpu: Gpu, library: Library, tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(b"other release")
    with (
        pytest.raises(CompileFailed, match=r"does not take model\.engine: The engine plan file is not compatible"),
        execute.opened(tmp_path / "model.engine", "stand_in_tensorrt", cuda=gpu),
    ):
        pass


def test_output_that_the_engine_lacks_and_type_that_numpy_lacks_are_refused(gpu: Gpu, library: Library) -> None:
    with pytest.raises(CompileFailed, match="lacks the output 'middle'"):
        execute.EngineSession(library, gpu, library.engine, outputs=["low", "middle"])  # type: ignore[arg-type]
    library.engine.tensors = (("x", "in", "BF16"),)  # type: ignore[assignment]
    library.engine.num_io_tensors = 1
    with pytest.raises(CompileFailed, match="bf16, which numpy has no type for"):
        execute.EngineSession(library, gpu, library.engine)  # type: ignore[arg-type]


class Held:
    """A runner's surface over a session, as ``measure`` takes turns with it."""

    def __init__(self, session: execute.EngineSession, feeds: dict[str, np.ndarray]) -> None:
        self._session, self._feeds = session, feeds

    def durations_s(self, count: int) -> list[float]:
        return [duration / 1e9 for duration in self._session.durations_ns(self._feeds, count)]


def test_race_of_two_sessions_finds_the_ratio_of_their_gpu_times(session: execute.EngineSession) -> None:
    clock = iter(range(100_000))
    short, long = (Held(session, rows(count)) for count in (1, 8))
    timing = measure.compare(
        long,  # type: ignore[arg-type]
        short,  # type: ignore[arg-type]
        Effort(longest_s=1e6),
        clock=lambda: float(next(clock)),
        sleep=lambda _s: None,
    )
    expected = (WORK_MS + 8 * 22 / BYTES_A_MS) / (WORK_MS + 22 / BYTES_A_MS)
    assert timing.speedup.value == pytest.approx(expected, rel=1e-6)


def test_failed_call_is_named_as_cuda_names_it() -> None:
    class Error(int):
        name = "cudaErrorMemoryAllocation"

    with pytest.raises(MeasureFailed, match=r"cudaErrorMemoryAllocation \(2\)"):
        door.checked((Error(2), None))


def test_probe_says_why_there_is_no_gpu(gpu: Gpu) -> None:
    assert door.absence(gpu) is None
    gpu.cudaGetDeviceCount = lambda: (35, None)  # type: ignore[assignment,method-assign]
    assert "(35)" in str(door.absence(gpu))


def test_real_binding_has_every_function_that_is_used_and_its_probe_never_fails() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    used = [name for name in vars(door.Cuda) if name.startswith("cuda")]
    assert len(used) == 17
    assert [name for name in used if not hasattr(real, name)] == []
    assert {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"} <= set(dir(real.cudaMemcpyKind))
    reason = door.absence(door.binding())
    assert reason is None or reason.startswith("CUDA finds no GPU: cudaError")


def test_size_of_the_gpu_is_told_where_cuda_tells_it() -> None:
    gpu = Gpu()
    assert door.size(gpu) == "16 multiprocessors, 8589934592 bytes"
    gpu.cudaGetDeviceProperties = lambda _device: (35, None)  # type: ignore[method-assign,assignment,return-value]
    assert door.size(gpu) == ""
