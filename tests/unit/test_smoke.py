"""A fresh version's smoke test: what fails it, what proves nothing, and that no process is left. The probe is a fake process."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgeopt import device
from edgeopt.daemon import smoke
from edgeopt.daemon.smoke import Prober
from edgeopt.errors import JobCancelled
from edgeopt.layout import JobFolder
from edgeopt.orders import JobOrder, Source, StagedFiles
from edgeopt.policy import Policy, WorkerLimits

PROBE = """
import json, os, signal, sys, time
work = sys.argv[1]
request = json.load(sys.stdin)
artifact = request["artifacts"][0]
role = "original" if isinstance(artifact, str) else "published"
here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "asked"), "a") as log:
    log.write(role + " " + str(request.get("data")) + chr(10))
with open(os.path.join(here, role + ".answer")) as file:
    answer = file.read()
if answer == "hang":
    with open(os.path.join(here, "pid.tmp"), "w") as file:
        file.write(str(os.getpid()))
    os.rename(os.path.join(here, "pid.tmp"), os.path.join(here, "pid"))
    time.sleep(60)
if answer == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
sys.stdout.write(answer)
"""
FINE = json.dumps({"outputs": [[{"name": "y", "finite": True}]]})
INFINITE = json.dumps({"outputs": [[{"name": "y", "finite": False}]]})
REFUSED = json.dumps({"error": {"message": "no kernel for \x1b[31mFancy", "hint": ""}})
ARTIFACT = {
    "file": "model.onnx",
    "format": "onnx",
    "sha256": "0",
    "bytes": 1,
    "runtime": "onnxruntime",
    "runtime_version": "1",
    "session": {"intra_op_num_threads": 1},
}
ORDER = JobOrder(
    job_id="j",
    name="m",
    source=Source(file="m.onnx", format="onnx", sha256="0", bytes=1),
    files=StagedFiles(model="model.onnx", calibration="calibration.npz", eval="eval.npz"),
    policy=Policy(),
    limits=WorkerLimits(),
)


def outcome(
    root: Path, published: str, original: str = FINE, *, prober: dict[str, Any] | None = None, **manifest: Any
) -> str:
    """The outcome where the probe answers so to the published artifact and to the original."""
    version = root / "published" / "m" / "1"
    version.mkdir(parents=True)
    described = {"schema": 1, "source": {}, "artifact": ARTIFACT | manifest.pop("artifact", {}), **manifest}
    (version / "manifest.json").write_text(json.dumps(described))
    (root / "probe.py").write_text(PROBE)
    (root / "published.answer").write_text(published)
    (root / "original.answer").write_text(original)
    settings = {"work": root, "command": (sys.executable, str(root / "probe.py")), **(prober or {})}
    return smoke.failure_of(version, JobFolder(root / "job"), ORDER, Prober(**settings))


def asked(root: Path) -> list[str]:
    return (root / "asked").read_text().splitlines() if (root / "asked").exists() else []


def test_version_that_runs_passes_on_a_sample_of_the_drop(tmp_path: Path) -> None:
    assert outcome(tmp_path, FINE) == ""
    assert asked(tmp_path) == [f"published {tmp_path / 'job/input/eval.npz'}"]


@pytest.mark.parametrize(
    ("published", "reason"),
    [
        (REFUSED, "it does not run: no kernel for "),
        (INFINITE, "its output y is not finite"),
        ("crash", "it does not run: its process was ended by SIGSEGV"),
    ],
)
def test_version_fails_where_the_original_does_better_on_the_same_input(
    tmp_path: Path, published: str, reason: str
) -> None:
    found = outcome(tmp_path, published)
    assert found.startswith(reason)
    assert found.isprintable()
    assert [line.split()[0] for line in asked(tmp_path)] == ["published", "original"]
    assert len({line.split()[1] for line in asked(tmp_path)}) == 1


@pytest.mark.parametrize("both", [REFUSED, INFINITE, "crash"])
def test_input_that_the_original_does_not_take_either_proves_nothing(tmp_path: Path, both: str) -> None:
    assert outcome(tmp_path, both, both) == ""


@pytest.mark.parametrize("garbage", ["", "[]", "{}", '{"outputs": [[{"name": 1}]]}', '{"error": "text"}', "\xff"])
def test_answer_that_is_none_proves_nothing(tmp_path: Path, garbage: str) -> None:
    assert outcome(tmp_path, garbage) == ""


@pytest.mark.parametrize(
    "parts",
    [
        {"status": "unverified"},
        {"artifact": {"runtime": "unheard-of"}},
        pytest.param(
            {"artifact": {"runtime": "tensorrt", "format": "tensorrt-engine"}},
            marks=pytest.mark.skipif(device.gpu_present(), reason="what happens where there is no GPU"),
        ),
    ],
)
def test_what_cannot_run_here_is_not_tried(tmp_path: Path, parts: dict[str, Any]) -> None:
    assert outcome(tmp_path, REFUSED, **parts) == ""
    assert asked(tmp_path) == []


def test_manifest_that_describes_no_artifact_fails(tmp_path: Path) -> None:
    assert "does not describe" in outcome(tmp_path, FINE, artifact={"session": 3})


def test_probe_that_hangs_is_ended_with_its_time_and_proves_nothing(tmp_path: Path) -> None:
    assert outcome(tmp_path, "hang", prober={"limit_s": 0.7}) == ""
    assert gone(tmp_path)


def test_daemon_that_stops_waits_for_no_smoke_test(tmp_path: Path) -> None:
    started_s = time.monotonic()
    with pytest.raises(JobCancelled):
        outcome(tmp_path, "hang", prober={"should_stop": (tmp_path / "pid").exists})
    assert time.monotonic() - started_s < 20
    assert gone(tmp_path)


def gone(root: Path) -> bool:
    """Whether the probe that wrote its pid is no more, and its folder neither."""
    pid = int((root / "pid").read_text() or 0)
    return not (pid and Path(f"/proc/{pid}").exists()) and not list(root.glob("smoke-*"))
