"""Settling as sequences of writes and looks: nothing is called finished that changed within the quiet time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgeopt.daemon.settle import Settler, Stamp

QUIET_S = 2.0
steps = st.lists(
    st.tuples(st.sampled_from(["write", "replace", "look", "remove", "touch"]), st.integers(0, 40)), max_size=40
)


@given(steps)
def test_a_path_is_settled_exactly_when_it_looked_the_same_for_the_quiet_time(steps: list[tuple[str, int]]) -> None:
    settler: Settler[str] = Settler(QUIET_S)
    now_s, size, inode, mtime = 0.0, 0, 1, 0
    looks: list[tuple[float, Stamp]] = []
    for step, tenths in steps:
        now_s += tenths / 10
        if step == "write":
            size += 1
        elif step == "touch":
            mtime += 1
        elif step == "replace":
            inode += 1
        elif step == "remove":
            settler.forget("f")
            looks = []
        if step == "look":
            stamp = Stamp(inode, size, mtime)
            settler.observe("f", stamp, now_s)
            looks.append((now_s, stamp))
        assert (settler.settled(now_s) == ["f"]) == (bool(looks) and now_s - _unchanged_since(looks) >= QUIET_S)


def _unchanged_since(looks: list[tuple[float, Stamp]]) -> float:
    since_s = looks[-1][0]
    for seen_s, stamp in reversed(looks):
        if stamp != looks[-1][1]:
            break
        since_s = seen_s
    return since_s


@given(st.lists(st.floats(0.01, QUIET_S - 0.01), min_size=1, max_size=30), st.floats(0.01, 0.5))
def test_a_file_written_with_pauses_below_the_quiet_time_never_settles_before_its_end(
    pauses: list[float], look_every_s: float
) -> None:
    settler: Settler[str] = Settler(QUIET_S)
    writes = [sum(pauses[:number]) for number in range(len(pauses) + 1)]
    now_s = 0.0
    while now_s <= writes[-1]:
        written = sum(1 for moment in writes if moment <= now_s)
        settler.observe("f", Stamp(1, written, written), now_s)
        assert settler.settled(now_s) == [] or now_s >= writes[-1]
        now_s += look_every_s
    settler.observe("f", Stamp(1, len(writes), len(writes)), now_s)
    settler.observe("f", Stamp(1, len(writes), len(writes)), now_s + QUIET_S + 0.001)
    assert settler.settled(now_s + QUIET_S + 0.001) == ["f"]
