"""The parts of healing: kept sources, reading published files again, retreating from what is bad, what is in need."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt import wire
from edgeopt.config.schema import Publish
from edgeopt.daemon import marks, publish, scrub, shelf, sources
from edgeopt.daemon.healing import Need, need_of
from edgeopt.daemon.marks import Mark
from edgeopt.daemon.metrics import ModelFacts
from edgeopt.daemon.models import Model
from edgeopt.daemon.publish import Origin
from edgeopt.daemon.retreat import found_whole, retreat
from edgeopt.daemon.shelf import Shelf
from edgeopt.daemon.sources import Remake
from edgeopt.errors import CorruptState, UsageError
from edgeopt.layout import JobFolder
from edgeopt.orders import Healing, JobOrder
from edgeopt.policy import Goal, Policy, WorkerLimits
from tests.inbox import external_model, names_in, npz_bytes, take
from tests.published import out_folder

BAD = Mark(kind=marks.DAMAGED, reason="a bit rotted")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "published").mkdir()
    return tmp_path / "published"


def put(root: Path, *contents: bytes, keep: int = 9) -> Path:
    """Versions holding these contents; the model's folder."""
    for content in contents:
        publish.publish(out_folder(root.parent, content), "m", root, settings=Publish(keep=keep))
    return root / "m"


def rot(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)


# ---------------------------------------------------------------- kept sources
@pytest.fixture
def staged(tmp_path: Path) -> Any:
    """A taken drop with everything that one can have."""
    inbox = tmp_path / "inbox" / "m"
    (inbox / "calibration").mkdir(parents=True)
    (inbox / "model.onnx").write_bytes(external_model())
    (inbox / "w.data").write_bytes(bytes(16))
    (inbox / "job.yaml").write_text("goal: {max_drop: 0.02}")
    (inbox / "eval.npz").write_bytes(npz_bytes())
    for number in range(3):
        (inbox / "calibration" / f"{number}.npz").write_bytes(npz_bytes())
    return take(tmp_path / "inbox", policy=Policy(goal=Goal(max_drop=0.03)))


def remake_of(key: str) -> Remake:
    return Remake(key=key, limits=WorkerLimits(nice=3), heals=Healing(version=2, reasons=("runtime",)))


def test_kept_source_becomes_the_same_job_with_todays_limits(staged: Any, tmp_path: Path) -> None:
    before = {file.relative_to(staged.folder.input): file.read_bytes() for file in files_in(staged.folder.input)}
    sources.keep(staged.folder, staged.key, tmp_path / "sources")
    sources.keep(staged.folder, staged.key, tmp_path / "sources")
    order = sources.stage(tmp_path / "sources", tmp_path / "staging", remake_of(staged.key))
    folder = JobFolder(tmp_path / "staging" / order.job_id)
    assert wire.loads(JobOrder, folder.order.read_bytes()) == order
    assert (order.policy, order.files, order.source) == (staged.order.policy, staged.order.files, staged.order.source)
    assert (order.limits.nice, order.heals) == (3, Healing(version=2, reasons=("runtime",)))
    assert order.job_id != staged.order.job_id
    assert {file.relative_to(folder.input): file.read_bytes() for file in files_in(folder.input)} == before
    # the source is still there, for the next time
    assert sources.folder_of(tmp_path / "sources", staged.key).order.is_file()


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["model.onnx", "w.data", "job.yaml", "calibration/1.npz"])
def test_source_that_is_not_what_it_was_is_never_worked_on(staged: Any, tmp_path: Path, name: str) -> None:
    sources.keep(staged.folder, staged.key, tmp_path / "sources")
    rot(sources.folder_of(tmp_path / "sources", staged.key).input / name)
    with pytest.raises(CorruptState, match="not what it was"):
        sources.stage(tmp_path / "sources", tmp_path / "staging", remake_of(staged.key))
    assert staged.folder.root.name not in names_in(tmp_path / "sources")
    assert [name for name in names_in(tmp_path / "staging") if name != staged.folder.root.name] == []


