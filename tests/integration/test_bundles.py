"""Prepare here, accept there, for real: the shipped model made into a bundle, copied, and chosen from by a fresh worker."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgeopt
from edgeopt import acceptance, catalogue, device, fingerprint, oneshot
from edgeopt.cli import main
from edgeopt.cli.optimize import read_recipe
from edgeopt.daemon import drops, intake
from edgeopt.errors import UsageError
from edgeopt.layout import BUNDLE_FILE, JobFolder
from edgeopt.orders import Event
from edgeopt.policy import Goal, Policy, Search, WorkerLimits
from edgeopt.records import Verdict
from tests.bundles import altered, packed, unpacked
from tests.devices import gpu_host
from tests.integration.daemon import REAL_WORKER, Daemon
from tests.published import check_whole

SHIPPED = Path(edgeopt.__file__).parent / "demo"
COMMAND = [sys.executable, "-m", "edgeopt"]
INT8 = '[{"technique": "tidy"}, {"technique": "quantize_static", "method": "min_max", "per_channel": true}]'
SIZE = Policy(goal=Goal(objective="size", max_drop=0.02), search=Search(budget_s=20.0))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def prepare(out: Path, recipe: str = INT8) -> oneshot.Bundled:
    """The digits model through one recipe, which is quick, as a bundle."""
    request = oneshot.Request(
        model=SHIPPED / "digits.onnx",
        calibration=SHIPPED / "digits.calibration.npz",
        eval=SHIPPED / "digits.eval.npz",
        policy=SIZE,
        recipe=read_recipe(recipe),
        out=out,
    )
    return oneshot.prepare(request, on_event=lambda _event: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> oneshot.Bundled:
    return prepare(tmp_path_factory.mktemp("prepared"))


def accepted(bundle: Path, out: Path) -> oneshot.Result:
    return oneshot.run(oneshot.Request(model=bundle, policy=SIZE, out=out), on_event=lambda _event: None)


# ---------------------------------------------------------------- preparing
def test_bundle_says_what_was_found_and_claims_no_latency(made: oneshot.Bundled) -> None:
    (candidate,) = made.document["candidates"]
    assert made.file.name == "digits.edgeopt"
    assert candidate["bytes"] < 100_000
    assert candidate["quality"]["metric"] == "accuracy"
    assert candidate["quality"]["ci95"][1] <= 0.02
    assert made.document["target"]["arch"] == device.THIS_HOST.machine
    assert "latency" not in json.dumps(made.document["candidates"])
    assert [path.name for path in made.file.parent.iterdir()] == ["digits.edgeopt"]


def test_same_candidates_give_the_same_bundle_to_the_byte(made: oneshot.Bundled, tmp_path: Path) -> None:
    again = prepare(tmp_path)
    assert again.file.read_bytes() == made.file.read_bytes()
    assert again.sha256 == made.sha256


def test_preparing_for_a_gpu_needs_none_here(tmp_path: Path) -> None:
    words = [
        "optimize",
        str(SHIPPED / "digits.onnx"),
        "--eval",
        str(SHIPPED / "digits.eval.npz"),
        "--target",
        "tensorrt",
    ]
    done = subprocess.run(
        [*COMMAND, *words, "--recipe", '[{"technique": "tidy"}]', "--prepare", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "not timed for any other device" in done.stdout


# ---------------------------------------------------------------- accepting
def test_copied_bundle_is_measured_here_and_published_with_its_evidence(made: oneshot.Bundled, tmp_path: Path) -> None:
    copied = Path(shutil.copy(made.file, tmp_path / "numbers.edgeopt"))
    result = accepted(copied, tmp_path / "out")
    manifest = check_whole(result.folder)
    assert (result.name, result.version) == ("numbers", 1)
    assert [step["technique"] for step in manifest["recipe"]] == ["tidy", "quantize_static"]
    assert (manifest["source"]["format"], manifest["source"]["sha256"]) == ("bundle", made.sha256)
    assert manifest["prepared"]["source"]["file"] == "digits.onnx"
    assert manifest["prepared"]["on"] == made.document["machine"]
    assert len(manifest["prepared"]["found"]) == 1
    assert manifest["result"]["latency_ms"]["p50"] > 0
    assert manifest["result"]["quality"]["kind"] == "accuracy"
    assert manifest["data"]["eval"]["origin"] == "drop"
    assert manifest["data"]["calibration"]["samples"] == made.document["calibration"]["samples"]
    assert "status" not in manifest
    assert "Prepared elsewhere" in (result.folder / "report.html").read_text()
    with np.load(SHIPPED / "digits.eval.npz") as arrays, edgeopt.load(result.folder.parent) as model:
        found = [int(model.run({"image": image[None]})[0].argmax()) for image in arrays["image"][:50]]
        assert np.mean(np.asarray(found) == arrays["labels"][:50]) >= 0.9


def with_worse_model(bundle: Path) -> bytes:
    """The bundle with a candidate that answers differently, while the document still claims quality for it."""
    found = unpacked(bundle)
    document = json.loads(found[BUNDLE_FILE])
    model = onnx.load_from_string(found.pop(f"candidates/{document['candidates'][0]['address']}/model.onnx"))
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.INT8:
            weight.raw_data = bytes(len(weight.raw_data))
    worse = model.SerializeToString()
    address = hashlib.sha256(worse).hexdigest()
    document["candidates"][0] |= {"address": address, "lossless": True}
    return packed(found | {BUNDLE_FILE: json.dumps(document).encode(), f"candidates/{address}/model.onnx": worse})


def test_daemon_accepts_dropped_bundles_believes_none_and_refuses_those_for_other_processors(
    made: oneshot.Bundled, tmp_path: Path
) -> None:
    folders = {name: tmp_path / name for name in ("inbox", "published", "rejected", "state")}
    folders["inbox"].mkdir()
    target = made.document["target"]
    other = {"x86_64": "aarch64"}.get(target["arch"], "x86_64")
    (folders["inbox"] / "digits.edgeopt").write_bytes(with_worse_model(made.file))
    (folders["inbox"] / "elsewhere.edgeopt").write_bytes(altered(made.file, target=target | {"arch": other}))
    shutil.copy(made.file, folders["inbox"] / ".syncing.edgeopt.tmp")
    lines = [
        *(f"{name}: {path}" for name, path in folders.items()),
        "watch: {settle: 200ms}",
        'search: {budget: "20s"}',
    ]
    config = tmp_path / "edgeopt.yaml"
    config.write_text("\n".join([*lines, 'http: {listen: "127.0.0.1:0"}']))
    done = subprocess.run(
        [*COMMAND, "serve", "-c", str(config), "--once"], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 1, done.stderr  # one of the two was refused
    manifest = check_whole(folders["published"] / "digits" / "current")
    assert manifest["prepared"]["source"]["file"] == "digits.onnx"
    assert manifest["recipe"] == []
    assert "more than max_drop" in manifest["candidates"][1]["refused"]
    (rejected,) = folders["rejected"].iterdir()
    reason = json.loads((rejected / "reason.json").read_text())
    assert reason["code"] == "unsupported-target"
    assert f"cpu ({other}), and this device is" in reason["message"]
    assert reason["hint"].endswith(".")
    assert [path.name for path in folders["inbox"].iterdir()] == [".syncing.edgeopt.tmp"]


def test_daemon_publishes_the_candidate_that_wins_and_makes_it_anew_from_the_bundle(
    made: oneshot.Bundled, tmp_path: Path
) -> None:
    older = tmp_path / "older" / "site-packages"  # what a sandboxed worker may read
    (older / "onnxruntime-0.9.dist-info").mkdir(parents=True)
    (older / "onnxruntime-0.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: onnxruntime\nVersion: 0.9\n"
    )
    with Daemon(tmp_path, search='{budget: "20s"}') as daemon:
        daemon.worker, daemon.environment = REAL_WORKER, {"PYTHONPATH": str(older)}
        daemon.start()
        arriving = daemon.inbox / ".numbers.edgeopt.part"
        shutil.copy(made.file, arriving)
        arriving.rename(daemon.inbox / "numbers.edgeopt")
        daemon.wait(lambda: daemon.jobs("published"), timeout_s=100.0)
        daemon.wait(lambda: daemon.waiting() == [])
        first = check_whole(daemon.published / "numbers" / "1")
        assert [step["technique"] for step in first["recipe"]] == ["tidy", "quantize_static"]
        assert (first["source"]["sha256"], first["artifact"]["runtime_version"]) == (made.sha256, "0.9")
        assert first["result"]["latency_ms"]["p50"] > 0
        assert daemon.stop() == 0

        daemon.environment = {}
        daemon.start()
        stale = 'edgeopt_artifact_stale{model="numbers",reason="runtime"}'
        daemon.wait(lambda: daemon.metric(stale) == 1)
        daemon.wait((daemon.published / "numbers" / "2").exists, timeout_s=100.0)
        daemon.wait(lambda: daemon.metric(stale) == 0)
        second = check_whole(daemon.published / "numbers" / "current")
    assert second["healed"] == {"version": 1, "reasons": ["runtime"], "same_artifact": True}
    assert second["artifact"]["runtime_version"] == fingerprint.installed("onnxruntime")
    assert second["prepared"] == first["prepared"]
    assert [row.get("refused") for row in second["candidates"]] == [None, None]


# ---------------------------------------------------------------- accepting on a GPU
@dataclass(frozen=True)
class Accepted:
    verdict: Verdict
    folder: JobFolder
    events: list[Event]

    def said(self, kind: str) -> list[str]:
        return [str(event.fields["text"]) for event in self.events if event.kind == kind]

    def drop(self) -> float:
        """How much less right the original's own engine is than what is held to be right."""
        assert self.verdict.baseline.measurement is not None
        return self.verdict.baseline.measurement.quality.drop


