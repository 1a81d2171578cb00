"""A worker program for tests: speaks the worker's protocol without any model behind it.

How it behaves stands in the drop's job file (``input/job.yaml``), one word: see ``BEHAVIOURS``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path


class Worker:
    def __init__(self, job: Path, cache: Path, descriptor: int) -> None:
        self.job, self.cache, self.descriptor = job, cache, descriptor
        self.order = json.loads((job / "order.json").read_text())

    def say(self, kind: str, **fields: object) -> None:
        self.raw(json.dumps({"kind": kind, "fields": fields}).encode() + b"\n")

    def raw(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.descriptor, data) :]

    def fail(self, code: str, disposition: str) -> int:
        self.say("failed", code=code, message=f"it is {code}", hint="Mend it.", stage="ingest", disposition=disposition)
        return 1

    def publishable(self, sha256: str | None = None, data: bytes | None = None, **artifact: object) -> None:
        source = self.order["source"]
        if data is None:
            data = b"optimized " + self.model()
        out = self.job / "out"
        (out / "model.onnx").write_bytes(data)
        (out / "report.html").write_text("<!doctype html><title>report</title>")
        manifest = {
            "schema": 1,
            "name": self.order["name"],
            "version": 0,
            "source": source,
            "artifact": {
                "file": "model.onnx",
                "format": "onnx",
                "sha256": sha256 or hashlib.sha256(data).hexdigest(),
                "bytes": len(data),
                "runtime": "fake",
                "runtime_version": "1",
                "session": {},
            }
            | artifact,
            "goal": self.order["policy"]["goal"],
            "recipe": [],
            "result": {
                "speedup": {"value": 1.5, "ci95": [1.4, 1.6]},
                "latency_ms": {"p50": 1.0, "p90": 1.1, "p99": 1.2},
                "bytes_ratio": 2.0,
                "quality": {"kind": "accuracy", "metric": "accuracy", "value": 0.98, "drop": 0.0, "ci95": [0, 0]},
            },
            "baseline": {"latency_ms": {"p50": 1.5, "p90": 1.6, "p99": 1.7}, "bytes": source["bytes"]},
            "candidates": [],
        }
        (out / "manifest.json").write_text(json.dumps(manifest))

    def model(self) -> bytes:
        return (self.job / "input" / self.order["files"]["model"]).read_bytes()

    # ------------------------------------------------------------ behaviours
    def publish(self) -> int:
        for number, stage in enumerate(("ingest", "plan", "measure", "report")):
            self.say("stage", stage=stage)
            self.say("progress", ratio=number / 4, trial=number, trials=4, text=stage)
            self.say("stage_done", stage=stage, seconds=0.01)
        self.say("cache", result="miss")
        self.say("candidate", outcome="measured", trial={})
        self.publishable()
        self.say("finished", reason="it is faster")
        return 0

    def genuine(self, data: bytes | None = None) -> int:
        """Publishes a model that really runs, the dropped one, with the runtime that is installed here."""
        session = {
            "execution_mode": "sequential",
            "graph_optimization_level": "all",
            "inter_op_num_threads": 1,
            "intra_op_num_threads": 1,
        }
        runtime = {"runtime": "onnxruntime", "runtime_version": version("onnxruntime"), "session": session}
        self.say("stage", stage="measure")
        time.sleep(0.5)
        self.publishable(data=data or self.model(), **runtime)
        self.say("finished", reason="it is as it was")
        return 0

    def broken(self) -> int:
        """Publishes what no runtime opens."""
        return self.genuine(b"this is no model")

    def slow(self) -> int:
        """Publishes after a second; the marker in the cache counts the starts."""
        with (self.cache / "starts").open("a") as starts:
            starts.write("x")
        self.say("stage", stage="measure")
        time.sleep(1.0)
        return self.publish()

    def hang(self) -> int:
        self.say("stage", stage="measure")
        time.sleep(600)
        return 0

    def stubborn(self) -> int:
        """Ignores SIGTERM and has a child in a session of its own."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        process = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
        (self.job / "work" / "child").write_text(str(process.pid))
        return self.hang()

    def crash(self) -> int:
        sys.stdout.write("about to crash\x1b[31m\n")
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGSEGV)
        return 0

    def crash_once(self) -> int:
        marker = self.cache / "crashed"
        if marker.exists():
            return self.publish()
        marker.touch()
        return self.crash()

    def silent(self) -> int:
        return 0

    def refuse(self) -> int:
        return self.fail("unsupported-model", "quarantine")

    def hold(self) -> int:
        marker = self.cache / "held"
        if marker.exists():
            return self.publish()
        marker.touch()
        return self.fail("disk-full", "hold")

    def limit(self) -> int:
        return self.fail("out-of-memory", "retry-once")

    def garbage(self) -> int:
        self.raw(b"this is no event\n")
        return self.hang()

    def endless(self) -> int:
        while True:
            self.raw(b"x" * 65536)

    def eat(self) -> int:
        blocks = []
        while True:
            blocks.append(os.urandom(8 << 20))
            time.sleep(0.02)

    def flood(self) -> int:
        for _ in range(4000):
            sys.stdout.write("y" * 1000 + "\n")
        return self.publish()

    def liar(self) -> int:
        self.publishable(sha256="0" * 64)
        self.say("finished", reason="believe me")
        return 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--events-fd", type=int)
    arguments = parser.parse_args()
    worker = Worker(arguments.job, arguments.cache, arguments.events_fd)
    name = worker.order["files"].get("job_file")
    behaviour = (arguments.job / "input" / name).read_text().strip() if name else "publish"
    return int(getattr(worker, behaviour)())


if __name__ == "__main__":
    sys.exit(main())
