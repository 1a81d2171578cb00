"""A job whose GPU is in this device, from a staged folder to the manifest. A builder that copies stands in for TensorRT, and ONNX Runtime runs what it makes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edgeopt
from edgeopt import catalogue, device, pipeline
from edgeopt.errors import CompileFailed, UnsupportedModel
from edgeopt.integrity import sha256_of
from edgeopt.layout import ENGINE_FILE, JobFolder
from edgeopt.orders import Event, JobOrder, Source, StagedFiles
from edgeopt.policy import InputHint, Policy, Search, Span, TargetRequest, WorkerLimits
from edgeopt.records import Artifact, EngineFacts, Recipe, Signature, Step, Target, TensorSpec
from edgeopt.runtimes.ort import OnnxRuntime
from tests.devices import gpu_host

SHIPPED = Path(edgeopt.__file__).parent / "demo"


class Copier(OnnxRuntime):
    """Builds engines by copying the ONNX file, and tells of it as TensorRT does."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Mapping[str, tuple[int, ...]]] = []
        self.stated: tuple[tuple[str, InputHint], ...] = ()
        self.limit_s = 0.0
        self.cache: Path | None = None
        self.refuses = ""
        self.facts = EngineFacts(key="k", gpus=(), build_s=0.1)
        self._tell: Callable[[float, str], None] = lambda _share, _words: None

    def refuse(self, signature: Signature, target: Target) -> str | None:
        return None

    def under(self, *, limit_s: float, tell: Callable[[float, str], None], cache: Path | None = None) -> Copier:
        self.limit_s, self._tell, self.cache = limit_s, tell, cache
        return self

    def taking(
        self,
        inputs: Sequence[TensorSpec],
        seen: Iterable[Mapping[str, tuple[int, ...]]],
        *,
        stated: Sequence[tuple[str, InputHint]] = (),
    ) -> Copier:
        self.seen, self.stated = list(seen), tuple(stated)
        return self

    def compile(self, model: Path, recipe: Recipe, target: Target) -> Artifact:
        if self.refuses:
            raise CompileFailed(self.refuses, hint="Use another model.")
        self._tell(0.5, "engine: Building engine, 3 of 6")
        engine = model.with_name(ENGINE_FILE)
        shutil.copyfile(model, engine)
        made = super().compile(model, recipe, target)
        return replace(
            made,
            path=str(engine),
            format="tensorrt-engine",
            sha256=sha256_of(engine),
            engine=self.facts,
        )


@pytest.fixture
def copier(monkeypatch: pytest.MonkeyPatch) -> Copier:
    copier = Copier()
    monkeypatch.setattr(catalogue, "find_engines", lambda _target: copier)
    monkeypatch.setattr(device, "gpu_present", lambda **_host: True)
    return copier


def work(
    folder: JobFolder,
    *,
    job_file: str | None = None,
    cache: Path | None = None,
    host: device.Host = device.THIS_HOST,
    **target: Any,
) -> tuple[dict[str, Any], list[Event]]:
    """The manifest and the events of a job on the shipped classifier, with one recipe."""
    folder.create()
    shutil.copyfile(SHIPPED / "digits.onnx", folder.input / "model.onnx")
    for name in ("calibration", "eval"):
        shutil.copyfile(SHIPPED / f"digits.{name}.npz", folder.input / f"{name}.npz")
    model = folder.input / "model.onnx"
    order = JobOrder(
        job_id="1",
        name="digits",
        source=Source(file="digits.onnx", format="onnx", sha256=sha256_of(model), bytes=model.stat().st_size),
        files=StagedFiles(model="model.onnx", calibration="calibration.npz", eval="eval.npz", job_file=job_file),
        policy=Policy(target=TargetRequest(name="tensorrt", threads=1, **target), search=Search(budget_s=1.0)),
        limits=WorkerLimits(job_timeout_s=100.0),
        only_recipe=Recipe(steps=(Step.of("tidy"),)),
    )
    events: list[Event] = []
    pipeline.run(order, folder, cache or folder.root / "cache", events.append, host=host)
    return json.loads((folder.out / "manifest.json").read_text()), events