def accepted_on_gpu(
    made: oneshot.Bundled,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    builder: str = "Engines",
    cache: Path | None = None,
    driver: str = "550.1",
    **changes: Any,
) -> Accepted:
    """With a builder that has ONNX Runtime inside: where engines are built and measured, not what TensorRT makes of them."""
    monkeypatch.setitem(catalogue.RUNTIMES, "tensorrt", ("tests.engines", builder))
    document = made.document
    # nothing may win, since the confirmation in fresh processes is what takes long
    policy = document["policy"] | {"target": document["policy"]["target"] | {"name": "tensorrt"}}
    policy["goal"] = policy["goal"] | {"min_speedup": 1000.0}
    host = gpu_host(folder, driver)
    file = folder / "digits.edgeopt"
    file.write_bytes(altered(made.file, target=document["target"] | {"name": "tensorrt"}, policy=policy, **changes))
    limits = WorkerLimits(job_timeout_s=100.0)
    staged = intake.stage(drops.of_paths(file), staging_root=folder / "staging", policy=SIZE, limits=limits)
    events: list[Event] = []
    verdict = acceptance.run(staged.order, staged.folder, cache or folder / "cache", events.append, host=host)
    assert not list(staged.folder.input.rglob("*.engine")), "the input is not the job's to write to"
    return Accepted(verdict, staged.folder, events)


