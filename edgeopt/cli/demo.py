"""``edgeopt demo``: the whole job in one minute with nothing configured, through the real daemon.

A temporary folder and a configuration are made, ``edgeopt serve`` is started on them, the shipped digits CNN is dropped
with its calibration samples and labelled eval samples, and what the daemon publishes is shown. Nothing is staged for
the show: progress comes from the daemon's API, the table from the published manifest, the numbers from ``/metrics``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.cli import progress
from edgeopt.cli.optimize import print_result, terminated_as_interrupted
from edgeopt.errors import DaemonError, InputError, JobTimeout
from edgeopt.layout import CURRENT_LINK, MANIFEST_FILE
from edgeopt.orders import Event

if TYPE_CHECKING:
    from edgeopt.cli.main import Subparsers
    from edgeopt.cli.progress import Observe

NAME = "digits"
SHIPPED = Path(__file__).resolve().parent.parent / "demo"
# the model comes last: it is what makes the files a drop
_FILES = (f"{NAME}.calibration.npz", f"{NAME}.eval.npz", f"{NAME}.onnx")
_CONFIG = """\
inbox: inbox
published: published
rejected: rejected
state: state
watch: {{settle: 500ms}}
search: {{budget: {budget_s:g}s}}
http: {{listen: "127.0.0.1:{port}"}}
"""
_BUDGET_S = 45.0
_START_TIMEOUT_S = 30.0
_JOB_TIMEOUT_S = 240.0
_STOP_TIMEOUT_S = 15.0
_POLL_S = 0.25
_OVER = ("published", "duplicate", "rejected", "failed", "cancelled")
_SHOWN_METRICS = (
    "edgeopt_jobs_total",
    "edgeopt_candidates_total",
    "edgeopt_model_speedup_ratio",
    "edgeopt_model_latency_seconds",
    "edgeopt_model_size_bytes",
    "edgeopt_model_quality_ratio",
)
_LAST_LINES = 15


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon that this command started, and its folder."""

    root: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> Path:
        return self.root / "daemon.log"

    def get(self, path: str) -> bytes:
        """The body of a page; :class:`OSError` where the daemon does not answer or is not ready."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5.0) as answer:
            body: bytes = answer.read()
        return body

    def check_alive(self) -> None:
        """Raise where the process ended."""
        if (code := self.process.poll()) is not None:
            raise DaemonError(f"the daemon ended with exit code {code}: {self.last_words()}")

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        return " | ".join(lines) or "it said nothing"


def add_parser(subparsers: Subparsers) -> None:
    """Arguments of ``demo``."""
    parser = subparsers.add_parser(
        "demo",
        help="the whole job in one minute, with nothing configured",
        description="Start the daemon on a temporary folder, drop the shipped digits CNN, show what comes out.",
    )
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder with all that lies in it")


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; 0 only if an artifact was really published."""
    root = Path(tempfile.mkdtemp(prefix="edgeopt-demo-"))
    try:
        with terminated_as_interrupted(), _started(root) as daemon:
            _say(f"the daemon runs on {root}, http://127.0.0.1:{daemon.port}")
            _drop(root / "inbox")
            _say(f"dropped {', '.join(_FILES)}")
            with progress.shown(sys.stderr, name=NAME) as observe:
                _follow(daemon, observe)
            _show(root / "published" / NAME / CURRENT_LINK, daemon)
    finally:
        if arguments.keep:
            _say(f"kept {root}")
        else:
            _remove(root)
    if not arguments.keep:
        print("        (a demo's folder is removed at its end; --keep keeps it)")
    return 0


@contextmanager
def _started(root: Path) -> Iterator[Daemon]:
    """A ready daemon on ``root``; whatever happens, it is ended."""
    (root / "inbox").mkdir()
    port = _free_port()
    config = root / "edgeopt.yaml"
    config.write_text(_CONFIG.format(port=port, budget_s=_BUDGET_S))
    with (root / "daemon.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "edgeopt", "serve", "-c", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us; the daemon is ended in order below
        )
    daemon = Daemon(root, port, process)
    try:
        _await_ready(daemon)
        yield daemon
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_ready(daemon: Daemon) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        daemon.check_alive()
        with contextlib.suppress(OSError):
            daemon.get("/readyz")
            return
        time.sleep(_POLL_S)
    raise DaemonError(f"the daemon was not ready after {_START_TIMEOUT_S:.0f} s: {daemon.last_words()}")


def _drop(inbox: Path) -> None:
    for name in _FILES:
        # as a careful program drops: under a name that waits, then renamed
        unfinished = inbox / f".{name}.part"
        shutil.copyfile(SHIPPED / name, unfinished)
        unfinished.rename(inbox / name)


def _follow(daemon: Daemon, observe: Observe) -> None:
    """Show the job's progress until it is over; raises where it did not end published."""
    deadline = time.monotonic() + _JOB_TIMEOUT_S
    stage = ""
    while time.monotonic() < deadline:
        daemon.check_alive()
        job = _job(daemon)
        if job is not None:
            if job["stage"] != stage:
                stage = job["stage"]
                observe(Event(kind="stage", fields={"stage": stage or job["state"]}))
            observe(Event(kind="progress", fields=_progress(job)))
            if job["state"] in _OVER:
                return _require_published(job)
        time.sleep(_POLL_S)
    raise JobTimeout(
        f"nothing was published within {_JOB_TIMEOUT_S:.0f} s: {daemon.last_words()}", hint="Run it again with --keep."
    )


def _job(daemon: Daemon) -> dict[str, Any] | None:
    try:
        jobs = json.loads(daemon.get("/api/v1/jobs"))["jobs"]
    except (OSError, ValueError):
        return None  # a busy machine may miss one poll; check_alive notices a dead daemon
    return next((job for job in jobs if job["name"] == NAME), None)


def _progress(job: dict[str, Any]) -> dict[str, Any]:
    """The API's ``progress`` (0..1) and ``trial`` (``trial 3/9``) as the worker's own event has them."""
    trial = re.fullmatch(r"trial (\d+)/(\d+)", job.get("trial") or "")
    return {
        "ratio": job.get("progress") or 0.0,
        "trial": int(trial[1]) if trial else 0,
        "trials": int(trial[2]) if trial else 0,
    }


def _require_published(job: dict[str, Any]) -> None:
    if job["state"] != "published":
        raise InputError(f"the job ended {job['state']}: {job.get('message') or 'no reason given'}")


def _show(version: Path, daemon: Daemon) -> None:
    folder = version.resolve()
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    baseline = manifest["baseline"].get("quality", {})
    print_result(manifest, folder=folder, reason=manifest.get("verdict", ""))
    print(f"files   {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if baseline.get("kind") == "accuracy":
        published = manifest["result"]["quality"]
        print(
            f"        accuracy {baseline['value']:.4f} before, {published['value']:.4f} after, on {published['samples']} scans"
        )
    print("\n/metrics says")
    for line in daemon.get("/metrics").decode().splitlines():
        if line.startswith(_SHOWN_METRICS):
            print(f"        {line}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _remove(root: Path) -> None:
    from edgeopt.daemon import storage

    storage.remove_tree(root)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
