"""Taking drops on real file systems: a full one, another one, one that somebody fiddles with meanwhile."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from inbox import external_model, model_bytes, names_in, only_drop

from edgeopt.daemon import drops, intake, settle
from edgeopt.daemon.intake import NotReady, Patience, stage
from edgeopt.daemon.scan import scan
from edgeopt.daemon.settle import Settler
from edgeopt.errors import DiskFull, EdgeoptError, InputError
from edgeopt.policy import Policy, WorkerLimits

SMALL_BYTES = 80 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MiB and 64 inodes."""
    folder = tmp_path / "small"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={SMALL_BYTES},nr_inodes=64".encode()
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options) != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    libc.umount2(os.fsencode(folder), 2)


def take(inbox: Path, staging: Path, patience: Patience | None = None) -> intake.Staged:
    return stage(
        only_drop(inbox),
        staging_root=staging,
        policy=Policy(),
        limits=WorkerLimits(),
        patience=patience or Patience(),
    )


def test_a_full_disk_holds_the_drop_until_there_is_space(tmp_path: Path, small_disk: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "a.onnx").write_bytes(model_bytes(weights=1 << 20))
    (small_disk / "ballast").write_bytes(bytes(30 << 20))
    with pytest.raises(DiskFull):
        take(inbox, small_disk / "staging")
    assert list((small_disk / "staging").iterdir()) == []
    (small_disk / "ballast").unlink()
    assert take(inbox, small_disk / "staging").order.name == "a"


def test_a_disk_that_fills_up_during_the_copy_holds_the_drop(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeopt.daemon.taking.RESERVE_BYTES", 0)
    monkeypatch.setattr("edgeopt.daemon.taking.RESERVE_TIMES", 0)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "a.onnx").write_bytes(model_bytes(weights=25 << 20))
    with pytest.raises(DiskFull):
        take(inbox, small_disk / "staging")
    assert list((small_disk / "staging").iterdir()) == []
    assert (inbox / "a.onnx").stat().st_size > SMALL_BYTES


def test_a_disk_without_inodes_holds_the_drop(tmp_path: Path, small_disk: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "a.onnx").write_bytes(model_bytes())
    for number in range(80):
        try:
            (small_disk / str(number)).touch()
        except OSError:
            break
    with pytest.raises(DiskFull):
        take(inbox, small_disk / "staging")


def test_a_refused_drop_crosses_to_another_disk(tmp_path: Path, small_disk: Path) -> None:
    inbox = tmp_path / "inbox"
    (inbox / "a").mkdir(parents=True)
    (inbox / "a" / "model.onnx").write_bytes(b"junk")
    os.mkfifo(inbox / "a" / "pipe")
    folder = intake.move_to_rejected(
        only_drop(inbox), small_disk / "rejected", name="a", sha12="0" * 12, reason={"code": "not-a-model"}
    )
    assert (folder / "a" / "model.onnx").read_bytes() == b"junk"
    assert (folder / "a" / "pipe").is_fifo()
    assert list(inbox.iterdir()) == []


def test_a_full_disk_for_the_rejected_keeps_the_drop_in_the_inbox(tmp_path: Path, small_disk: Path) -> None:
    inbox, root = tmp_path / "inbox", small_disk / "rejected"
    inbox.mkdir()
    (inbox / "a.onnx").write_bytes(b"junk" * (10 << 20))
    (small_disk / "ballast").write_bytes(bytes(60 << 20))
    drop = only_drop(inbox)
    with pytest.raises(DiskFull):
        intake.move_to_rejected(drop, root, name="a", sha12="0" * 12, reason={})
    assert (inbox / "a.onnx").stat().st_size == 40 << 20
    (small_disk / "ballast").unlink()
    folder = intake.move_to_rejected(drop, root, name="a", sha12="0" * 12, reason={})
    assert (folder.name, names_in(root)) == (f"a@{'0' * 12}-1", [f"a@{'0' * 12}-1"])
    assert (folder / "a.onnx").stat().st_size == 40 << 20
    assert list(inbox.iterdir()) == []


def test_a_swap_race_never_gets_a_secret_into_staging(tmp_path: Path) -> None:
    """Somebody flips the data file between a real one and a link to a secret while drops are taken."""
    inbox, secret = tmp_path / "inbox", tmp_path / "secret"
    inbox.mkdir()
    secret.write_bytes(b"canary!!" * 2)
    (inbox / "a.onnx").write_bytes(external_model(length="16"))
    done = threading.Event()
    flips = [0]

    def flip() -> None:
        while not done.is_set():
            (tmp_path / "next").unlink(missing_ok=True)
            if flips[0] % 3 == 0:
                (tmp_path / "next").write_bytes(bytes(16))
            elif flips[0] % 3 == 1:
                (tmp_path / "next").symlink_to(secret)
            else:
                os.link(secret, tmp_path / "next")
            (tmp_path / "next").rename(inbox / "w.data")
            if flips[0] % 3 == 0 and flips[0] % 2:
                done.wait(0.03)  # the real file stands long enough now and then to be taken
            flips[0] += 1

    racer = threading.Thread(target=flip)
    racer.start()
    taken = tries = 0
    deadline_s = time.monotonic() + 60
    try:
        while (tries < 120 or flips[0] <= 50 or not taken) and time.monotonic() < deadline_s:
            tries += 1
            try:
                staged = take(inbox, tmp_path / "staging")
            except EdgeoptError as error:
                assert "canary" not in error.message
                continue
            taken += 1
            assert (staged.folder.input / "w.data").read_bytes() == bytes(16)
    finally:
        done.set()
        racer.join()
    assert flips[0] > 50
    assert taken > 0


def test_a_file_written_for_a_minute_with_pauses_is_taken_once_and_whole(tmp_path: Path) -> None:
    """Pauses longer than the settle time make it look finished: then it does not parse whole, and is waited for."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    data = model_bytes(weights=3000)
    settler: Settler[str] = Settler(2.0)
    pieces = {second: data[len(data) * second // 60 : len(data) * (second + 10) // 60] for second in range(0, 60, 10)}
    taken: list[tuple[float, bytes]] = []
    for tick in range(4 * 75):
        now_s = tick / 4
        if now_s in pieces:
            with (inbox / "a.onnx").open("ab") as file:
                file.write(pieces[int(now_s)])
        listing = scan(inbox)
        settle.observe_all(settler, listing, now_s)
        for drop in settle.ready(drops.group(listing), settler, now_s):
            patience = Patience(quiet_for=lambda path, at=now_s: settler.quiet_for(path, at))  # type: ignore[misc]
            try:
                staged = stage(
                    drop, staging_root=tmp_path / "s", policy=Policy(), limits=WorkerLimits(), patience=patience
                )
            except NotReady:
                continue
            except InputError as error:
                pytest.fail(f"refused at {now_s} s: {error.message}")
            taken.append((now_s, (staged.folder.input / "model.onnx").read_bytes()))
            intake.remove_drop(staged.drop, staged.stamps)
    assert taken == [(52.0, data)]
