from __future__ import annotations

from pathlib import Path

from edgeopt.daemon import drops, settle
from edgeopt.daemon.scan import Found, Listing
from edgeopt.daemon.settle import Settler, Stamp

PATH = "digits.onnx"


def test_growing_file_settles_only_after_last_write() -> None:
    settler: Settler[str] = Settler(quiet_s=2.0)
    for now_s in (0.0, 1.5, 3.0):
        settler.observe(PATH, Stamp(inode=1, size_bytes=int(now_s * 10), mtime_ns=0), now_s)
        assert list(settler.settled(now_s)) == []
    assert list(settler.settled(5.0)) == [PATH]


def test_a_file_that_stops_growing_but_is_rewritten_in_place_starts_anew() -> None:
    settler: Settler[str] = Settler(quiet_s=2.0)
    settler.observe(PATH, Stamp(1, 10, mtime_ns=5), 0.0)
    settler.observe(PATH, Stamp(1, 10, mtime_ns=6), 1.9)
    assert settler.settled(3.8) == []
    assert settler.settled(3.9) == [PATH]


def test_a_replaced_file_of_the_same_size_and_time_starts_anew() -> None:
    settler: Settler[str] = Settler(quiet_s=2.0)
    settler.observe(PATH, Stamp(1, 10, 5), 0.0)
    settler.observe(PATH, Stamp(2, 10, 5), 2.0)
    assert settler.settled(2.0) == []


def test_a_write_with_its_time_set_back_is_seen_by_ctime() -> None:
    settler: Settler[str] = Settler(quiet_s=2.0)
    settler.observe(PATH, Stamp(1, 10, 5, ctime_ns=1), 0.0)
    settler.observe(PATH, Stamp(1, 10, 5, ctime_ns=2), 2.0)
    assert settler.settled(3.0) == []


def test_a_forgotten_file_starts_anew_and_forgetting_twice_is_fine() -> None:
    settler: Settler[str] = Settler(quiet_s=2.0)
    settler.observe(PATH, Stamp(1, 10, 5), 0.0)
    settler.forget(PATH)
    settler.forget(PATH)
    settler.observe(PATH, Stamp(1, 10, 5), 1.0)
    assert settler.settled(2.5) == []
    assert settler.quiet_for(PATH, 2.5) == 1.5


def test_a_file_that_is_gone_from_the_listing_is_forgotten() -> None:
    settler: Settler[str] = Settler(quiet_s=1.0)
    settle.observe_all(settler, listing(Found("a.onnx", "file", Stamp(1, 1, 1))), 0.0)
    settle.observe_all(settler, listing(), 1.0)
    assert settler.settled(9.0) == []


def test_a_listing_that_failed_forgets_nothing() -> None:
    settler: Settler[str] = Settler(quiet_s=1.0)
    settle.observe_all(settler, listing(Found("a.onnx", "file", Stamp(1, 1, 1))), 0.0)
    settle.observe_all(settler, Listing(root=Path("/inbox"), missing=True), 0.5)
    assert settler.settled(1.0) == ["a.onnx"]


def test_a_growing_sidecar_keeps_its_whole_drop_waiting() -> None:
    settler: Settler[str] = Settler(quiet_s=2.0)
    for now_s in (0.0, 2.0, 4.0):
        now = listing(
            Found("a.calibration.npz", "file", Stamp(2, int(now_s), 0)), Found("a.onnx", "file", Stamp(1, 5, 0))
        )
        settle.observe_all(settler, now, now_s)
        assert settle.ready(drops.group(now), settler, now_s) == []
    assert [drop.path for drop in settle.ready(drops.group(now), settler, 6.0)] == ["a.onnx"]


def test_a_folder_settles_as_a_whole() -> None:
    settler: Settler[str] = Settler(quiet_s=2.0)
    model, folder = Found("a/model.onnx", "file", Stamp(1, 5, 0)), Found("a", "dir", Stamp(9, 0, 0))
    settle.observe_all(settler, listing(folder, model), 0.0)
    late = listing(folder, Found("a/eval.npz", "file", Stamp(2, 5, 0)), model)
    settle.observe_all(settler, late, 1.9)
    assert settle.ready(drops.group(late), settler, 2.0) == []
    assert [drop.path for drop in settle.ready(drops.group(late), settler, 3.9)] == ["a"]


def test_the_next_due_time_is_the_soonest_pending_one() -> None:
    settler: Settler[str] = Settler(quiet_s=2.0)
    assert settler.next_due_s(0.0) is None
    settler.observe("a", Stamp(1, 1, 1), 0.0)
    settler.observe("b", Stamp(2, 1, 1), 1.0)
    assert settler.next_due_s(1.5) == 0.5
    assert settler.next_due_s(2.5) == 0.5
    assert settler.next_due_s(9.0) is None


def listing(*found: Found) -> Listing:
    return Listing(root=Path("/inbox"), found=tuple(sorted(found, key=lambda entry: entry.path)))
