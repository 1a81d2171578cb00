"""The daemon's log: one line an event, whatever its fields hold."""

from __future__ import annotations

import io
import json
import os

from hypothesis import given
from hypothesis import strategies as st

from edgeopt.daemon.logs import Log, choose, render
from edgeopt.daemon.printable import printable

HOSTILE = 'a b="c"\n<6>forged\x1b[31m\u202egnp.exe\udcff'


def test_text_line_quotes_what_could_pass_for_more_fields() -> None:
    line = render(
        "text",
        "info",
        "job-queued",
        {"model": "digits", "file": 'a b="c"', "none": None, "ratio": 0.123456789},
        at_s=0.0,
    )
    assert line == '1970-01-01T00:00:00.000Z INFO job-queued model=digits file="a b=\\"c\\"" ratio=0.123457'


def test_json_line_is_one_document() -> None:
    line = render("json", "error", "device-trouble", {"reason": HOSTILE}, at_s=1.5)
    assert "\n" not in line
    assert json.loads(line) == {
        "at": "1970-01-01T00:00:01.500Z",
        "level": "error",
        "event": "device-trouble",
        "reason": HOSTILE,
    }


def test_journal_line_begins_with_its_priority() -> None:
    assert render("journal", "warning", "job-held", {}, at_s=0.0) == "<4>job-held"


@given(st.text(st.characters(codec=None), max_size=200))
def test_no_text_makes_a_second_line_or_leaves_the_printable(text: str) -> None:
    for shape in ("text", "journal"):
        line = render(shape, "info", "event", {"field": text}, at_s=0.0)
        assert line.isprintable()
        assert line.encode()
    assert "\n" not in render("json", "info", "event", {"field": text}, at_s=0.0)


@given(st.text(st.characters(codec=None), max_size=200), st.integers(2, 300))
def test_printable_text_is_printable_and_bounded(text: str, limit: int) -> None:
    shown = printable(text, limit=limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    if text.isprintable() and len(text) <= limit:
        assert shown == text


def test_level_leaves_out_what_is_below_it() -> None:
    stream = io.StringIO()
    log = Log(stream, level="warning", wall_s=lambda: 0.0)
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.alert("d")
    assert [line.split()[1:] for line in stream.getvalue().splitlines()] == [["WARNING", "c"], ["ERROR", "d"]]


def test_closed_stream_does_not_end_the_daemon() -> None:
    stream = io.StringIO()
    log = Log(stream)
    stream.close()
    log.info("a")


def test_auto_is_the_journals_format_only_where_stderr_is_the_journal() -> None:
    read, write = os.pipe()
    try:
        status = os.fstat(write)
        journal = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert choose("auto", environment=journal, descriptor=write) == "journal"
        assert choose("auto", environment={}, descriptor=write) == "text"
        assert choose("auto", environment={"JOURNAL_STREAM": "1:2"}, descriptor=write) == "text"
        assert choose("json", environment=journal, descriptor=write) == "json"
    finally:
        os.close(read)
        os.close(write)