def test_device_with_a_gpu_builds_engines_of_all_candidates_for_the_shapes_of_the_samples(
    made: oneshot.Bundled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = accepted_on_gpu(made, tmp_path, monkeypatch)
    assert [trial.measurement is not None for trial in found.verdict.trials] == [True, True]
    engines = list((found.folder.work / "candidates").rglob("model.engine"))
    assert len(engines) == 2
    assert all(engine.read_text().startswith("[{'image': (1, 1, 8, 8)}, ") for engine in engines)
    # half of the job's time for one engine, and each tells how far it is
    words = "engine: half of it, 50 s at most"
    assert [text for text in found.said("progress") if words in text] == [
        f"original: {words}",
        f"{found.verdict.trials[1].recipe.label}: {words}",
    ]


def test_what_was_measured_on_a_gpu_is_found_again_under_the_same_driver_only(
    made: oneshot.Bundled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cached(job: str, driver: str) -> list[str]:
        found = accepted_on_gpu(made, tmp_path / job, monkeypatch, cache=tmp_path / "cache", driver=driver)
        return [event.fields["result"] for event in found.events if event.kind == "cache"]

    assert cached("first", "550.1") == ["miss"]
    assert cached("repeated", "550.1") == ["hit"]
    assert cached("upgraded", "560.2") == ["miss"]


def test_engines_are_held_against_what_onnx_runtime_answers_and_not_against_the_originals_own(
    made: oneshot.Bundled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert accepted_on_gpu(made, tmp_path, monkeypatch, builder="ForgetfulEngines").drop() > 0.5


def test_device_without_onnx_runtime_believes_the_originals_engine_and_says_so(
    made: oneshot.Bundled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fingerprint.DISTRIBUTIONS, "onnxruntime", ())
    found = accepted_on_gpu(made, tmp_path, monkeypatch, builder="ForgetfulEngines")
    assert found.drop() == 0.0
    assert any("the original's own engine answers" in note for note in found.said("note"))


@pytest.mark.parametrize("has_onnx_runtime", [True, False])
def test_teacher_answers_in_onnx_runtime_or_by_an_engine_for_the_shapes_of_the_samples(
    made: oneshot.Bundled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_onnx_runtime: bool
) -> None:
    if not has_onnx_runtime:
        monkeypatch.setitem(fingerprint.DISTRIBUTIONS, "onnxruntime", ())
    found = accepted_on_gpu(made, tmp_path, monkeypatch, teacher=made.document["original"])
    assert found.drop() == 0.0
    engines = list((found.folder.work / "teacher").rglob("model.engine"))
    assert [engine.read_text()[:26] for engine in engines] == (
        [] if has_onnx_runtime else ["[{'image': (1, 1, 8, 8)}, "]
    )


def test_accepting_imports_nothing_that_makes_models() -> None:
    code = "import edgeopt.acceptance, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
    making = ("torch", "onnxscript", "edgeopt.pipeline", "edgeopt.stages.planner", "edgeopt.passes", "edgeopt.training")
    assert [name for name in done.stdout.split() if name.startswith(making)] == []


def test_bundle_and_model_are_told_apart_on_the_command_line(made: oneshot.Bundled, tmp_path: Path) -> None:
    assert main.main(["optimize", str(made.file)]) == 2
    assert main.main(["accept", str(SHIPPED / "digits.onnx")]) == 2
    with pytest.raises(UsageError, match="no file or folder"):
        accepted(tmp_path / "nowhere.edgeopt", tmp_path / "out")
