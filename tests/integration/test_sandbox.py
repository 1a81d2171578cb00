"""The sandbox from inside a real process: what is denied, and that the libraries still work behind the fence."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgeopt
from edgeopt.worker import landlock

_NOBODY = 65534
_PACKAGE_ROOT = Path(edgeopt.__file__).resolve().parent.parent
_ATTEMPTS = """
import json, os, socket, subprocess, sys
from pathlib import Path
from edgeopt.policy import WorkerLimits
from edgeopt.worker import sandbox

job, port, settings = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
report = sandbox.apply(read=[job / "input"], write=[job / "work"], limits=WorkerLimits(**settings))

def tried(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"

def link_out():
    os.symlink("/etc/passwd", job / "work/link")
    (job / "work/link").read_bytes()

def child(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

answers = {
    "reads its input": tried(lambda: (job / "input/model").read_bytes()),
    "writes its work": tried(lambda: (job / "work/new").write_text("x")),
    "reads /etc/passwd": tried(lambda: Path("/etc/passwd").read_bytes()),
    "reads it through a link": tried(link_out),
    "reads it through /proc": tried(lambda: Path("/proc/self/root/etc/passwd").read_bytes()),
    "lists the home folder": tried(lambda: os.listdir(settings_home)) if (settings_home := sys.argv[4]) else "done",
    "reads the parent's environment": tried(lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes()),
    "writes beside its work": tried(lambda: (job / "other").write_text("x")),
    "writes its input": tried(lambda: (job / "input/model").write_text("x")),
    "connects": tried(lambda: socket.create_connection(("127.0.0.1", port), 1)),
    "makes a datagram socket": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
    "signals its parent": tried(lambda: os.kill(os.getppid(), 0)),
}
import numpy, onnx, onnx_ir, onnxruntime
from onnx import helper
graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "g",
    [helper.make_tensor_value_info("x", 1, [64, 64])], [helper.make_tensor_value_info("y", 1, [64, 64])])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.save(model, job / "work/model.onnx")
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
session = onnxruntime.InferenceSession(str(job / "work/model.onnx"), options)
answers["product"] = float(session.run(None, {"x": numpy.ones((64, 64), numpy.float32)})[0][0, 0])
answers["grandchild imports"] = child("import numpy, edgeopt.errors").returncode
answers["grandchild reads /etc/passwd"] = child("open('/etc/passwd')").stderr.strip().splitlines()[-1].split(":")[0]
answers["grandchild connects"] = child(
    f"import socket; socket.create_connection(('127.0.0.1', {port}))").stderr.strip().splitlines()[-1].split(":")[0]
answers["temporary folder"] = __import__("tempfile").gettempdir()
answers["capabilities"] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")][0]
print(json.dumps({"report": [report.mode, report.files_confined, report.network_denied, list(report.notes)], **answers}))
"""

needs_landlock = pytest.mark.skipif(
    landlock.abi() < 4, reason=f"this kernel's Landlock ABI is {landlock.abi()}, below 4"
)


@pytest.fixture
def job() -> Iterator[Path]:
    """A job's folder that any user may own."""
    folder = Path(tempfile.mkdtemp(prefix="edgeopt-sandbox-"))
    (folder / "input").mkdir()
    (folder / "work").mkdir()
    (folder / "input/model").write_bytes(b"weights")
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def open_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def attempts(job: Path, port: int, *, python: str = sys.executable, **how: object) -> dict[str, object]:
    settings = {"sandbox": "required", "memory_bytes": 2 << 30}
    command = [python, "-c", _ATTEMPTS, str(job), str(port), json.dumps(settings), str(Path.home())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=_PACKAGE_ROOT, **how)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_confined(answers: dict[str, object], job: Path) -> None:
    assert answers.pop("report") == ["required", True, True, []]
    assert answers.pop("temporary folder") == str(job / "work/tmp")
    assert answers.pop("product") == 64.0
    assert answers.pop("grandchild imports") == 0
    assert answers.pop("reads its input") == "done"
    assert answers.pop("writes its work") == "done"
    assert int(str(answers.pop("capabilities")), 16) & ~(1 << 2) == 0
    assert {name: answer for name, answer in answers.items() if answer not in ("PermissionError", "OSError")} == {}


@needs_landlock
def test_worker_reaches_its_job_and_nothing_else(job: Path, open_port: int) -> None:
    assert_confined(attempts(job, open_port), job)


@needs_landlock
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_unprivileged_worker_is_confined_just_as_well(job: Path, open_port: int) -> None:
    python = "/usr/bin/python3"
    version = subprocess.run(
        [python, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True, check=False
    )
    if version.stdout.strip() != str(sys.version_info[:2]):
        pytest.skip(f"no {python} of this Python's version, and another user cannot reach {sys.executable}")
    for folder in (job, job / "input", job / "work", job / "input/model"):
        os.chown(folder, _NOBODY, _NOBODY)
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    shared = f"{_PACKAGE_ROOT}:{packages}"
    answers = attempts(
        job,
        open_port,
        python=python,
        user=_NOBODY,
        group=_NOBODY,
        extra_groups=[],
        env={"PYTHONPATH": shared, "PATH": "/usr/bin"},
    )
    assert_confined(answers, job)


def run_with(limits: str, code: str) -> subprocess.CompletedProcess[str]:
    program = f"""
from edgeopt.policy import WorkerLimits
from edgeopt.worker import landlock, sandbox
{code}
report = sandbox.apply(read=[], write=[], limits=WorkerLimits({limits}))
print(report.files_confined, *report.notes, sep="|")
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)


def test_missing_landlock_is_said_in_mode_auto() -> None:
    done = run_with("sandbox='auto'", "landlock.abi = lambda: 0")
    assert done.stdout.startswith("False|this kernel has no Landlock")


def test_missing_landlock_is_an_error_in_mode_required() -> None:
    done = run_with("sandbox='required'", "landlock.abi = lambda: 0")
    assert "EnvironmentFault: limits.sandbox is required, but this kernel has no Landlock" in done.stderr


def test_threads_that_run_already_are_an_error_in_mode_required() -> None:
    code = "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    done = run_with("sandbox='required'", code)
    assert "EnvironmentFault" in done.stderr
    assert "2 threads run already" in done.stderr


def test_mode_off_still_limits_resources() -> None:
    done = run_with("sandbox='off', memory_bytes=1 << 30", "")
    assert "switched off" in done.stdout
    code = (
        "import edgeopt.worker.sandbox as s; from edgeopt.policy import WorkerLimits\n"
        "s.apply(read=[], write=[], limits=WorkerLimits(sandbox='off', memory_bytes=1 << 30))\n"
        "bytearray(3 << 30)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr.strip().endswith("MemoryError")


@pytest.mark.skipif(landlock.abi() == 0, reason="needs Landlock")
@pytest.mark.parametrize("given", [True, False])
def test_drivers_door_opens_only_for_a_job_that_was_given_it(given: bool) -> None:
    # a terminal's master stands in for a GPU's device file: a driver that answers ioctl
    code = f"""
import fcntl, os, resource, termios
import edgeopt.worker.sandbox as s; from edgeopt.policy import WorkerLimits; from pathlib import Path
s.apply(read=[], write=[], limits=WorkerLimits(memory_bytes=1 << 32), gpu=[Path("/dev/ptmx")] if {given} else [])
print(resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY)
fcntl.ioctl(os.open("/dev/ptmx", os.O_RDWR), termios.TIOCGPTN, bytes(4))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert ("PermissionError" not in done.stderr, done.stdout.strip()) == (given, str(given))


def test_worker_dies_with_the_process_that_started_it() -> None:
    inner = (
        "import edgeopt.worker.sandbox as s, time, os; from edgeopt.policy import WorkerLimits\n"
        "s.apply(read=[], write=[], limits=WorkerLimits())\nprint(os.getpid(), flush=True); time.sleep(60)"
    )
    outer = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {inner!r}]); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert Path(f"/proc/{worker}").exists()
        parent.kill()
        # the pipe's write end is the worker's too, so it reads to its end only when both are gone
        assert parent.stdout.read() == ""