def test_source_with_another_policy_is_not_the_one_asked_for(staged: Any, tmp_path: Path) -> None:
    sources.keep(staged.folder, staged.key, tmp_path / "sources")
    order = sources.folder_of(tmp_path / "sources", staged.key).order
    order.write_text(order.read_text().replace("0.03", "0.9"))
    with pytest.raises(CorruptState):
        sources.stage(tmp_path / "sources", tmp_path / "staging", remake_of(staged.key))


def test_source_that_was_not_kept_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sources.stage(tmp_path, tmp_path, remake_of("0" * 64))


def test_sources_of_nothing_served_go_and_so_do_the_oldest_beyond_the_share(tmp_path: Path) -> None:
    for age, key in enumerate(("a", "b", "c", "d")):
        folder = tmp_path / key
        folder.mkdir()
        (folder / "model.onnx").write_bytes(bytes(1000))
        os.utime(folder, (1000 - age, 1000 - age))
    room = os.statvfs(tmp_path)
    share = 2500 / (room.f_blocks * room.f_frsize)
    (tmp_path / ".new-half").mkdir()
    gone = sources.prune(tmp_path, {"a", "c", "d"}, share=share)
    assert {path.name for path in gone} == {"b", "d", ".new-half"}
    assert names_in(tmp_path) == ["a", "c"]


# ---------------------------------------------------------------- reading files again
def test_every_version_is_read_what_is_served_first(root: Path) -> None:
    home = put(root, b"one", b"two", b"three")
    shelf.rollback(root, "m", 2)
    marks.put(home, 3, BAD)
    for number in (1, 2):
        rot(home / str(number) / "report.html")
    found = [item for item in scrub.round_(root) if item]
    assert [(item.version, bool(item.problem)) for item in found] == [(2, True), (3, False), (1, True)]
    assert "report.html has sha256" in found[0].problem


