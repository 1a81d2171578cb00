"""A worker that is ended in the middle of a training: the next one goes on from its checkpoint, and the job ends as if nothing had been."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import builders
import numpy as np
import pytest

from edgeopt import wire
from edgeopt.daemon.floor import clear
from edgeopt.integrity import sha256_of
from edgeopt.layout import CHECKPOINTS_FOLDER, JobFolder
from edgeopt.orders import Event, JobOrder, Source, StagedFiles
from edgeopt.policy import Goal, Policy, Search, Techniques, WorkerLimits

pytest.importorskip("torch", reason="needs torch: pip install 'edgeopt[train]'")

STEPS = 400
LOOK = re.compile(rf"step (\d+)/{STEPS}, loss")
PLAN = {"steps": STEPS, "learning_rate": 0.001, "patience": 1000, "inputs": "calibration"}


def _staged(root: Path) -> JobFolder:
    """A job whose one wish is to cut half of an MLP's neurons and to teach what is left."""
    folder = JobFolder(root)
    folder.create()
    file = folder.input / "model.onnx"
    file.write_bytes(builders.to_bytes(builders.mlp(width=64)))
    rows = np.random.default_rng(0).normal(size=(384, 1, 16)).astype(np.float32)
    np.savez(folder.input / "calibration.npz", rows=rows[:256])
    np.savez(folder.input / "eval.npz", rows=rows[256:])
    wishes = Techniques(quantize="off", prune={"ratio": 0.5, "refit": False, "criterion": "l2"}, distill=PLAN)
    order = JobOrder(
        job_id="j1",
        name="mlp",
        source=Source(file="mlp.onnx", format="onnx", sha256=sha256_of(file), bytes=file.stat().st_size),
        files=StagedFiles(model="model.onnx", calibration="calibration.npz", eval="eval.npz"),
        policy=Policy(
            goal=Goal(objective="size", max_drop=0.5), search=Search(budget_s=300.0, trials=4), techniques=wishes
        ),
        limits=WorkerLimits(),
    )
    folder.order.write_text(wire.dumps(order))
    return folder


@contextmanager
def _worker(folder: JobFolder, cache: Path) -> Iterator[tuple[subprocess.Popen, Iterator[Event]]]:
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "edgeopt.worker", "--job", folder.root, "--cache", cache]
    with subprocess.Popen([*command, "--events-fd", str(writer)], pass_fds=[writer]) as process:
        os.close(writer)
        with os.fdopen(reader) as stream:
            yield process, (wire.loads(Event, line) for line in stream)


def _looks(events: Iterator[Event]) -> Iterator[int]:
    """The steps at which the training told how it stands."""
    for event in events:
        if event.kind == "progress" and (told := LOOK.search(event.fields["text"])):
            yield int(told[1])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_job_that_is_ended_in_mid_training_goes_on_from_where_it_was(tmp_path: Path) -> None:
    folder, cache = _staged(tmp_path / "job"), tmp_path / "cache"
    with _worker(folder, cache) as (process, events):
        first = next(_looks(events))
        process.send_signal(signal.SIGTERM)
        assert all(step < STEPS for step in _looks(events))
    assert process.returncode == -signal.SIGTERM
    (kept,) = (folder.work / CHECKPOINTS_FOLDER).glob("*.npz")
    with np.load(kept) as entries:
        step = json.loads(entries["facts"].tobytes())["facts"]["step"]
    assert first <= step < STEPS

    clear(folder)  # as the daemon does before it starts a worker again
    with _worker(folder, cache) as (process, events):
        looks = list(_looks(events))
    assert process.returncode == 0
    assert step < looks[0] <= step + first, "the steps before the checkpoint are not taken again"
    assert looks[-1] == STEPS
    assert not kept.exists()
    undisturbed = _staged(tmp_path / "undisturbed")
    with _worker(undisturbed, tmp_path / "other") as (process, events):
        assert next(_looks(events)) == first
        list(events)
    assert process.returncode == 0
    assert _taught(folder) == _taught(undisturbed)


def _taught(folder: JobFolder) -> str:
    """The hash of the model that the training left."""
    manifest = json.loads((folder.out / "manifest.json").read_text())
    assert any(step["technique"] == "distill" for step in manifest["recipe"]), manifest["candidates"]
    return str(manifest["artifact"]["sha256"])
