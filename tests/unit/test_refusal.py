"""The words of a candidate's refusal: what it is, what was seen, and what to do about it."""

from __future__ import annotations

import pytest

from edgeopt.errors import CompileFailed, MeasureFailed, PassFailed


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PassFailed("nothing goes", hint="Give a larger ratio."), "pass-failed: nothing goes. Give a larger ratio."),
        (PassFailed("nothing goes"), "pass-failed: nothing goes"),
        (CompileFailed("it said: No.", hint="Ask again."), "compile-failed: it said: No. Ask again."),
        (MeasureFailed("what was that?", hint="Ask again."), "measure-failed: what was that? Ask again."),
    ],
)
def test_refusal_is_code_fact_and_hint_as_sentences(error: PassFailed, told: str) -> None:
    assert error.refusal == told
