"""Asking a child process: what needs numpy or opens a foreign model runs there, never in the command line's process.

A module of ``edgeopt.worker`` and its arguments go in, the one JSON document that it prints comes out.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from edgeopt.errors import InputError, JobTimeout, WorkerCrashed

_LAST_WORDS = 400


def ask(module: str, arguments: Sequence[str], *, stdin: str = "", timeout_s: float = 600.0) -> dict[str, Any]:
    """Run ``python -m module`` and return its document.

    A document ``{"error": {"message", "hint"}}`` becomes an :class:`InputError`; a child that dies without a document
    is a :class:`WorkerCrashed` with its last words, one that takes too long a :class:`JobTimeout`.
    """
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise JobTimeout(f"{module} took longer than {timeout_s:.0f} s", hint="Try a smaller model.") from error
    try:
        document = json.loads(done.stdout)
    except ValueError as error:
        raise WorkerCrashed(
            f"{module} {_end(done.returncode)}: {done.stderr.strip()[-_LAST_WORDS:] or 'it said nothing'}",
            hint="Run `edgeopt doctor` to see whether this device lacks something.",
        ) from error
    if isinstance(document, dict) and isinstance(refusal := document.get("error"), dict):
        raise InputError(str(refusal.get("message", "refused")), hint=str(refusal.get("hint", "")))
    if not isinstance(document, dict):
        raise WorkerCrashed(f"{module} answered with {type(document).__name__}, not a document")
    return document


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """Ask ``edgeopt.worker.probe``, with a temporary folder as the only place it may write to."""
    with tempfile.TemporaryDirectory(prefix="edgeopt-probe-") as work:
        return ask("edgeopt.worker.probe", [work], stdin=json.dumps(request))


def _end(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
