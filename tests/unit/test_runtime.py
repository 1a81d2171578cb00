from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt import catalogue, device, fingerprint, runtime
from edgeopt.daemon import publish, shelf
from edgeopt.errors import BrokenArtifact, CompileFailed, UnfitArtifact, UsageError
from edgeopt.records import Artifact

SHIPPED = Path(edgeopt.__file__).parent / "demo"
IMAGE = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)
SESSION = {
    "execution_mode": "sequential",
    "graph_optimization_level": "all",
    "inter_op_num_threads": 1,
    "intra_op_num_threads": 1,
}


def publish_digits(root: Path, *, threads: int = 1, runtime_version: str | None = None, **parts: Any) -> Path:
    """The shipped model as the next version under ``root``; returns the version's folder. ``parts`` go into its artifact."""
    out = root.parent / "out"
    out.mkdir()
    shutil.copyfile(SHIPPED / "digits.onnx", out / "model.onnx")
    digest = hashlib.sha256((out / "model.onnx").read_bytes()).hexdigest()
    artifact = {
        "file": "model.onnx",
        "format": "onnx",
        "sha256": digest,
        "bytes": 1,
        "runtime": "onnxruntime",
        "runtime_version": runtime_version or fingerprint.installed("onnxruntime"),
        "session": SESSION | {"intra_op_num_threads": threads},
    } | parts
    # another recipe each time: the same outcome would be recognised and not published twice
    manifest = {
        "schema": 1,
        "source": {"sha256": digest},
        "artifact": artifact,
        "recipe": [{"technique": f"t{threads}"}],
    }
    (out / "manifest.json").write_text(json.dumps(manifest))
    folder = publish.publish(out, "digits", root).folder
    shutil.rmtree(out)
    return folder


def tamper(folder: Path) -> None:
    file = folder / "model.onnx"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"x")


def test_model_is_loaded_by_name_by_folder_and_by_version(tmp_path: Path) -> None:
    folder = publish_digits(tmp_path / "published")
    for opened in (
        runtime.load("digits", published=tmp_path / "published"),
        runtime.load(folder.parent),
        runtime.load(str(folder)),
    ):
        with opened as model:
            (probabilities,) = model.run({"image": IMAGE})
            assert model.input_names == ("image",)
            assert probabilities.sum() == pytest.approx(1.0, abs=1e-5)


def test_loaded_model_follows_current_and_a_version_stays(tmp_path: Path) -> None:
    first = publish_digits(tmp_path / "published", threads=1)
    with runtime.load(first.parent) as following, runtime.load(first) as fixed:
        publish_digits(tmp_path / "published", threads=2)
        for model in (following, fixed):
            model.run({"image": IMAGE})
        assert following.version.manifest["version"] == 2
        assert fixed.version.manifest["version"] == 1
        shelf.rollback(tmp_path / "published", "digits")
        following.run({"image": IMAGE})
        assert following.version.manifest["version"] == 1


def test_newer_version_that_is_broken_is_reported_once_and_the_old_one_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = publish_digits(tmp_path / "published", threads=1)
    with runtime.load(first.parent) as model:
        second = publish_digits(tmp_path / "published", threads=2)
        tamper(second)
        for _ in range(3):
            model.run({"image": IMAGE})
        assert model.version.manifest["version"] == 1
    assert len(caplog.records) == 1


def test_running_threads_survive_the_change_of_version(tmp_path: Path) -> None:
    first = publish_digits(tmp_path / "published", threads=1)
    failures: list[BaseException] = []
    with runtime.load(first.parent) as model:

        def serve() -> None:
            try:
                for _ in range(200):
                    model.run({"image": IMAGE})
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=serve) for _ in range(4)]
        for thread in threads:
            thread.start()
        publish_digits(tmp_path / "published", threads=2)
        for thread in threads:
            thread.join()
        model.run({"image": IMAGE})
        assert model.version.manifest["version"] == 2
    assert failures == []


def test_tampered_artifact_is_not_opened(tmp_path: Path) -> None:
    folder = publish_digits(tmp_path / "published")
    tamper(folder)
    with pytest.raises(BrokenArtifact, match="sha256"):
        runtime.load(folder)


def test_check_names_every_file_that_differs_or_is_missing(tmp_path: Path) -> None:
    folder = publish_digits(tmp_path / "published")
    assert runtime.check_files(runtime.read_version(folder)) == []
    folder.chmod(0o755)
    (folder / "manifest.json").chmod(0o644)
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text() + " ")
    (folder / "model.onnx").unlink()
    problems = runtime.check_files(runtime.read_version(folder))
    assert len(problems) == 2
    assert any("model.onnx is missing" in problem for problem in problems)


def test_what_is_not_there_or_no_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing"):
        runtime.load("nothing", published=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError):
        runtime.load(tmp_path / "empty")
    (tmp_path / "empty" / "manifest.json").write_text('{"schema": 1}')
    with pytest.raises(BrokenArtifact):
        runtime.load(tmp_path / "empty")


# ---------------------------------------------------------------- what does not fit
def test_version_measured_with_another_runtime_is_refused_unless_it_is_accepted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = publish_digits(tmp_path / "published", runtime_version="0.1")
    installed = fingerprint.installed("onnxruntime")
    with pytest.raises(UnfitArtifact, match=f"onnxruntime: 0.1 then, {installed} now"):
        runtime.load(folder)
    with runtime.load(folder, accept_stale=True) as model:
        model.run({"image": IMAGE})
    assert "does not fit" in caplog.text


