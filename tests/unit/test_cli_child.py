from __future__ import annotations

import json

import pytest

from edgeopt.cli.child import ask
from edgeopt.errors import InputError, JobTimeout, WorkerCrashed


def test_document_of_the_child_comes_back() -> None:
    assert ask("json.tool", [], stdin='{"format": "onnx"}') == {"format": "onnx"}


def test_refusal_of_the_child_becomes_an_error_with_its_hint() -> None:
    refusal = {"error": {"message": "opset 3 is too old", "hint": "Export it again."}}
    with pytest.raises(InputError, match="too old") as caught:
        ask("json.tool", [], stdin=json.dumps(refusal))
    assert caught.value.hint == "Export it again."


@pytest.mark.parametrize(("module", "stdin"), [("this", ""), ("no_such_module", ""), ("json.tool", "[1]")])
def test_child_without_a_document_is_a_crash_in_words(module: str, stdin: str) -> None:
    with pytest.raises(WorkerCrashed):
        ask(module, [], stdin=stdin)


def test_child_that_hangs_is_ended() -> None:
    with pytest.raises(JobTimeout):
        ask("http.server", ["--bind", "127.0.0.1", "0"], timeout_s=0.5)
