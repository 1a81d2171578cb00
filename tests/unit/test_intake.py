from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from inbox import (
    external_model,
    model_bytes,
    names_in,
    npz_bytes,
    only_drop,
    take,
    with_teacher,
)

from edgeopt import wire
from edgeopt.daemon import drops, intake
from edgeopt.daemon.intake import NotReady, Patience, stage
from edgeopt.daemon.scan import scan
from edgeopt.errors import (
    DiskFull,
    EdgeoptError,
    JobCancelled,
)
from edgeopt.orders import JobOrder
from edgeopt.policy import Goal, Policy, WorkerLimits


def test_a_drop_is_copied_whole_under_names_of_our_own(inbox: Path) -> None:
    (inbox / "digits.onnx").write_bytes(model_bytes())
    (inbox / "digits.yaml").write_text("goal: {objective: size}\n")
    (inbox / "digits.calibration.npz").write_bytes(npz_bytes())
    (inbox / "digits.eval.npz").write_bytes(npz_bytes(x=np.zeros((3, 8), np.float32), labels=np.arange(3)))
    staged = take(inbox)
    assert names_in(staged.folder.input) == ["calibration.npz", "eval.npz", "job.yaml", "model.onnx"]
    assert (staged.folder.input / "model.onnx").read_bytes() == model_bytes()
    assert wire.loads(JobOrder, staged.folder.order.read_bytes()) == staged.order
    assert (staged.order.name, staged.order.source.file) == ("digits", "digits.onnx")
    assert staged.order.source.bytes == len(model_bytes())
    assert staged.order.files.calibration == "calibration.npz"
    assert len(list(inbox.iterdir())) == 4


def test_a_folder_drop_is_taken_with_its_samples(inbox: Path) -> None:
    (inbox / "a" / "calibration" / "cat ü").mkdir(parents=True)
    (inbox / "a" / "model.onnx").write_bytes(model_bytes())
    (inbox / "a" / "README").write_text("hello")
    for name in ("1.png", "2.png", ".DS_Store", "3.png.part"):
        (inbox / "a" / "calibration" / "cat ü" / name).write_bytes(b"x")
    (inbox / "a" / "calibration" / "odd\nname.png").write_bytes(b"x")
    staged = take(inbox)
    names = sorted(str(path.relative_to(staged.folder.input)) for path in staged.folder.input.rglob("*.png"))
    assert names[:2] == ["calibration/cat ü/1.png", "calibration/cat ü/2.png"]
    assert len(names) == 3
    assert names[2].startswith("calibration/odd-name-")
    assert staged.order.files.calibration == "calibration"
    assert staged.drop.entries == ("a",)
    assert intake.remove_drop(staged.drop, staged.stamps) == ()
    assert list(inbox.iterdir()) == []


def test_a_teacher_is_taken_along_and_is_part_of_what_makes_the_work_equal(inbox: Path) -> None:
    keys = []
    for seed in (1, 2):
        with_teacher(model_bytes(seed))(inbox)
        staged = take(inbox)
        assert names_in(staged.folder.input) == ["job.yaml", "model.onnx", "teacher.onnx"]
        assert (staged.folder.input / "teacher.onnx").read_bytes() == model_bytes(seed)
        assert staged.order.files.teacher == "teacher.onnx"
        assert staged.order.source.bytes == len(model_bytes())
        keys.append((staged.key, staged.order.source.sha256))
        assert intake.remove_drop(staged.drop, staged.stamps) == ()
        assert list(inbox.iterdir()) == []
    assert keys[0][0] != keys[1][0] and keys[0][1] == keys[1][1]


def test_a_job_file_with_mistakes_is_left_to_the_worker_to_tell(inbox: Path) -> None:
    with_teacher(model_bytes(1), b"teacher: big.onnx\ngaol: {}\n")(inbox)
    assert take(inbox).order.files.teacher is None


