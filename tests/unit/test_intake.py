from __future__ import annotations

import errno
import json
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from inbox import external_model, model_bytes, names_in, npz_bytes, only_drop, take

from edgeopt import wire
from edgeopt.daemon import drops, intake
from edgeopt.daemon.intake import NotReady, Patience, stage
from edgeopt.daemon.scan import Stamp, scan
from edgeopt.errors import (
    BadData,
    BadJobFile,
    DiskFull,
    EdgeoptError,
    EmptyFile,
    ForbiddenFormat,
    JobCancelled,
    MissingExternalData,
    NotAModel,
    TooLarge,
    TruncatedModel,
    UnsafeFile,
    UnsafeReference,
    UnsupportedModel,
)
from edgeopt.orders import JobOrder
from edgeopt.policy import Goal, Policy, WorkerLimits


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


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
        _pair(model_bytes(seed))(inbox)
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
    _pair(model_bytes(1), b"teacher: big.onnx\ngaol: {}\n")(inbox)
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


Prepare = Callable[[Path], object]


def _write(data: bytes, name: str = "a.onnx") -> Prepare:
    return lambda inbox: (inbox / name).write_bytes(data)


def _all(*steps: Prepare) -> Prepare:
    return lambda inbox: [step(inbox) for step in steps]


def _pair(teacher: bytes, job: bytes = b"teacher: big.onnx\n", name: str = "a/big.onnx") -> Prepare:
    """A folder with a model, a job file and what it may learn from."""
    return _all(
        lambda inbox: (inbox / "a").mkdir(),
        _write(model_bytes(), "a/model.onnx"),
        _write(job, "a/job.yaml"),
        _write(teacher, name),
    )


