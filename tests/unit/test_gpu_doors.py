"""Who gets through the sandbox to a GPU's driver: jobs that may be for it, and whoever opens an engine; nobody else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgeopt import device
from edgeopt.layout import BUNDLE_FORMAT
from edgeopt.orders import JobOrder, Source, StagedFiles
from edgeopt.policy import Policy, TargetRequest, WorkerLimits
from edgeopt.records import Artifact
from edgeopt.worker import __main__ as worker
from edgeopt.worker import probe

NODES = (Path("/dev/nvidia0"),)
ORDER = JobOrder(
    job_id="1",
    name="m",
    source=Source(file="m.onnx", format="onnx", sha256="0" * 64, bytes=1),
    files=StagedFiles(model="model.onnx"),
    policy=Policy(),
    limits=WorkerLimits(),
)
ONNX = Artifact(
    path="m.onnx", format="onnx", sha256="", bytes=1, runtime="onnxruntime", runtime_version="1", session=()
)
ENGINE = dataclasses.replace(ONNX, path="m.engine", format="tensorrt-engine", runtime="tensorrt")


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "gpu_nodes", lambda: NODES)


@pytest.mark.parametrize(
    ("changes", "through"),
    [
        ({}, False),
        ({"policy": Policy(target=TargetRequest(name="cpu"))}, False),
        ({"policy": Policy(target=TargetRequest(name="tensorrt"))}, True),
        ({"files": StagedFiles(model="model.onnx", job_file="job.yaml")}, True),
        ({"source": dataclasses.replace(ORDER.source, format=BUNDLE_FORMAT)}, True),
    ],
    ids=["plain", "for the processor", "for the GPU", "a job file may say", "a bundle may say"],
)
def test_job_gets_through_where_it_may_be_for_the_gpu(changes: dict[str, object], through: bool) -> None:
    assert worker._gpu(dataclasses.replace(ORDER, **changes)) == (NODES if through else ())  # type: ignore[arg-type]


@pytest.mark.parametrize(("artifacts", "through"), [(("m.onnx",), False), ((ONNX,), False), ((ONNX, ENGINE), True)])
def test_probe_gets_through_where_it_opens_an_engine(artifacts: tuple[Artifact | str, ...], through: bool) -> None:
    assert probe._gpu(probe.Request(artifacts=artifacts)) == (NODES if through else ())