def test_the_callers_own_teacher_may_lie_anywhere(inbox: Path, tmp_path: Path) -> None:
    (inbox / "a.onnx").write_bytes(model_bytes())
    (tmp_path / "big.onnx").write_bytes(model_bytes(1))
    drop = drops.of_paths(inbox / "a.onnx", teacher=tmp_path / "big.onnx")
    staged = stage(drop, staging_root=tmp_path / "staging", policy=Policy(), limits=WorkerLimits())
    assert (staged.folder.input / "teacher.onnx").read_bytes() == model_bytes(1)


def test_external_data_comes_along_under_its_own_name(inbox: Path) -> None:
    (inbox / "weights").mkdir()
    (inbox / "weights" / "w.bin").write_bytes(bytes(16))
    (inbox / "a.onnx").write_bytes(external_model("weights/w.bin", offset="0", length="16"))
    staged = take(inbox)
    assert (staged.folder.input / "weights" / "w.bin").read_bytes() == bytes(16)
    assert onnx.load(str(staged.folder.input / "model.onnx")).graph.initializer[0].raw_data == bytes(16)
    assert staged.order.source.bytes == len(external_model("weights/w.bin", offset="0", length="16")) + 16
    intake.remove_drop(staged.drop, staged.stamps)
    assert list(inbox.iterdir()) == []


def test_equal_graphs_with_other_weights_are_other_sources(inbox: Path) -> None:
    (inbox / "a.onnx").write_bytes(external_model())
    (inbox / "w.data").write_bytes(bytes(16))
    zeros = take(inbox)
    (inbox / "w.data").write_bytes(b"\x01" * 16)
    ones = take(inbox)
    assert zeros.order.source.sha256 != ones.order.source.sha256
    assert zeros.key != ones.key


def test_equal_keys_mean_equal_inputs_and_policy(inbox: Path) -> None:
    (inbox / "a.onnx").write_bytes(model_bytes())
    first = take(inbox)
    (inbox / "a.onnx").rename(inbox / "b.onnx")
    assert take(inbox).key == first.key
    assert take(inbox, policy=Policy(goal=Goal(objective="size"))).key != first.key
    (inbox / "b.yaml").write_text("{}")
    assert take(inbox).key != first.key


def test_a_model_that_is_still_open_for_writing_is_not_ready(inbox: Path) -> None:
    with (inbox / "a.onnx").open("wb") as file:
        file.write(model_bytes())
        file.flush()
        with pytest.raises(NotReady, match="open for writing"):
            take(inbox, patience=Patience(quiet_for=lambda _path: 60.0))
        take(inbox, patience=Patience(quiet_for=lambda _path: 601.0))
    take(inbox, patience=Patience(quiet_for=lambda _path: 60.0))


def test_external_data_that_still_changes_is_not_ready(inbox: Path) -> None:
    (inbox / "a.onnx").write_bytes(external_model())
    (inbox / "w.data").write_bytes(bytes(16))
    quiet = {"a.onnx": 99.0, "w.data": 0.5}
    with pytest.raises(NotReady, match="still changing"):
        take(inbox, patience=Patience(quiet_for=quiet.__getitem__))


def test_a_file_that_changes_while_it_is_copied_is_not_ready(inbox: Path) -> None:
    path = inbox / "a.onnx"
    path.write_bytes(model_bytes(weights=1 << 20))

    def scribble() -> bool:
        os.utime(path)
        return False

    with pytest.raises(NotReady, match="changed"):
        take(inbox, patience=Patience(should_stop=scribble))
    assert list((inbox.parent / "staging").iterdir()) == []


def test_a_hard_link_replaced_right_after_it_was_opened_is_not_taken(
    inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the link is gone, the open file has one name again: the secret's own."""
    (tmp_path / "secret").write_bytes(b"canary!!" * 2)
    (tmp_path / "decoy").write_bytes(bytes(16))
    os.link(tmp_path / "secret", inbox / "w.data")
    (inbox / "a.onnx").write_bytes(external_model())
    real = os.open

    def open_and_swap(path: str, *arguments: int, **named: int) -> int:
        descriptor = real(path, *arguments, **named)
        if path == "w.data":
            (tmp_path / "decoy").rename(inbox / "w.data")
        return descriptor

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_and_swap)
        with pytest.raises(NotReady, match="replaced"):
            take(inbox)
    assert list((inbox.parent / "staging").iterdir()) == []