def test_engines_are_judged_and_timed_where_their_gpu_is(copier: Copier, tmp_path: Path) -> None:
    manifest, events = work(JobFolder(tmp_path))
    assert "status" not in manifest
    assert manifest["artifact"]["format"] == "tensorrt-engine"
    assert manifest["baseline"]["latency_ms"]["p50"] > 0
    assert manifest["result"]["latency_ms"]["p50"] > 0
    # the engine's own answers against those of ONNX Runtime, with the labels of the drop
    assert (manifest["result"]["quality"]["kind"], manifest["result"]["quality"]["drop"]) == ("accuracy", 0)
    assert (tmp_path / "out" / manifest["artifact"]["file"]).exists()
    assert (copier.limit_s, copier.cache) == (50.0, tmp_path / "cache" / "engines")
    assert {next(iter(each.values())) for each in copier.seen} == {(1, 1, 8, 8)}
    stages = [event.fields["stage"] for event in events if event.kind == "stage"]
    assert stages == [
        *("ingest", "plan", "baseline", "build", "baseline"),
        *("compress", "compile", "measure", "build", "measure", "select", "report"),
    ]
    told = [event.fields["text"] for event in events if event.kind == "progress"]
    assert "original: engine: Building engine, 3 of 6" in told
    assert "tidy: engine: Building engine, 3 of 6" in told


def test_lengths_that_the_job_file_states_reach_the_builder(copier: Copier, tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    folder.create()
    (folder.input / "job.yaml").write_text("inputs: {image: {shape: [1..4..16, 1, 8, 8]}}\n")
    work(folder, job_file="job.yaml")
    assert copier.stated == (("image", InputHint(shape=(Span(least=1, typical=4, most=16), 1, 8, 8))),)
    # a candidate that was built for other shapes is not taken out of the cache
    (folder.input / "job.yaml").write_text("inputs: {image: {shape: [1..4..64, 1, 8, 8]}}\n")
    _, events = work(folder, job_file="job.yaml")
    assert [event.fields["result"] for event in events if event.kind == "cache"] == ["miss"]


def test_quantization_that_tensorrt_undid_is_noted_with_every_engine(copier: Copier, tmp_path: Path) -> None:
    copier.facts = EngineFacts(key="k", gpus=("SM75",), build_s=0.1, products=4, int8_products=0, quantized_products=4)
    manifest, events = work(JobFolder(tmp_path))
    notes = [event.fields["text"] for event in events if event.kind == "note"]
    assert [str(note).partition(":")[0] for note in notes] == ["0 of 4 layers run in int8 on SM75"] * 2
    assert "TensorRT undid the quantization of 4" in (tmp_path / "out" / "report.html").read_text()
    assert manifest["artifact"]["engine"]["int8_products"] == 0


def test_named_gpus_mean_engines_for_elsewhere_also_where_one_is_here(copier: Copier, tmp_path: Path) -> None:
    manifest, _ = work(JobFolder(tmp_path), compute_capability=(8.6,))
    assert manifest["status"] == "unverified"
    assert manifest["verification"]["latency"]["measured"] is False


def test_trials_are_found_again_under_the_same_driver_and_release_only(
    copier: Copier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (gpu_host(tmp_path / driver, driver) for driver in ("550.1", "560.2"))

    def cached(number: int, host: device.Host) -> list[str]:
        _, events = work(JobFolder(tmp_path / f"job{number}"), cache=tmp_path / "cache", host=host)
        return [event.fields["result"] for event in events if event.kind == "cache"]

    assert cached(1, old) == ["miss"]
    assert cached(2, old) == ["hit"]
    assert cached(3, new) == ["miss"], "the engine is built and judged anew"
    monkeypatch.setattr("edgeopt.stages.cache.__version__", "99.0")
    assert cached(4, new) == ["miss"]


def test_original_that_the_builder_refuses_is_the_jobs_end(copier: Copier, tmp_path: Path) -> None:
    copier.refuses = "TensorRT does not take the model: NonZero at node 'n' is not supported"
    with pytest.raises(UnsupportedModel, match="NonZero") as refused:
        work(JobFolder(tmp_path))
    assert refused.value.hint == "Use another model."


def test_original_whose_engine_does_not_run_is_the_jobs_end(copier: Copier, tmp_path: Path) -> None:
    sound = copier.compile

    def damaged(model: Path, recipe: Recipe, target: Target) -> Artifact:
        artifact = sound(model, recipe, target)
        Path(artifact.path).write_bytes(b"no engine")
        return artifact

    copier.compile = damaged  # type: ignore[method-assign]
    with pytest.raises(UnsupportedModel, match="the original's engine does not run here"):
        work(JobFolder(tmp_path))
