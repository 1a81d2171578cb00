"""What an attempt at a job finds of the one before: the checkpoints of trainings, and nothing else."""

from __future__ import annotations

from pathlib import Path

from edgeopt.daemon.floor import clear
from edgeopt.layout import CHECKPOINTS_FOLDER, JobFolder


def left_behind(root: Path) -> JobFolder:
    folder = JobFolder(root / "job")
    folder.create()
    (folder.out / "model.onnx").write_bytes(b"half")
    (folder.work / "candidates" / "abc").mkdir(parents=True)
    (folder.work / "observed").write_bytes(b"x")
    return folder


def test_checkpoints_outlive_an_attempt_and_nothing_else_does(tmp_path: Path) -> None:
    folder = left_behind(tmp_path)
    kept = folder.work / CHECKPOINTS_FOLDER / "training.npz"
    kept.parent.mkdir()
    kept.write_bytes(b"state")
    folder.work.chmod(0o500)
    clear(folder)
    assert [path.name for path in folder.work.iterdir()] == [CHECKPOINTS_FOLDER]
    assert kept.read_bytes() == b"state"
    assert list(folder.out.iterdir()) == []


def test_attempt_without_checkpoints_starts_with_empty_folders(tmp_path: Path) -> None:
    folder = left_behind(tmp_path)
    clear(folder)
    assert list(folder.work.iterdir()) == list(folder.out.iterdir()) == []


def test_link_that_a_worker_left_in_place_of_its_checkpoints_is_not_followed(tmp_path: Path) -> None:
    folder, elsewhere = left_behind(tmp_path), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_bytes(b"x")
    (folder.work / CHECKPOINTS_FOLDER).symlink_to(elsewhere)
    clear(folder)
    assert list(folder.work.iterdir()) == []
    assert (elsewhere / "precious").exists()
