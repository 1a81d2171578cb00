"""A real daemon process with the fake worker, or the real one, for tests: started, dropped into, asked, killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.inbox import model_bytes

FAKE_WORKER = Path(__file__).parent / "fake_worker.py"
REAL_WORKER = "-P|-m|edgeopt.worker"
_ENTRY = """
import sys
from pathlib import Path
from edgeopt.config import reader
from edgeopt.daemon import app
from edgeopt.errors import EdgeoptError
path = Path(sys.argv[1])
try:
    code = app.serve(
        reader.load(path), once="--once" in sys.argv, reload=lambda: reader.load(path), worker_command=sys.argv[2].split("|")
    )
except EdgeoptError as error:
    print(error.message, error.hint, file=sys.stderr)
    code = 1
sys.exit(code)
"""


class Daemon:
    """One daemon on folders of its own below ``root``."""

    def __init__(self, root: Path, *, http: str = "127.0.0.1:0", **sections: str) -> None:
        self.root = root
        self.config = root / "edgeopt.yaml"
        self.process: subprocess.Popen[bytes] | None = None
        self.log = root / "log"
        self.environment: dict[str, str] = {}
        self.worker = str(FAKE_WORKER)
        for folder in ("inbox", "published", "rejected", "state"):
            setattr(self, folder, root / folder)
        self.inbox: Path
        self.published: Path
        self.rejected: Path
        self.state: Path
        self.inbox.mkdir(parents=True, exist_ok=True)
        self.sections = {
            "log": "{level: debug}",
            "watch": "{settle: 200ms}",
            "http": f'{{listen: "{http}"}}',
            **sections,
        }
        self.configure()

    def configure(self, **sections: str) -> None:
        self.sections |= sections
        folders = [
            f"{name}: {getattr(self, name)}"
            for name in ("inbox", "published", "rejected", "state")
            if name not in self.sections
        ]
        self.config.write_text("\n".join([*folders, *(f"{key}: {value}" for key, value in self.sections.items())]))

    # ------------------------------------------------------------ the process
    def start(self, *arguments: str, ready: bool = True) -> Daemon:
        entry = [sys.executable, "-c", _ENTRY, str(self.config), f"{sys.executable}|{self.worker}", *arguments]
        with self.log.open("ab") as log:
            # the log is read from here on: an earlier daemon's lines are not this one's
            self.from_byte = self.log.stat().st_size
            self.process = subprocess.Popen(
                entry, stderr=log, stdin=subprocess.DEVNULL, env=os.environ | self.environment, cwd="/"
            )
        if ready:
            self.wait(lambda: "ready inbox" in self.said() or self.ended())
            assert not self.ended(), self.said()
        return self

    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and what it leaves running keeps running."""
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        assert self.process is not None
        return self.process.wait(timeout=15)

    def wait_for_end(self, timeout_s: float = 30.0) -> int:
        assert self.process is not None
        return self.process.wait(timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    # ------------------------------------------------------------ what is asked
    def said(self) -> str:
        return self.log.read_bytes()[self.from_byte :].decode()

    def wait(self, until: Callable[[], Any], timeout_s: float = 25.0) -> Any:
        deadline_s = time.monotonic() + timeout_s
        while not (answer := until()):
            assert time.monotonic() < deadline_s, self.said()
            time.sleep(0.03)
        return answer

    def get(self, path: str) -> tuple[int, str]:
        address = self.said().split("address=")[1].split()[0]
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as answer:
            with answer:
                return answer.code, answer.read().decode()

    def jobs(self, state: str | None = None) -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = json.loads(self.get("/api/v1/jobs")[1])["jobs"]
        return [job for job in jobs if state in (None, job["state"])]

    def wait_for_state(self, state: str, number: int = 1) -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = self.wait(lambda: len(found := self.jobs(state)) >= number and found)
        return jobs

    def metric(self, line: str) -> float:
        """The value of a series, 0 where it is not there."""
        for found in self.get("/metrics")[1].splitlines():
            if found.startswith(f"{line} "):
                return float(found.split()[-1])
        return 0.0

    # ------------------------------------------------------------ what is dropped
    def drop(self, name: str, behaviour: str = "", *, seed: int = 0) -> None:
        """A model, with the fake worker's behaviour in its job file."""
        if behaviour:
            (self.inbox / f"{name}.yaml").write_text(behaviour)
        data = model_bytes(seed)
        (self.inbox / f".{name}.tmp").write_bytes(data)
        (self.inbox / f".{name}.tmp").rename(self.inbox / f"{name}.onnx")

    def waiting(self) -> list[str]:
        return sorted(entry.name for entry in self.inbox.iterdir())

    def reason(self, pattern: str) -> dict[str, str]:
        (found,) = self.rejected.glob(pattern)
        reason: dict[str, str] = json.loads((found / "reason.json").read_text())
        return reason
