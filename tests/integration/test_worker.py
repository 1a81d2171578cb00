"""The worker as a real process on a real model: its events, its output, its memory of what it finished."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeopt import wire
from edgeopt.integrity import sha256_of
from edgeopt.layout import JobFolder
from edgeopt.orders import Event, JobOrder, Source, StagedFiles
from edgeopt.policy import Goal, Policy, Search, WorkerLimits

DEMO = Path(__file__).parents[2] / "edgeopt" / "demo"


def _staged(
    root: Path, *, trials: int = 3, model: bytes | None = None, limits: WorkerLimits | None = None
) -> JobFolder:
    folder = JobFolder(root)
    folder.create()
    file = folder.input / "model.onnx"
    file.write_bytes((DEMO / "digits.onnx").read_bytes() if model is None else model)
    files = {"model": "model.onnx"}
    for name in ("calibration", "eval"):
        shutil.copyfile(DEMO / f"digits.{name}.npz", folder.input / f"{name}.npz")
        files[name] = f"{name}.npz"
    order = JobOrder(
        job_id="j1",
        name="digits",
        source=Source(file="digits.onnx", format="onnx", sha256=sha256_of(file), bytes=file.stat().st_size),
        files=StagedFiles(**files),
        policy=Policy(goal=Goal(max_drop=0.02), search=Search(trials=trials, budget_s=30.0)),
        limits=limits or WorkerLimits(),
    )
    folder.order.write_text(wire.dumps(order))
    return folder


def _run(folder: JobFolder, cache: Path) -> tuple[int, list[Event]]:
    reader, writer = os.pipe()
    command = [
        sys.executable,
        "-m",
        "edgeopt.worker",
        "--job",
        folder.root,
        "--cache",
        cache,
        "--events-fd",
        str(writer),
    ]
    with subprocess.Popen(command, pass_fds=[writer]) as process:
        os.close(writer)
        with os.fdopen(reader) as stream:
            events = [wire.loads(Event, line) for line in stream]
    return process.returncode, events


def _of_kind(events: list[Event], kind: str) -> list[dict]:
    return [event.fields for event in events if event.kind == kind]


def test_worker_leaves_a_whole_version_with_its_evidence(tmp_path) -> None:
    folder = _staged(tmp_path / "job")
    code, events = _run(folder, tmp_path / "cache")
    assert code == 0
    assert events[-1].kind == "finished"
    assert [fields["stage"] for fields in _of_kind(events, "stage")][:3] == ["ingest", "plan", "baseline"]
    manifest = json.loads((folder.out / "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert manifest["artifact"]["sha256"] == sha256_of(folder.out / "model.onnx")
    assert manifest["result"]["quality"]["kind"] == "accuracy"
    assert manifest["result"]["quality"]["ci95"][1] <= 0.02
    raced = manifest["baseline"]["latency_ms"]["p50"] / manifest["result"]["latency_ms"]["p50"]
    assert 0.6 < raced / manifest["result"]["speedup"]["value"] < 1.6, "both latencies belong to the same turns"
    assert len(manifest["candidates"]) >= 4
    assert all("result" in row or "refused" in row for row in manifest["candidates"])
    assert "digits" in (folder.out / "report.html").read_text()


def test_second_run_takes_finished_candidates_from_the_cache(tmp_path) -> None:
    _run(_staged(tmp_path / "first"), tmp_path / "cache")
    code, events = _run(_staged(tmp_path / "second"), tmp_path / "cache")
    assert code == 0
    assert {fields["result"] for fields in _of_kind(events, "cache")} == {"hit"}


def test_same_recipe_gives_the_same_bytes(tmp_path) -> None:
    from edgeopt.records import Recipe, Step

    recipe = Recipe(
        steps=(
            Step.of("tidy"),
            Step.of(
                "quantize_static",
                method="min_max",
                activation="uint8",
                per_channel=True,
                reduced_range=False,
                bias_correction=True,
            ),
        )
    )
    digests = set()
    for name in ("first", "second"):
        folder = _staged(tmp_path / name)
        order = wire.loads(JobOrder, folder.order.read_text())
        folder.order.write_text(
            wire.dumps(wire.decode(JobOrder, {**wire.encode(order), "only_recipe": wire.encode(recipe)}))
        )
        code, _ = _run(folder, tmp_path / f"cache-{name}")
        assert code == 0
        digests.add(sha256_of(folder.work / "candidates" / recipe.id / "model.onnx"))
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"\x00\x01 this is not a model", "not-a-model"), (b"", "empty-file")],
    ids=["rubbish", "empty"],
)
def test_bad_model_ends_with_its_reason_and_no_output(tmp_path, content, code) -> None:
    folder = _staged(tmp_path / "job", model=content)
    exit_code, events = _run(folder, tmp_path / "cache")
    assert exit_code == 1
    failed = _of_kind(events, "failed")
    assert failed[0]["code"] in (code, "not-a-model")
    assert failed[0]["stage"] == "ingest"
    assert failed[0]["disposition"] == "quarantine"
    assert not any(folder.out.iterdir())


def test_calibration_that_does_not_fit_is_refused_with_all_mistakes(tmp_path) -> None:
    folder = _staged(tmp_path / "job")
    np.savez(folder.input / "calibration.npz", pixels=np.zeros((4, 3), np.float32), noise=np.zeros(3))
    _, events = _run(folder, tmp_path / "cache")
    failed = _of_kind(events, "failed")[0]
    assert failed["code"] == "bad-data"
    assert "pixels" in failed["message"] or "noise" in failed["message"]