def test_newer_version_made_for_another_process_is_left_alone_and_a_rollback_obeyed(tmp_path: Path) -> None:
    root = tmp_path / "published"
    publish_digits(root, threads=1, runtime_version="0.1")
    fitting = publish_digits(root, threads=2)
    with runtime.load(fitting.parent) as model:
        publish_digits(root, threads=3, runtime_version="99.0")
        model.run({"image": IMAGE})
        assert model.version.manifest["version"] == 2
        shelf.rollback(root, "digits", 1)
        model.run({"image": IMAGE})
        assert model.version.manifest["version"] == 1


def test_server_goes_on_with_the_library_in_memory_when_a_newer_one_is_installed_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "published"
    first = publish_digits(root, threads=1)
    package = tmp_path / "upgraded" / "onnxruntime-99.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime\nVersion: 99.0\n")
    with runtime.load(first.parent) as model:
        model.run({"image": IMAGE})
        monkeypatch.syspath_prepend(str(package.parent))
        healed = publish_digits(root, threads=2, runtime_version="99.0")
        model.run({"image": IMAGE})
        assert model.version.manifest["version"] == 1, (
            "the healed one was measured with a library that is not in memory"
        )
    with pytest.raises(UnfitArtifact, match=r"onnxruntime: 99\.0 then"):
        runtime.load(healed)


def test_version_that_did_not_open_is_tried_again_after_a_while(tmp_path: Path) -> None:
    now_s = [0.0]
    first = publish_digits(tmp_path / "published", threads=1)
    with runtime.LoadedModel(first.parent, clock=lambda: now_s[0]) as model:
        second = publish_digits(tmp_path / "published", threads=2)
        whole = (second / "model.onnx").read_bytes()
        tamper(second)
        model.run({"image": IMAGE})
        (second / "model.onnx").write_bytes(whole)
        model.run({"image": IMAGE})
        assert model.version.manifest["version"] == 1
        now_s[0] = 61.0
        model.run({"image": IMAGE})
        assert model.version.manifest["version"] == 2


def engine(root: Path, **parts: Any) -> Path:
    """A version whose artifact claims to be an engine, with its model beside it."""
    described = {"format": "tensorrt-engine", "runtime": "tensorrt-rtx", "runtime_version": "1.7"}
    return publish_digits(root, **described, **parts)


def fallback_of(folder: Path) -> dict[str, Any]:
    """What a manifest says of the model that may stand in for an engine."""
    sums = dict(reversed(line.split("  ", 1)) for line in (folder / "SHA256SUMS").read_text().splitlines())
    return {
        "file": "model.onnx",
        "format": "onnx",
        "sha256": sums["model.onnx"],
        "bytes": 1,
        "runtime": "onnxruntime",
        "runtime_version": fingerprint.installed("onnxruntime"),
        "session": SESSION,
    }


@pytest.mark.skipif(device.gpu_present(), reason="what happens where there is no GPU")
def test_engine_is_refused_without_a_gpu_and_its_model_served_only_where_the_manifest_allows(tmp_path: Path) -> None:
    folder = engine(tmp_path / "published", threads=1)
    for accept in (False, True):
        with pytest.raises((UnfitArtifact, CompileFailed), match="runs on an NVIDIA GPU, and there is none here"):
            runtime.load(folder, accept_stale=accept)
    allowed = engine(tmp_path / "published", threads=2, fallback=fallback_of(folder))
    with runtime.load(allowed) as model:
        assert (model.artifact.runtime, model.version.artifact.runtime) == ("onnxruntime", "tensorrt-rtx")
        assert model.run({"image": IMAGE})[0].sum() == pytest.approx(1.0, abs=1e-5)
    old = engine(tmp_path / "published", threads=3, fallback=fallback_of(folder) | {"runtime_version": "0.1"})
    with pytest.raises(UnfitArtifact, match="nor does its model"):
        runtime.load(old)


# ---------------------------------------------------------------- threads
class GatedSession:
    """Lets nobody out before its gate is open, and tells whether it was closed meanwhile."""

    input_names = ("image",)
    output_names = ("y",)

    def __init__(self) -> None:
        self.entered, self.gate = threading.Event(), threading.Event()
        self.closed_during_run: bool | None = None
        self.closed = False

    def run(self, feeds: Any) -> list[Any]:
        self.entered.set()
        assert self.gate.wait(10)
        self.closed_during_run = self.closed
        return [feeds["image"]]


class GatedRuntime:
    name = "gated"
    version = "1"
    sessions: list[GatedSession]

    @contextmanager
    def open(self, _artifact: Artifact) -> Iterator[GatedSession]:
        session = GatedSession()
        self.sessions.append(session)
        yield session
        session.closed = True


def test_call_under_way_ends_on_its_old_session_which_closes_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    GatedRuntime.sessions = []
    monkeypatch.setitem(catalogue.RUNTIMES, "gated", (__name__, "GatedRuntime"))
    first = publish_digits(tmp_path / "published", threads=1, runtime="gated")
    model = runtime.load(first.parent)
    answers: list[Any] = []
    caller = threading.Thread(target=lambda: answers.append(model.run({"image": "a"})))
    caller.start()
    (old,) = GatedRuntime.sessions
    assert old.entered.wait(10)
    publish_digits(tmp_path / "published", threads=2, runtime="gated")
    second = threading.Thread(target=lambda: answers.append(model.run({"image": "b"})))
    second.start()
    while len(GatedRuntime.sessions) < 2:
        second.join(0.01)
    new = GatedRuntime.sessions[1]
    new.gate.set()
    second.join(10)
    assert (answers, old.closed) == ([["b"]], False)
    old.gate.set()
    caller.join(10)
    assert answers == [["b"], ["a"]]
    assert (old.closed_during_run, old.closed, new.closed) == (False, True, False)
    model.close()
    assert new.closed
    with pytest.raises(UsageError, match="closed"):
        model.run({"image": "c"})
