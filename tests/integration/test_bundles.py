"""Prepare here, accept there, for real: the shipped model made into a bundle, copied, and chosen from by a fresh worker."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgeopt
from edgeopt import acceptance, catalogue, device, fingerprint, oneshot
from edgeopt.cli import main
from edgeopt.cli.optimize import read_recipe
from edgeopt.daemon import drops, intake
from edgeopt.errors import UsageError
from edgeopt.layout import BUNDLE_FILE
from edgeopt.orders import Event
from edgeopt.policy import Goal, Policy, Search, WorkerLimits
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


def test_device_with_a_gpu_builds_engines_of_all_candidates_for_the_shapes_of_the_samples(
    made: oneshot.Bundled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a builder that has ONNX Runtime inside: where engines are built and measured, not what TensorRT makes of them."""
    monkeypatch.setitem(catalogue.RUNTIMES, "tensorrt", ("tests.engines", "Engines"))
    document = made.document
    # nothing may win, since the confirmation in fresh processes is what takes long
    policy = document["policy"] | {"target": document["policy"]["target"] | {"name": "tensorrt"}}
    policy["goal"] = policy["goal"] | {"min_speedup": 1000.0}
    file = tmp_path / "digits.edgeopt"
    file.write_bytes(altered(made.file, target=document["target"] | {"name": "tensorrt"}, policy=policy))
    staged = intake.stage(drops.of_paths(file), staging_root=tmp_path / "staging", policy=SIZE, limits=WorkerLimits())
    events: list[Event] = []
    old, new = (gpu_host(tmp_path / driver, driver) for driver in ("550.1", "560.2"))
    verdict = acceptance.run(staged.order, staged.folder, tmp_path / "cache", events.append, host=old)
    assert [trial.measurement is not None for trial in verdict.trials] == [True, True]
    engines = list((staged.folder.work / "candidates").rglob("model.engine"))
    assert len(engines) == 2
    assert all(engine.read_text().startswith("[{'image': (1, 1, 8, 8)}, ") for engine in engines)
    assert not list(staged.folder.input.rglob("model.engine"))
    # what was measured holds under that driver only
    for host in (old, new):
        acceptance.run(staged.order, staged.folder, tmp_path / "cache", events.append, host=host)
    assert [event.fields["result"] for event in events if event.kind == "cache"] == ["miss", "hit", "miss"]


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