def test_a_drop_that_went_away_is_not_ready(inbox: Path) -> None:
    (inbox / "a.onnx").write_bytes(model_bytes())
    drop = only_drop(inbox)
    (inbox / "a.onnx").unlink()
    with pytest.raises(NotReady):
        stage(drop, staging_root=inbox.parent / "staging", policy=Policy(), limits=WorkerLimits())


def test_a_copy_can_be_stopped_and_leaves_nothing(inbox: Path) -> None:
    (inbox / "a.onnx").write_bytes(model_bytes(weights=1 << 20))
    with pytest.raises(JobCancelled):
        take(inbox, patience=Patience(should_stop=lambda: True))
    assert list((inbox.parent / "staging").iterdir()) == []


def test_too_little_free_space_holds_the_drop(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (inbox / "a.onnx").write_bytes(model_bytes())
    real = os.statvfs(inbox)
    fields = list(real)
    fields[4] = 10  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result(fields))
    with pytest.raises(DiskFull, match="bytes are free"):
        take(inbox)
    assert list((inbox.parent / "staging").iterdir()) == []
    assert (inbox / "a.onnx").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_fault_of_the_disk_is_the_devices_and_not_the_drops(
    inbox: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    (inbox / "a.onnx").write_bytes(model_bytes())
    drop = only_drop(inbox)

    def fail(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(EdgeoptError) as caught:
            stage(drop, staging_root=inbox.parent / "staging", policy=Policy(), limits=WorkerLimits())
    assert caught.value.disposition.value == "hold"
    assert list((inbox.parent / "staging").iterdir()) == []
    take(inbox)  # and when the fault is gone, it works


@pytest.mark.parametrize(
    "name", ["a b", "a\nb", "-rf", "模型", "\u202eonnx", "\udcff\udcfe", "x" * 250, "<script>", "'\"$(id)`"]
)
def test_a_hostile_name_never_becomes_a_path_or_a_line(inbox: Path, name: str) -> None:
    (inbox / f"{name}.onnx").write_bytes(model_bytes())
    staged = take(inbox)
    assert staged.order.name.isascii()
    assert len(staged.order.name) <= 64
    text = staged.folder.order.read_text()
    assert text.isascii()
    assert "\n" not in text
    assert json.loads(text)["source"]["file"].isprintable()
    assert intake.remove_drop(staged.drop, staged.stamps) == ()
    assert list(inbox.iterdir()) == []


def test_many_drops_are_staged_side_by_side(inbox: Path) -> None:
    for number in range(8):
        (inbox / f"m{number}.onnx").write_bytes(model_bytes(number, weights=100_000))
    keys: list[str] = []

    def one(drop: drops.Drop) -> None:
        keys.append(stage(drop, staging_root=inbox.parent / "s", policy=Policy(), limits=WorkerLimits()).key)

    threads = [threading.Thread(target=one, args=(drop,)) for drop in drops.group(scan(inbox))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(keys)) == 8


def test_the_callers_own_files_may_be_links(inbox: Path, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(external_model())
    (tmp_path / "blob-data").write_bytes(bytes(16))
    (tmp_path / "w.data").symlink_to(tmp_path / "blob-data")
    (tmp_path / "samples.npz").write_bytes(npz_bytes())
    os.link(tmp_path / "samples.npz", tmp_path / "second.npz")
    (tmp_path / "mine.onnx").symlink_to(tmp_path / "blob")
    drop = drops.of_paths(tmp_path / "mine.onnx", calibration=tmp_path / "samples.npz")
    staged = stage(drop, staging_root=tmp_path / "staging", policy=Policy(), limits=WorkerLimits())
    assert staged.order.name == "mine"
    assert names_in(staged.folder.input) == ["calibration.npz", "model.onnx", "w.data"]
    intake.remove_drop(staged.drop, staged.stamps)
    assert (tmp_path / "mine.onnx").exists()
    assert (tmp_path / "samples.npz").exists()