def test_reading_pauses_after_every_slice(root: Path) -> None:
    put(root, bytes(5 << 20))
    steps = list(scrub.round_(root, slice_bytes=1 << 20))
    assert set(steps) == {None}
    assert 5 <= len(steps) <= 6


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "SHA256SUMS", "report.html"])
def test_no_flipped_bit_is_overlooked(root: Path, name: str) -> None:
    file = put(root, b"model") / "1" / name
    file.chmod(0o644)
    whole = file.read_bytes()
    breaks = [position for position, byte in enumerate(whole) if byte == 10]
    for position in {*range(0, len(whole), 1 + len(whole) // 60), *breaks}:
        for bit in (0, 5):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            file.write_bytes(flipped)
            assert scrub.problem_of(file.parent), f"bit {bit} of byte {position}"
    file.write_bytes(whole)
    assert scrub.problem_of(file.parent) == ""


def test_file_that_is_gone_is_a_finding_and_a_version_that_is_gone_none(root: Path) -> None:
    home = put(root, b"one", b"two")
    (home / "2").chmod(0o755)
    (home / "2" / "model.onnx").unlink()
    steps = scrub.round_(root)
    first = next(step for step in steps if step)
    assert "model.onnx cannot be read" in first.problem
    shelf.retain(shelf.read(root, "m"), keep=1)
    assert list(steps) == []


# ---------------------------------------------------------------- marks and retreat
def test_retreat_marks_and_leads_to_the_last_version_that_reads_whole(root: Path) -> None:
    home = put(root, b"one", b"two", b"three")
    rot(home / "2" / "model.onnx")
    assert retreat(root, "m", 3, BAD) == 1
    found = shelf.read(root, "m")
    assert (found.current, found.bad, found.versions) == (1, (2, 3), (1, 2, 3))
    assert found.marks[3].reason == "a bit rotted"
    assert "sha256" in found.marks[2].reason


def test_retreat_from_the_only_version_leaves_it_in_place_marked(root: Path) -> None:
    put(root, b"one")
    assert retreat(root, "m", 1, BAD) == 1
    assert shelf.read(root, "m").bad == (1,)
    assert retreat(root, "m", 7, BAD) == 1
    assert shelf.read(root, "m").bad == (1,)


def test_pin_moves_along_with_a_retreat(root: Path) -> None:
    put(root, b"one", b"two")
    shelf.pin(root, "m", 2)
    retreat(root, "m", 2, BAD)
    assert (shelf.read(root, "m").current, shelf.read(root, "m").pinned) == (1, 1)


def test_nobody_is_led_to_a_bad_version(root: Path) -> None:
    home = put(root, b"one", b"two", b"three")
    marks.put(home, 2, BAD)
    assert shelf.rollback(root, "m") == 1
    for lead in (shelf.rollback, shelf.pin):
        with pytest.raises(UsageError, match="a bit rotted"):
            lead(root, "m", 2)
    marks.put(home, 3, Mark(kind=marks.FAILED))
    assert shelf.unpin(root, "m") == 1
    (home / "current").unlink()
    shelf.recover(root)
    assert shelf.read(root, "m").current == 1


def test_bad_version_takes_no_good_ones_place_and_goes_with_its_mark_in_the_end(root: Path) -> None:
    home = put(root, b"one", b"two")
    retreat(root, "m", 2, BAD)
    put(root, b"three", keep=2)
    assert shelf.read(root, "m").versions == (1, 2, 3)
    put(root, b"four", b"five", keep=2)
    assert shelf.read(root, "m").versions == (4, 5)
    assert not any(name.startswith(".mark") for name in names_in(home))


def test_mark_comes_off_a_version_that_is_whole_again_but_not_off_one_that_failed(root: Path) -> None:
    home = put(root, b"one", b"two")
    marks.put(home, 1, BAD)
    marks.put(home, 2, Mark(kind=marks.FAILED, reason="it does not run"))
    assert [found_whole(root, "m", number) for number in (1, 2)] == [True, False]
    assert shelf.read(root, "m").bad == (2,)


@given(
    content=st.binary(max_size=40) | st.sampled_from([b'{"kind": "x", "reason": ""}', b'{"kind": "untried"}', b"[]"])
)
def test_mark_that_does_not_read_means_damaged(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    home = tmp_path_factory.mktemp("m")
    (home / ".mark-3").write_bytes(content)
    assert marks.read(home, [".mark-3", "3", "current"])[3].kind == marks.DAMAGED


def test_same_outcome_is_published_anew_where_the_version_is_bad_or_the_conditions_are_others(root: Path) -> None:
    home = put(root, b"one")
    assert publish.publish(out_folder(root.parent, b"one"), "m", root).fresh is False
    environment = {"fingerprint": {"runtime_version": "2.0"}}
    again = publish.publish(
        out_folder(root.parent, b"one", environment=environment),
        "m",
        root,
        origin=Origin(heals=Healing(version=1, reasons=("runtime",))),
    )
    assert (again.version, again.fresh) == (2, True)
    manifest = json.loads((home / "2" / "manifest.json").read_text())
    assert manifest["healed"] == {"version": 1, "reasons": ["runtime"], "same_artifact": True}
    marks.put(home, 2, BAD)
    assert publish.publish(out_folder(root.parent, b"one", environment=environment), "m", root).version == 3
    rot(home / "3" / "manifest.json")
    assert publish.publish(out_folder(root.parent, b"one", environment=environment), "m", root).version == 4


# ---------------------------------------------------------------- what is in need
def model(*, stale: tuple[str, ...] = (), current: int = 2, pinned: int = 0, **bad: Mark) -> Model:
    found = {int(name.removeprefix("v")): mark for name, mark in bad.items()}
    folder = Path("m")
    one = Shelf(name="m", folder=folder, versions=(1, 2), highest=2, current=current, pinned=pinned, marks=found)
    return Model(shelf=one, facts=ModelFacts(name="m", version=current, stale=stale), row={})


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        (model(), None),
        (model(stale=("runtime", "device")), Need(name="m", version=2, reasons=("runtime", "device"))),
        (model(stale=("runtime",), current=1), Need(name="m", version=1, reasons=("runtime",))),
        (model(stale=("damaged",), current=1, v2=BAD), Need(name="m", version=2, reasons=("damaged",))),
        # the operator holds it there
        (model(stale=("runtime",), pinned=2), None),
        # made anew it would be the same, and fail again
        (model(stale=("smoke",), current=1, v2=Mark(kind=marks.FAILED)), None),
        # an old version that rotted is no loss
        (model(v1=BAD), None),
    ],
)
def test_what_is_made_anew(given_: Model, wanted: Need | None) -> None:
    assert need_of(given_) == wanted
