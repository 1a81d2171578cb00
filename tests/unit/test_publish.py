"""Publishing: versions, current, pins, retention, and what is not believed."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from edgeopt.config.schema import Publish
from edgeopt.daemon.publish import Origin, pin, publish, recover, rollback, unpin
from edgeopt.daemon.shelf import read
from edgeopt.errors import BadOutput, UsageError
from tests.published import check_whole, out_folder, versions


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "published").mkdir()
    return tmp_path / "published"


def three(root: Path, tmp_path: Path) -> Path:
    for content in (b"one", b"two", b"three"):
        publish(out_folder(tmp_path, content), "digits", root)
    return root / "digits"


def test_version_folder_is_whole_read_only_and_current(root: Path, tmp_path: Path) -> None:
    out = out_folder(tmp_path, b"model")
    done = publish(out, "digits", root, origin=Origin(job_id="j", key="k", created_s=0.0), settings=Publish(mode=0o640))
    assert (done.version, done.fresh, done.folder) == (1, True, root / "digits" / "1")
    manifest = check_whole(root / "digits" / "current")
    assert (manifest["name"], manifest["version"], manifest["created"]) == ("digits", 1, "1970-01-01T00:00:00Z")
    assert manifest["job"] == {"id": "j", "key": "k"}
    assert (done.folder.stat().st_mode & 0o777, (done.folder / "model.onnx").stat().st_mode & 0o777) == (0o555, 0o640)
    assert (root / "digits" / "current").readlink() == Path("1")


def test_new_content_is_the_next_version(root: Path, tmp_path: Path) -> None:
    home = three(root, tmp_path)
    assert versions(home) == [1, 2, 3]
    assert (home / "current" / "model.onnx").read_bytes() == b"three"


def test_same_outcome_twice_is_one_version(root: Path, tmp_path: Path) -> None:
    out = out_folder(tmp_path, b"model")
    publish(out, "digits", root)
    again = publish(out, "digits", root)
    assert (again.version, again.fresh) == (1, False)
    by_job = publish(out_folder(tmp_path, b"other"), "digits", root, origin=Origin(job_id="j"))
    redone = publish(out_folder(tmp_path, b"measured differently"), "digits", root, origin=Origin(job_id="j"))
    assert (by_job.version, redone.version, redone.fresh) == (2, 2, False)


def test_same_artifact_under_another_goal_is_a_new_version(root: Path, tmp_path: Path) -> None:
    publish(out_folder(tmp_path, b"model"), "digits", root)
    again = publish(out_folder(tmp_path, b"model", goal={"objective": "size"}), "digits", root)
    assert again.version == 2


def test_number_is_above_everything_the_name_ever_had(root: Path, tmp_path: Path) -> None:
    (root / "digits" / "4").mkdir(parents=True)
    assert publish(out_folder(tmp_path, b"a"), "digits", root).version == 5
    assert publish(out_folder(tmp_path, b"b"), "digits", root, origin=Origin(highest=9)).version == 10


def test_oldest_versions_make_room_but_never_current_or_pinned(root: Path, tmp_path: Path) -> None:
    for number in range(3):
        publish(out_folder(tmp_path, b"%d" % number), "digits", root, settings=Publish(keep=9))
    pin(root, "digits", 1)
    done = publish(out_folder(tmp_path, b"new"), "digits", root, settings=Publish(keep=2))
    assert done.removed == (2,)
    assert versions(root / "digits") == [1, 3, 4]
    assert read(root, "digits").current == 1


def test_pinned_name_stays_where_it_is_until_unpinned(root: Path, tmp_path: Path) -> None:
    three(root, tmp_path)
    assert pin(root, "digits", 2) == 2
    publish(out_folder(tmp_path, b"four"), "digits", root, settings=Publish(keep=9))
    assert (read(root, "digits").current, read(root, "digits").pinned) == (2, 2)
    assert unpin(root, "digits") == 4
    assert (read(root, "digits").current, read(root, "digits").pinned) == (4, 0)


def test_rollback_goes_one_back_or_to_a_named_version(root: Path, tmp_path: Path) -> None:
    three(root, tmp_path)
    assert rollback(root, "digits") == 2
    assert rollback(root, "digits") == 1
    assert rollback(root, "digits", 3) == 3
    with pytest.raises(UsageError, match="no version 7; it has 1, 2, 3"):
        rollback(root, "digits", 7)
    with pytest.raises(UsageError, match="nothing is published"):
        rollback(root, "../digits")


def test_reader_never_misses_current_while_it_is_swapped(root: Path, tmp_path: Path) -> None:
    home = three(root, tmp_path)
    stop = threading.Event()
    missed: list[OSError] = []

    def look() -> None:
        while not stop.is_set():
            try:
                (home / "current" / "manifest.json").read_bytes()
            except OSError as error:
                missed.append(error)

    reader = threading.Thread(target=look)
    reader.start()
    for number in (1, 2, 3) * 30:
        rollback(root, "digits", number)
    stop.set()
    reader.join()
    assert missed == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda out: (out / "manifest.json").unlink(),
        lambda out: (out / "manifest.json").write_text("no json"),
        lambda out: (out / "manifest.json").write_text("[" * 100_000),
        lambda out: (out / "manifest.json").write_text('{"schema": 2}'),
        lambda out: (out / "manifest.json").write_text('{"schema": 1, "source": {}, "artifact": []}'),
        lambda out: (out / "model.onnx").write_bytes(b"something else"),
        lambda out: (out / "model.onnx").unlink(),
        lambda out: (out / "folder").mkdir(),
        lambda out: os.mkfifo(out / "pipe"),
        lambda out: (out / ".hidden").write_text(""),
        lambda out: (out / "bad name").write_text(""),
        lambda out: [(out / f"f{number}").write_text("") for number in range(100)],
    ],
)
def test_output_that_is_not_what_it_says_is_refused_and_leaves_nothing(
    root: Path, tmp_path: Path, spoil: object
) -> None:
    out = out_folder(tmp_path, b"model")
    spoil(out)  # type: ignore[operator]
    with pytest.raises(BadOutput):
        publish(out, "digits", root)
    assert list(root.iterdir()) == []


def test_link_in_the_output_is_never_followed(root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("canary")
    out = out_folder(tmp_path, b"model")
    (out / "extra").symlink_to(secret)
    with pytest.raises(BadOutput, match="no plain file"):
        publish(out, "digits", root)
    assert not any(b"canary" in file.read_bytes() for file in root.rglob("*") if file.is_file())


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", ".x", "a\n", "x" * 65, "ä"])
def test_name_that_is_no_name_is_refused(root: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadOutput):
        publish(out_folder(tmp_path, b"model"), name, root)


def test_number_that_is_none_in_the_manifest_is_refused(root: Path, tmp_path: Path) -> None:
    out = out_folder(tmp_path, b"model")
    text = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(text.replace('"bytes": 10', '"bytes": NaN'))
    with pytest.raises(BadOutput, match="number that is none"):
        publish(out, "digits", root)


def test_recovery_removes_what_is_half_made_and_repairs_current(root: Path, tmp_path: Path) -> None:
    home = three(root, tmp_path)
    (home / ".tmp-abc").mkdir()
    (home / ".current-abc").symlink_to("9")
    (home / "current").unlink()
    (home / "current").symlink_to("17")
    (root / "never" / ".tmp-x").mkdir(parents=True)
    (shelf,) = recover(root)
    assert (shelf.current, shelf.versions) == (3, (1, 2, 3))
    assert sorted(entry.name for entry in home.iterdir()) == ["1", "2", "3", "current"]
    assert not (root / "never").exists()


def test_recovery_leaves_a_rollback_alone(root: Path, tmp_path: Path) -> None:
    three(root, tmp_path)
    rollback(root, "digits", 1)
    (shelf,) = recover(root)
    assert shelf.current == 1


def test_layout_is_a_triton_model_repository(root: Path, tmp_path: Path) -> None:
    home = three(root, tmp_path)
    numeric = [entry for entry in home.iterdir() if entry.name.isdecimal() and not entry.name.startswith("0")]
    assert all((entry / "model.onnx").is_file() for entry in numeric)
    assert json.loads((home / "3" / "manifest.json").read_text())["version"] == 3
