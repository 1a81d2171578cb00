from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgeopt
from edgeopt import oneshot
from edgeopt.daemon.supervise import Outcome
from edgeopt.errors import BadData, InputError, JobTimeout, NotAModel, StorageFault, UsageError, WorkerCrashed
from edgeopt.records import Recipe, Step


def test_outcome_becomes_the_error_of_its_code() -> None:
    error = oneshot.error_of(Outcome(kind="failed", code="bad-data", message="3 arrays are wrong", hint="Fix them."))
    assert type(error) is BadData
    assert (error.message, error.hint) == ("3 arrays are wrong", "Fix them.")
    assert type(oneshot.error_of(Outcome(kind="timeout", code="timeout", message="late"))) is JobTimeout


def test_worker_cannot_turn_a_refusal_into_wrong_usage() -> None:
    for code in ("usage", "bad-config", "made-up"):
        assert type(oneshot.error_of(Outcome(kind="failed", code=code, message="no"))) is InputError


def test_crash_is_told_with_the_last_line_only() -> None:
    outcome = Outcome(kind="crashed", code="worker-crashed", message="SIGSEGV", tail="Traceback | File x | boom")
    error = oneshot.error_of(outcome)
    assert type(error) is WorkerCrashed
    assert error.message == "SIGSEGV; it last said: boom"


def test_arrays_of_a_caller_become_an_npz_with_their_labels(tmp_path: Path) -> None:
    path = oneshot._as_path({"image": np.zeros((3, 2), np.float32), "labels": [0, 1, 2]}, tmp_path / "eval.npz")
    assert path is not None
    with np.load(path) as arrays:
        assert arrays["image"].shape == (3, 2)
        assert arrays["labels"].tolist() == [0, 1, 2]


def test_missing_files_and_unknown_targets_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.onnx"):
        edgeopt.optimize(tmp_path / "nowhere.onnx", out=tmp_path / "out")
    model = tmp_path / "m.onnx"
    model.touch()
    for target in ("abacus", "tensorrt"):
        with pytest.raises(UsageError, match=target):
            edgeopt.optimize(model, target=target, out=tmp_path / "out")


def test_recipe_with_an_unknown_technique_is_refused_before_any_work(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.touch()
    request = oneshot.Request(model=model, recipe=Recipe(steps=(Step.of("magic"),)), out=tmp_path / "out")
    with pytest.raises(UsageError, match="magic"):
        oneshot.run(request, on_event=lambda _event: None)


def test_output_folder_that_cannot_be_made_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageFault):
        edgeopt.optimize(tmp_path / "nowhere.onnx", out=tmp_path / "file" / "out")


def test_folders_made_for_nothing_are_taken_back_but_others_stay(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        edgeopt.optimize(tmp_path / "nowhere.onnx", out=tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError):
        edgeopt.optimize(tmp_path / "nowhere.onnx", out=tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()


def test_file_that_is_no_model_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_text("<html>404</html>")
    with pytest.raises(NotAModel):
        edgeopt.optimize(file, out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
