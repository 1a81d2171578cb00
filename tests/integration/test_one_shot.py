"""The one-shot for real: the shipped model through staging, worker and publisher, then whatever takes the result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import edgeopt

SHIPPED = Path(edgeopt.__file__).parent / "demo"
COMMAND = [sys.executable, "-m", "edgeopt"]
OPTIMIZE = ["optimize", str(SHIPPED / "digits.onnx"), "--calibration", str(SHIPPED / "digits.calibration.npz")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """`edgeopt optimize --json` with a recipe to replay, so that it is quick; ``cwd`` holds what it wrote."""
    folder = tmp_path_factory.mktemp("one-shot")
    words = [*OPTIMIZE, "--eval", str(SHIPPED / "digits.eval.npz"), "--recipe", '[{"technique": "tidy"}]', "--json"]
    return subprocess.run(
        [*COMMAND, *words, "--out", str(folder)], capture_output=True, text=True, timeout=110, check=False
    )


@pytest.mark.slow
def test_json_is_the_only_thing_on_stdout(made: subprocess.CompletedProcess[str]) -> None:
    assert made.returncode == 0, made.stderr
    document = json.loads(made.stdout)
    assert document["manifest"]["version"] == 1
    assert Path(document["folder"]).name == "1"
    assert "\x1b" not in made.stderr
    assert "stage measure" in made.stderr


@pytest.mark.slow
def test_what_was_published_verifies_runs_and_loads(made: subprocess.CompletedProcess[str]) -> None:
    document = json.loads(made.stdout)
    verified = subprocess.run(
        [*COMMAND, "verify", document["folder"], "--json"], capture_output=True, text=True, timeout=110, check=False
    )
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["ran"]["outputs"][0][0]["finite"] is True
    with np.load(SHIPPED / "digits.eval.npz") as arrays, edgeopt.load(Path(document["folder"]).parent) as model:
        found = [int(model.run({"image": image[None]})[0].argmax()) for image in arrays["image"][:100]]
        assert np.mean(np.asarray(found) == arrays["labels"][:100]) >= 0.95


@pytest.mark.slow
def test_damaged_artifact_fails_verification_with_exit_code_1(made: subprocess.CompletedProcess[str]) -> None:
    folder = Path(json.loads(made.stdout)["folder"])
    file = folder / "model.onnx"
    content = file.read_bytes()
    file.chmod(0o644)
    try:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        done = subprocess.run(
            [*COMMAND, "verify", str(folder)], capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        file.write_bytes(content)
    assert done.returncode == 1
    assert "model.onnx has sha256" in done.stderr


@pytest.mark.slow
def test_bench_prints_a_ratio_with_its_interval(made: subprocess.CompletedProcess[str]) -> None:
    words = ["bench", str(SHIPPED / "digits.onnx"), json.loads(made.stdout)["folder"], "--seconds", "0.5", "--json"]
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=110, check=False)
    speedup = json.loads(done.stdout)["speedup"]
    assert 0 < speedup["low"] <= speedup["value"] <= speedup["high"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_ends_the_worker_and_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    temporary, out = tmp_path / "tmp", tmp_path / "out"
    temporary.mkdir()
    process = subprocess.Popen(
        [*COMMAND, *OPTIMIZE, "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "stage baseline" in line:
            break
    workers = _children(process.pid)
    assert workers
    process.send_signal(number)
    assert process.wait(60) == 130
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert not [worker for worker in workers if _is_alive(worker)]
    assert list(temporary.iterdir()) == []
    assert not out.exists() or list(out.iterdir()) == []


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_alive(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state == "Z":
            return False
        time.sleep(0.05)
    return True
