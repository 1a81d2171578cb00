from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeopt.daemon import scan as scanning
from edgeopt.daemon.backend import remote_filesystem
from edgeopt.daemon.drops import group
from edgeopt.daemon.scan import scan


def test_every_kind_of_entry_is_listed_and_none_is_opened_or_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/nowhere")
    found = {entry.path: entry for entry in scan(tmp_path)}
    assert {path: entry.kind for path, entry in found.items()} == {
        "file": "file", "folder": "dir", "fifo": "fifo", "link": "symlink",
    }  # fmt: skip
    assert found["file"].stamp.size_bytes == 5
    assert found["file"].stamp.inode == (tmp_path / "file").stat().st_ino


def test_a_missing_inbox_is_an_empty_listing_that_says_so(tmp_path: Path) -> None:
    listing = scan(tmp_path / "gone")
    assert (listing.missing, len(listing), list(listing)) == (True, 0, [])
    assert "No such file" in (listing.fault or "")


def test_a_file_in_the_inboxs_place_is_a_missing_inbox(tmp_path: Path) -> None:
    (tmp_path / "inbox").write_text("")
    assert scan(tmp_path / "inbox").missing


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    name = b"\xff\xfe \n.onnx"
    (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    (entry,) = scan(tmp_path)
    assert os.fsencode(entry.path) == name
    assert (tmp_path / entry.path).read_bytes() == b"x"


def test_unfinished_folders_are_not_looked_into(tmp_path: Path) -> None:
    (tmp_path / ".git" / "objects").mkdir(parents=True)
    assert [entry.path for entry in scan(tmp_path)] == [".git"]


def test_a_linked_folder_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("/etc")
    assert [entry.path for entry in scan(tmp_path)] == ["a"]


def test_a_folder_that_is_too_full_or_too_deep_is_cut_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "DROP_ENTRIES", 3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model.onnx").write_bytes(b"")
    for number in range(5):
        (tmp_path / "full" / f"model{number}.onnx").write_bytes(b"")
    (tmp_path / "deep" / "a" / "b" / "c" / "d").mkdir(parents=True)
    (tmp_path / "deep" / "model.onnx").write_bytes(b"")
    listing = scan(tmp_path)
    assert listing.overfull == {"full", "deep"}
    assert {drop.path: drop.problem for drop in group(listing)} == {"full": "overfull", "deep": "overfull"}


MOUNTS = r"""/dev/vda / ext4 rw 0 0
server:/x /mnt/nfs nfs4 rw 0 0
//srv/s /mnt/with\040space cifs rw 0 0
sshfs /mnt/ssh fuse.sshfs rw 0 0
/dev/sdb /mnt/ntfs fuseblk rw 0 0
tmpfs /mnt/nfs/local tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/srv/inbox", None),
        ("/mnt/nfs/inbox", "nfs4"),
        ("/mnt/nfs/local/inbox", None),
        ("/mnt/nfsx", None),
        ("/mnt/with space/inbox", "cifs"),
        ("/mnt/ssh", "fuse.sshfs"),
        ("/mnt/ntfs", None),
    ],
)
def test_the_innermost_mount_says_whether_events_can_be_trusted(tmp_path: Path, folder: str, kind: str | None) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    assert remote_filesystem(Path(folder), mounts=tmp_path / "mounts") == kind


def test_without_a_table_of_mounts_a_folder_counts_as_local(tmp_path: Path) -> None:
    assert remote_filesystem(tmp_path, mounts=tmp_path / "none") is None


def test_the_front_rooms_import_nothing_heavy() -> None:
    modules = (
        "watch scan settle drops names gate gate_zip protowalk take taking intake leave rejected companions backend"
    )
    heavy = ("numpy", "onnx", "onnxruntime", "torch", "zipfile", "yaml")
    imports = "; ".join(f"import edgeopt.daemon.{module}" for module in modules.split())
    code = f"import sys; {imports}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