BAD: dict[str, tuple[Prepare, type[EdgeoptError]]] = {
    "empty": (_write(b""), EmptyFile),
    "text": (_write(b"this is no model\n"), NotAModel),
    "truncated": (_write(model_bytes()[:-30]), TruncatedModel),
    "pickle named onnx": (_write(pickle.dumps([1])), ForbiddenFormat),
    "pickle named pt": (_write(pickle.dumps([1]), "a.pt"), ForbiddenFormat),
    "model named pth": (_write(model_bytes(), "a.pth"), ForbiddenFormat),
    "exported program": (_write(b"PK", "a.pt2"), UnsupportedModel),
    "keras": (_write(b"x", "a.h5"), UnsupportedModel),
    "fifo": (lambda inbox: os.mkfifo(inbox / "a.onnx"), UnsafeFile),
    "symlink": (lambda inbox: (inbox / "a.onnx").symlink_to("/etc/passwd"), UnsafeFile),
    "dangling symlink": (lambda inbox: (inbox / "a.onnx").symlink_to("nowhere"), UnsafeFile),
    "linked folder": (lambda inbox: (inbox / "a").symlink_to("/etc"), UnsafeFile),
    "hard link": (
        _all(_write(model_bytes(), "b.bin"), lambda inbox: os.link(inbox / "b.bin", inbox / "a.onnx")),
        UnsafeFile,
    ),
    "missing data": (_write(external_model()), MissingExternalData),
    "traversing data": (_write(external_model("../secret")), UnsafeReference),
    "absolute data": (_write(external_model("/etc/passwd")), UnsafeReference),
    "nul in location": (_write(external_model("w.data\0x")), UnsafeReference),
    "memory marker": (_write(external_model("*/_ORT_MEM_ADDR_/*")), UnsafeReference),
    "data is the model": (_write(external_model("model.onnx")), UnsafeReference),
    "data is a sidecar": (_write(external_model("a.yaml")), UnsafeReference),
    "unknown key": (_write(external_model("w.data", basepath="/")), UnsafeReference),
    "short data": (_all(_write(external_model(length="99")), _write(bytes(16), "w.data")), TruncatedModel),
    "linked data": (
        _all(_write(external_model()), lambda inbox: (inbox / "w.data").symlink_to("/etc/passwd")),
        UnsafeFile,
    ),
    "hard-linked data": (
        _all(_write(external_model()), _write(bytes(16), "v"), lambda inbox: os.link(inbox / "v", inbox / "w.data")),
        UnsafeFile,
    ),
    "data behind a link": (
        _all(
            lambda inbox: (inbox / "a").mkdir(),
            _write(external_model("d/passwd"), "a/model.onnx"),
            lambda inbox: (inbox / "a" / "d").symlink_to("/etc"),
        ),
        UnsafeFile,
    ),
    "data is a folder": (_all(_write(external_model()), lambda inbox: (inbox / "w.data").mkdir()), UnsafeFile),
    "no npz": (_all(_write(model_bytes()), _write(b"x" * 99, "a.eval.npz")), BadData),
    "empty npz": (_all(_write(model_bytes()), _write(b"", "a.eval.npz")), EmptyFile),
    "pickled npz": (
        _all(_write(model_bytes()), _write(npz_bytes(x=np.array([{}], dtype=object)), "a.calibration.npz")),
        ForbiddenFormat,
    ),
    "huge job file": (_all(_write(model_bytes()), _write(b"#" * 70_000, "a.yaml")), BadJobFile),
    "no teacher there": (_pair(model_bytes(1), name="a/other.onnx"), BadJobFile),
    "teacher is the model": (_pair(model_bytes(1), b"teacher: model.onnx\n"), BadJobFile),
    "teacher of a pickle": (_pair(pickle.dumps([1])), ForbiddenFormat),
    "truncated teacher": (_pair(model_bytes(1)[:-30]), TruncatedModel),
    "teacher with data": (_pair(external_model()), BadJobFile),
    "teacher of another format": (_pair(b"PK", b"teacher: big.pt2\n", "a/big.pt2"), BadJobFile),
    "teacher of a plain file": (
        _all(_write(model_bytes()), _write(b"teacher: b.npz\n", "a.yaml")),
        BadJobFile,
    ),
    "linked teacher": (
        _all(
            _pair(b"", name="a/x"),
            lambda inbox: (inbox / "a" / "big.onnx").symlink_to("/etc/passwd"),
        ),
        UnsafeFile,
    ),
    "linked job file": (
        _all(_write(model_bytes()), lambda inbox: (inbox / "a.yaml").symlink_to("/etc/passwd")),
        UnsafeFile,
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_a_reason_and_nothing_is_left_or_lost(inbox: Path, case: str) -> None:
    prepare, error = BAD[case]
    prepare(inbox)
    before = sorted((path, path.lstat().st_ino) for path in inbox.rglob("*"))
    with pytest.raises(error) as caught:
        take(inbox)
    assert type(caught.value) is error
    assert caught.value.message
    assert caught.value.hint.endswith(".")
    assert not (inbox.parent / "staging").exists() or not list((inbox.parent / "staging").iterdir())
    assert sorted((path, path.lstat().st_ino) for path in inbox.rglob("*")) == before


def test_a_fifo_inside_a_folder_drop_is_unsafe(inbox: Path) -> None:
    (inbox / "a").mkdir()
    (inbox / "a" / "model.onnx").write_bytes(model_bytes())
    os.mkfifo(inbox / "a" / "pipe")
    with pytest.raises(UnsafeFile):
        take(inbox)


def test_a_model_over_the_limit_is_too_large_before_it_is_copied(inbox: Path) -> None:
    with (inbox / "a.onnx").open("wb") as file:
        file.truncate(1 << 43)  # sparse: 8 TiB that take no space
    with pytest.raises(TooLarge):
        take(inbox)


def test_external_data_counts_towards_the_limit(inbox: Path) -> None:
    (inbox / "a.onnx").write_bytes(external_model())
    (inbox / "w.data").write_bytes(bytes(5000))
    with pytest.raises(TooLarge):
        take(inbox, limits=WorkerLimits(model_bytes=4000))


@pytest.mark.parametrize("case", ["empty", "truncated", "missing data", "short data", "no npz", "empty npz"])
def test_what_looks_broken_is_waited_for_while_it_is_young(inbox: Path, case: str) -> None:
    prepare, error = BAD[case]
    prepare(inbox)
    with pytest.raises(NotReady) as caught:
        take(inbox, patience=Patience(quiet_for=lambda _path: 29.0, grace_s=30.0))
    assert 0 < caught.value.retry_s <= 5.0
    with pytest.raises(error):
        take(inbox, patience=Patience(quiet_for=lambda _path: 30.0, grace_s=30.0, writer_grace_s=30.0))


def test_what_is_hopeless_is_refused_however_young(inbox: Path) -> None:
    (inbox / "a.onnx").write_bytes(pickle.dumps([1]))
    with pytest.raises(ForbiddenFormat):
        take(inbox, patience=Patience(quiet_for=lambda _path: 0.0))


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


# ---------------------------------------------------------------- leaving the inbox
def test_a_file_that_was_replaced_stays_as_a_new_drop(inbox: Path) -> None:
    (inbox / "a.onnx").write_bytes(model_bytes())
    (inbox / "a.yaml").write_text("{}")
    staged = take(inbox)
    (inbox / "new").write_bytes(model_bytes(1))
    (inbox / "new").rename(inbox / "a.onnx")
    assert intake.remove_drop(staged.drop, staged.stamps) == ("a.onnx",)
    assert (inbox / "a.onnx").read_bytes() == model_bytes(1)
    assert not (inbox / "a.yaml").exists()


def test_removing_twice_is_fine_and_never_takes_the_inbox(inbox: Path) -> None:
    (inbox / "a.onnx").write_bytes(model_bytes())
    staged = take(inbox)
    for _ in range(2):
        assert intake.remove_drop(staged.drop, staged.stamps) == ()
    assert inbox.is_dir()


def test_what_to_remove_survives_a_restart_as_json(inbox: Path) -> None:
    (inbox / "\udcff.onnx").write_bytes(model_bytes())
    staged = take(inbox)
    stamps = {path: wire.decode(Stamp, stamp) for path, stamp in json.loads(wire.dumps(staged.stamps)).items()}
    assert intake.remove_drop(wire.loads(drops.Drop, wire.dumps(staged.drop)), stamps) == ()
    assert list(inbox.iterdir()) == []


def test_a_data_file_of_two_models_leaves_with_the_last_of_them(inbox: Path) -> None:
    (inbox / "w.data").write_bytes(bytes(16))
    (inbox / "a.onnx").write_bytes(external_model())
    (inbox / "b.onnx").write_bytes(external_model(offset="0"))
    (inbox / "c.onnx").write_bytes(model_bytes())
    found = {drop.name: drop for drop in drops.group(scan(inbox))}
    staged = {
        name: stage(drop, staging_root=inbox.parent / "s", policy=Policy(), limits=WorkerLimits())
        for name, drop in found.items()
    }
    intake.remove_drop(staged["a"].drop, staged["a"].stamps)
    assert (inbox / "w.data").exists()
    intake.remove_drop(staged["b"].drop, staged["b"].stamps)
    assert names_in(inbox) == ["c.onnx"]


def test_a_drop_that_cannot_be_read_still_has_a_name_and_a_hash(inbox: Path) -> None:
    (inbox / "a b.onnx").symlink_to("/etc/shadow")
    identity = intake.identify(only_drop(inbox))
    assert identity.name.startswith("a-b-")
    assert len(identity.sha256) == 64
    (inbox / "a b.onnx").unlink()
    (inbox / "c.onnx").write_bytes(b"garbage")
    assert intake.identify(only_drop(inbox)).name == "c"
