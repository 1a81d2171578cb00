"""The building process from outside: progress, refusals, limits, crashes; with small stand-ins for the process, no TensorRT needed."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import builders
import pytest

from edgeopt import device
from edgeopt.errors import CompileFailed
from edgeopt.records import Recipe
from edgeopt.runtimes.trt import build, flavours
from edgeopt.runtimes.trt.flavours import RTX, TENSORRT, Flavour
from edgeopt.runtimes.trt.order import Order, Progress
from edgeopt.runtimes.trt.runtime import TensorRt, gpu_name

ABSENT = Flavour(
    name="tensorrt-rtx",
    modules=("no_such_module",),
    distributions=(),
    install="pip install it",
    releases=(((1, 7), (1, 7)),),
    needs_gpu=False,
)
PRESENT = dataclasses.replace(ABSENT, modules=("json",))
SPEAK = "import json, sys, time, os, signal; order = json.loads(sys.stdin.readline())\n"
SAY = "def say(**message): print(json.dumps(message), flush=True)\n"


def run(program: str, folder: Path, *, limit_s: float = 20.0, stop: bool = False) -> tuple[str, list[Progress]]:
    order = Order(module="m", model=str(folder / "model.onnx"), engine=str(folder / "model.engine"), gpus=("SM86",))
    seen: list[Progress] = []
    answer = build.build(
        order,
        limit_s=limit_s,
        on_progress=seen.append,
        should_stop=lambda: stop,
        command=(sys.executable, "-c", SPEAK + SAY + program),
    )
    return answer.stage, seen


def test_progress_is_passed_on_until_the_answer(tmp_path: Path) -> None:
    program = (
        "say(progress={'phase': 'Tactics', 'done': 1, 'steps': 4})\n"
        "open(order['engine'], 'w').write('engine')\n"
        "say(answer={'stage': 'built', 'tables': ['x' * 300_000]})\n"
    )
    stage, seen = run(program, tmp_path)
    assert stage == "built"
    assert seen == [Progress(phase="Tactics", done=1, steps=4)]
    assert (tmp_path / "model.engine").exists()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("say(answer={'stage': 'build', 'log': ['[a.cpp::b::1] Error Code 4: no such thing']})", "no such thing"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("print('out of luck', file=sys.stderr); sys.exit(3)", "exit code 3; it last said: out of luck"),
        ("say(answer={'stage': 'import', 'log': ['libnvinfer.so.10: cannot open shared object file']})", "cannot be loaded"),
    ],
    ids=["refused", "crashed", "ended", "not loaded"],
)  # fmt: skip
def test_build_that_fails_leaves_one_sentence_and_no_engine(tmp_path: Path, program: str, said: str) -> None:
    with pytest.raises(CompileFailed) as failure:
        run("open(order['engine'], 'w').write('half')\n" + program, tmp_path)
    assert said in failure.value.message
    assert failure.value.hint.endswith(".")
    assert not (tmp_path / "model.engine").exists()


def test_build_that_hears_is_asked_to_stop_at_its_limit(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(CompileFailed, match=r"longer than 0\.2 s"):
        run("sys.stdin.read()\nsay(answer={'stage': 'cancelled'})", tmp_path, limit_s=0.2)
    assert time.monotonic() - started < 8


def test_cancelled_build_ends_when_asked(tmp_path: Path) -> None:
    with pytest.raises(CompileFailed, match="cancelled"):
        run("sys.stdin.read()\nsay(answer={'stage': 'cancelled'})", tmp_path, stop=True)


def test_build_that_does_not_hear_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_GRACE_S", 0.2)
    started = time.monotonic()
    with pytest.raises(CompileFailed, match="longer than"):
        run("time.sleep(60)", tmp_path, limit_s=0.2)
    assert time.monotonic() - started < 20


TARGET = dataclasses.replace(builders.TARGET, name="tensorrt-rtx", compute_capability=(8.6, 8.9))


@pytest.mark.parametrize(
    ("flavour", "changes", "said"),
    [
        (PRESENT, {}, None),
        (PRESENT, {"name": "cpu"}, "not cpu"),
        (ABSENT, {}, "not installed here (pip install it)"),
        (PRESENT, {"compute_capability": (8.6, 5.2)}, "not 5.2"),
    ],
)
def test_target_is_refused_with_the_way_out(flavour: Flavour, changes: dict[str, object], said: str | None) -> None:
    target = dataclasses.replace(TARGET, **changes)  # type: ignore[arg-type]
    reason = TensorRt(flavour).refuse(builders.signature(builders.mlp()), target)
    assert reason is None if said is None else said in str(reason)


@pytest.mark.skipif(Path("/proc/driver/nvidia/gpus").is_dir(), reason="there is a GPU")
def test_without_a_gpu_the_target_must_name_its_gpus_and_full_tensorrt_cannot_build() -> None:
    signature = builders.signature(builders.mlp())
    unnamed = dataclasses.replace(TARGET, compute_capability=())
    assert "target.compute_capability" in str(TensorRt(PRESENT).refuse(signature, unnamed))
    full = dataclasses.replace(PRESENT, name="tensorrt", needs_gpu=True)
    assert "there is none here" in str(TensorRt(full).refuse(signature, dataclasses.replace(TARGET, name="tensorrt")))


def test_gpu_that_is_here_is_refused_without_what_starts_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "gpu_present", lambda: True)
    signature = builders.signature(builders.mlp())
    full = dataclasses.replace(PRESENT, name="tensorrt", needs_gpu=True)
    for flavour in (PRESENT, full):
        here = dataclasses.replace(TARGET, name=flavour.name, compute_capability=())
        monkeypatch.setattr(flavours, "has_cuda", lambda: False)
        assert "pip install 'edgeopt[gpu]'" in str(TensorRt(flavour).refuse(signature, here))
        monkeypatch.setattr(flavours, "has_cuda", lambda: True)
        assert TensorRt(flavour).refuse(signature, here) is None
    # what is built for elsewhere is not started here
    monkeypatch.setattr(flavours, "has_cuda", lambda: False)
    assert TensorRt(PRESENT).refuse(signature, TARGET) is None


def test_board_keeps_half_of_its_memory_and_a_card_all_of_its_own() -> None:
    full = TensorRt(dataclasses.replace(PRESENT, name="tensorrt", needs_gpu=True))
    board = dataclasses.replace(TARGET, name="tensorrt", arch="aarch64", memory_bytes=8 << 30)
    assert full._workspace_bytes(board) == 4 << 30
    assert full._workspace_bytes(dataclasses.replace(board, arch="x86_64")) == 0
    assert TensorRt(PRESENT)._workspace_bytes(board) == 0


def test_progress_reaches_whoever_asked_as_a_share_and_words() -> None:
    told: list[tuple[float, str]] = []
    runtime = TensorRt(PRESENT).under(limit_s=7.0, tell=lambda share, words: told.append((share, words)))
    runtime = runtime.taking([], [])
    runtime._on_progress(Progress(phase="Optimizing graph", done=12, steps=30, share=0.7))
    assert (told, runtime._limit_s) == ([(0.7, "engine: Optimizing graph, 12 of 30")], 7.0)


def test_library_that_is_not_there_is_a_clean_failure(tmp_path: Path) -> None:
    with pytest.raises(CompileFailed, match="not installed"):
        TensorRt(ABSENT).compile(tmp_path / "model.onnx", Recipe(), TARGET)


@pytest.mark.parametrize(("capability", "name"), [(7.5, "SM75"), (8.6, "SM86"), (8.9, "SM89"), (12.0, "SM120")])
def test_gpu_is_named_as_the_library_names_it(capability: float, name: str) -> None:
    assert gpu_name(capability) == name


@pytest.mark.parametrize(
    ("flavour", "version", "is_fit"),
    [
        (TENSORRT, "8.6.1", False),
        (TENSORRT, "10.2.0.post1", False),
        (TENSORRT, "10.3.0", True),
        (TENSORRT, "10.16.1.11", True),
        (TENSORRT, "10.17.0", False),
        (TENSORRT, "11.4.0.106", True),
        (TENSORRT, "12.0", False),
        (TENSORRT, "", True),
        (RTX, "1.7.1.116", True),
        (RTX, "1.7.1.117", False),
        (RTX, "1.8", False),
    ],
)
def test_only_releases_that_the_code_was_held_against_are_used(flavour: Flavour, version: str, is_fit: bool) -> None:
    assert (flavours.unfit(flavour, version) is None) is is_fit


def test_target_of_another_release_is_refused_with_both_numbers() -> None:
    runtime = TensorRt(PRESENT)
    runtime.version = "1.6.2"
    reason = str(runtime.refuse(builders.signature(builders.mlp()), TARGET))
    assert reason == "this edgeopt is written for tensorrt-rtx 1.7, and 1.6.2 is installed (pip install it)"


def test_the_two_flavours_share_no_module() -> None:
    assert not set(RTX.modules) & set(TENSORRT.modules)
