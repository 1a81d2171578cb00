from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest
from inbox import external_model, model_bytes, names_in, npz_bytes, only_drop

from edgeopt.daemon import rejected
from edgeopt.daemon.rejected import move_to_rejected, recover_rejected
from edgeopt.errors import StorageFault

SHA12 = "0123456789ab"
REASON = {"code": "not-a-model", "message": "m", "hint": "h"}


def reject(inbox: Path) -> Path:
    return move_to_rejected(only_drop(inbox), inbox.parent / "rejected", name="a", sha12=SHA12, reason=REASON)


def test_a_refused_drop_lies_with_its_reason_as_it_came(inbox: Path) -> None:
    for name, data in {"a.onnx": b"junk", "a.yaml": b"{}", "a.eval.npz": npz_bytes()}.items():
        (inbox / name).write_bytes(data)
    (inbox / "README").write_text("stays")
    folder = reject(inbox)
    assert folder.name == f"a@{SHA12}-1"
    assert names_in(folder) == ["a.eval.npz", "a.onnx", "a.yaml", "reason.json"]
    assert json.loads((folder / "reason.json").read_text()) == REASON
    assert (folder / "a.onnx").read_bytes() == b"junk"
    assert names_in(inbox) == ["README"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_the_same_content_refused_again_gets_the_next_number(inbox: Path) -> None:
    for number in (1, 2, 3):
        (inbox / "a.onnx").write_bytes(b"junk")
        assert reject(inbox).name == f"a@{SHA12}-{number}"


def test_moving_what_was_moved_gives_the_same_folder(inbox: Path) -> None:
    (inbox / "a.onnx").write_bytes(b"junk")
    drop = only_drop(inbox)
    root = inbox.parent / "rejected"
    first = move_to_rejected(drop, root, name="a", sha12=SHA12, reason=REASON)
    assert move_to_rejected(drop, root, name="a", sha12=SHA12, reason=REASON) == first
    assert names_in(root) == [first.name]


def test_a_folder_a_link_and_a_fifo_move_as_themselves(inbox: Path) -> None:
    (inbox / "a" / "eval").mkdir(parents=True)
    (inbox / "a" / "model.onnx").write_bytes(b"junk")
    (inbox / "a" / "eval" / "link").symlink_to("/etc/shadow")
    os.mkfifo(inbox / "a" / "eval" / "pipe")
    folder = reject(inbox)
    assert (folder / "a" / "eval" / "link").readlink() == Path("/etc/shadow")
    assert (folder / "a" / "eval" / "pipe").is_fifo()
    assert names_in(inbox) == []


def test_external_data_of_a_refused_model_goes_along(inbox: Path) -> None:
    (inbox / "a.onnx").write_bytes(external_model())
    (inbox / "w.data").write_bytes(bytes(2))
    assert (reject(inbox) / "w.data").read_bytes() == bytes(2)
    assert names_in(inbox) == []


def test_external_data_that_another_model_needs_stays(inbox: Path) -> None:
    (inbox / "a.onnx").write_bytes(external_model())
    drop = only_drop(inbox)
    (inbox / "b.onnx").write_bytes(external_model())
    (inbox / "w.data").write_bytes(bytes(16))
    move_to_rejected(drop, inbox.parent / "rejected", name="a", sha12=SHA12, reason=REASON)
    assert names_in(inbox) == ["b.onnx", "w.data"]


def test_data_that_a_model_still_arriving_may_need_stays_unless_it_has_the_drops_name(inbox: Path) -> None:
    for location in ("w.data", "a.onnx.data"):
        (inbox / "a.onnx").write_bytes(external_model(location))
        drop = only_drop(inbox)
        (inbox / "b.onnx").write_bytes(model_bytes()[:50])
        (inbox / location).write_bytes(bytes(16))
        move_to_rejected(drop, inbox.parent / "rejected", name="a", sha12=SHA12, reason=REASON)
        (inbox / "b.onnx").unlink()
    assert names_in(inbox) == ["w.data"]


def test_a_model_that_refers_outside_takes_nothing_from_there(inbox: Path) -> None:
    (inbox.parent / "secret").write_text("s")
    (inbox / "a.onnx").write_bytes(external_model("../secret"))
    assert names_in(reject(inbox)) == ["a.onnx", "reason.json"]
    assert (inbox.parent / "secret").exists()


def test_a_hard_link_keeps_the_mode_that_its_other_name_has(inbox: Path) -> None:
    other = inbox.parent / "other"
    other.write_bytes(b"junk")
    other.chmod(0o644)
    os.link(other, inbox / "a.onnx")
    reject(inbox)
    assert stat.S_IMODE(other.stat().st_mode) == 0o644


def test_a_file_called_like_the_reason_keeps_its_content(inbox: Path) -> None:
    (inbox / "a.onnx").write_bytes(external_model("reason.json"))
    (inbox / "reason.json").write_text("mine")
    folder = reject(inbox)
    assert (folder / "reason.json~").read_text() == "mine"
    assert json.loads((folder / "reason.json").read_text()) == REASON


@pytest.mark.parametrize("name", ["-rf.onnx", "a\nb.onnx", "\udcff.onnx", "x" * 250 + ".onnx"])
def test_a_hostile_name_moves_as_it_is(inbox: Path, name: str) -> None:
    (inbox / name).write_bytes(b"junk")
    drop = only_drop(inbox)
    folder = move_to_rejected(drop, inbox.parent / "rejected", name="odd", sha12=SHA12, reason=REASON)
    assert (folder / name).read_bytes() == b"junk"


def across(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every rename out of the inbox fail as one between file systems does."""
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if "inbox" in self.parts:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)


def test_across_file_systems_everything_is_made_anew(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (inbox / "a" / "sub").mkdir(parents=True)
    (inbox / "a" / "model.onnx").write_bytes(model_bytes())
    (inbox / "a" / "sub" / "link").symlink_to("/etc/shadow")
    os.mkfifo(inbox / "a" / "sub" / "pipe")
    (inbox.parent / "secret").write_text("s")
    os.link(inbox.parent / "secret", inbox / "a" / "hard")
    across(monkeypatch)
    folder = reject(inbox) / "a"
    assert names_in(inbox) == []
    assert (folder / "model.onnx").read_bytes() == model_bytes()
    assert (folder / "sub" / "link").is_symlink()
    assert (folder / "sub" / "pipe").is_fifo()
    assert not (folder / "hard").exists()  # the secret is not copied, and still where it was
    assert (inbox.parent / "secret").read_text() == "s"


class Crash(BaseException):
    """The process ends here."""


STEPS = [
    "os.fsync",
    "os.write",
    "os.fchmod",
    "Path.mkdir",
    "Path.rename",
    "Path.unlink",
    "Path.rmdir",
    "Path.symlink_to",
]


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_step_is_finished_by_recovery(
    inbox: Path, monkeypatch: pytest.MonkeyPatch, step: str, far: bool
) -> None:
    owner, call = (os, step[3:]) if step.startswith("os.") else (Path, step[5:])
    for moment in range(60):
        for old in inbox.iterdir():
            old.unlink()
        (inbox / "a.onnx").write_bytes(b"junk %d" % moment)
        (inbox / "a.yaml").write_text(str(moment))
        (inbox / "a.eval.npz").symlink_to("/etc/shadow")
        root = inbox.parent / f"rejected-{moment}"
        crashed = _crash_once(inbox, root, monkeypatch, (owner, call, moment, far))
        with monkeypatch.context() as patch:
            if far:
                across(patch)
            recover_rejected(root)
            recover_rejected(root)
            if any(inbox.iterdir()):  # nothing had moved: the daemon meets the drop again
                move_to_rejected(only_drop(inbox), root, name="a", sha12=SHA12, reason=REASON)
        (folder,) = root.iterdir()
        assert folder.name == f"a@{SHA12}-1"
        assert names_in(folder) == ["a.eval.npz", "a.onnx", "a.yaml", "reason.json"]
        assert (folder / "a.onnx").read_bytes() == b"junk %d" % moment
        assert json.loads((folder / "reason.json").read_text()) == REASON
        assert names_in(inbox) == []
        if not crashed:
            return
    pytest.fail("the move never came to its end")


def _crash_once(inbox: Path, root: Path, monkeypatch: pytest.MonkeyPatch, where: tuple[object, str, int, bool]) -> bool:
    owner, call, moment, far = where
    drop = only_drop(inbox)
    left = [moment]
    with monkeypatch.context() as patch:
        if far:
            across(patch)
        real = getattr(owner, call)

        def crash(*arguments: object, **named: object) -> object:
            if left[0] == 0:
                raise Crash
            left[0] -= 1
            return real(*arguments, **named)

        patch.setattr(owner, call, crash)
        try:
            move_to_rejected(drop, root, name="a", sha12=SHA12, reason=REASON)
        except Crash:
            return True
    return False


def test_a_drop_that_was_replaced_after_a_crash_is_not_taken_for_the_old_one(
    inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (inbox / "a.onnx").write_bytes(b"junk")
    root = inbox.parent / "rejected"
    assert _crash_once(inbox, root, monkeypatch, (rejected, "_move", 0, False))
    (inbox / "new").write_bytes(model_bytes())
    (inbox / "new").rename(inbox / "a.onnx")
    recover_rejected(root)
    assert (inbox / "a.onnx").read_bytes() == model_bytes()


def test_a_disk_fault_in_the_middle_is_gone_on_from_later(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (inbox / "a.onnx").write_bytes(b"junk")
    root = inbox.parent / "rejected"

    def fail(_source: Path, _target: Path) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(rejected, "_move", fail)
        for _ in range(3):
            with pytest.raises(StorageFault):
                reject(inbox)
    assert (inbox / "a.onnx").exists()
    assert reject(inbox).name == f"a@{SHA12}-1"
    assert names_in(root) == [f"a@{SHA12}-1"]


def test_recovery_of_nothing_is_nothing(tmp_path: Path) -> None:
    assert recover_rejected(tmp_path / "none") == []
