from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import edgeopt
from edgeopt import runtime
from edgeopt.daemon import publish, shelf
from edgeopt.errors import BrokenArtifact, UsageError

SHIPPED = Path(edgeopt.__file__).parent / "demo"
IMAGE = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)
SESSION = {
    "execution_mode": "sequential",
    "graph_optimization_level": "all",
    "inter_op_num_threads": 1,
    "intra_op_num_threads": 1,
}


def publish_digits(root: Path, *, threads: int = 1) -> Path:
    """The shipped model as the next version under ``root``; returns the version's folder."""
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
        "runtime_version": "1",
        "session": SESSION | {"intra_op_num_threads": threads},
    }
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
