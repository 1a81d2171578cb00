"""Bundles with any bytes changed: taken only when every member is what it was, refused in words otherwise."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.errors import InputError
from tests.bundles import members, packed
from tests.inbox import take

WHOLE = packed(members())


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """A bundle with some bytes set, cut out, doubled, or its end gone; half of them in the directory at its end."""
    data = bytearray(WHOLE)
    for _ in range(draw(st.integers(1, 4))):
        low = draw(st.sampled_from([0, max(0, len(data) - 800)]))
        at = draw(st.integers(low, max(low, len(data) - 1)))
        kind, span = draw(st.sampled_from(["set", "cut", "double", "end"])), draw(st.integers(1, 16))
        if kind == "set" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + span]
        elif kind == "double":
            data[at:at] = data[at : at + span]
        else:
            del data[-span:]
    return bytes(data)


@settings(max_examples=60, deadline=None)
@given(mutants())
def test_what_is_taken_out_of_a_damaged_bundle_is_whole(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        inbox = Path(folder) / "inbox"
        inbox.mkdir()
        (inbox / "digits.edgeopt").write_bytes(data)
        try:
            staged = take(inbox)
        except InputError as error:
            assert error.message
            assert error.hint
            assert not list((inbox.parent / "staging").iterdir())
            return
        found = {path for path in staged.folder.input.rglob("*") if path.is_file()}
        assert {str(path.relative_to(staged.folder.input)): path.read_bytes() for path in found} == members()
