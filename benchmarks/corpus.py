"""Drop every real model into a running daemon and tell what became of it, as the table in docs/results.md.

    python benchmarks/corpus.py CORPUS [--objective latency] [--budget 10m] [--only A,B] [--keep DIR]

CORPUS holds a folder a model with model.onnx, calib.npz and eval.npz. The daemon is the real one, in a process of its own,
on folders of its own; each model must end published or rejected. Rows come from the published manifests and the rejected
reasons, seconds from the moment of the drop to the moment the outcome was visible.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

POLL_S = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--objective", default="latency", choices=["latency", "size", "memory"])
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--only", default="", help="comma-separated names")
    parser.add_argument("--keep", type=Path, help="work here and leave everything in place")
    options = parser.parse_args()
    home = options.keep or Path(tempfile.mkdtemp(prefix="edgeopt-corpus-"))
    wanted = set(filter(None, options.only.split(",")))
    models = sorted(
        item.parent for item in options.corpus.glob("*/model.onnx") if not wanted or item.parent.name in wanted
    )
    with Daemon(home, options.objective, options.budget) as daemon:
        rows = [daemon.drop(model) for model in models]
    print(table(rows))
    if options.keep is None:
        shutil.rmtree(home)
    return 0 if all(row["outcome"] in ("published", "rejected") for row in rows) else 1


class Daemon:
    """`edgeopt serve` on a folder of its own."""

    def __init__(self, home: Path, objective: str, budget: str) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        (home / "inbox").mkdir(exist_ok=True)
        self.configuration = home / "edgeopt.yaml"
        self.configuration.write_text(
            f"inbox: inbox\npublished: published\nrejected: rejected\nstate: state\n"
            f"watch: {{settle: 1s, rescan: 5s}}\ngoal: {{objective: {objective}}}\nsearch: {{budget: {budget}}}\n"
            f'http: {{listen: "127.0.0.1:0"}}\n'
        )

    def __enter__(self) -> Self:
        log = (self.home / "daemon.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgeopt", "serve", "-c", str(self.configuration)], stdout=log, stderr=log
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)

    def drop(self, model: Path) -> dict:
        """Copy a model beside the inbox, rename it in, and wait for its end."""
        name = model.name
        before = self.outcome(name)
        started = time.monotonic()
        for source, suffix in (("calib.npz", ".calibration.npz"), ("eval.npz", ".eval.npz"), ("model.onnx", ".onnx")):
            if (model / source).exists():
                staged = self.home / f".{name}{suffix}"
                shutil.copyfile(model / source, staged)
                staged.rename(self.home / "inbox" / f"{name}{suffix}")
        while (found := self.outcome(name)) == before:
            if self.process.poll() is not None:
                return {"name": name, "outcome": f"the daemon ended with {self.process.returncode}"}
            time.sleep(POLL_S)
        row = {"name": name, "seconds": time.monotonic() - started, **found}
        print(f"{name}: {row['outcome']} after {row['seconds']:.0f} s", file=sys.stderr, flush=True)
        return row

    def outcome(self, name: str) -> dict | None:
        current = self.home / "published" / name / "current" / "manifest.json"
        if current.exists():
            return {"outcome": "published", "manifest": json.loads(current.read_text())}
        reasons = sorted((self.home / "rejected").glob(f"{name}@*/reason.json"))
        return {"outcome": "rejected", "reason": json.loads(reasons[-1].read_text())} if reasons else None


def table(rows: list[dict]) -> str:
    lines = [
        "| model | original p50 ms | published p50 ms | speedup [95 %] | size | quality kept (drop, bound) | seconds | winner |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [line(row) for row in rows]
    published = next((row["manifest"] for row in rows if "manifest" in row), None)
    if published:
        target, environment = published["target"], published["environment"]
        device = f"{target['device']}, {target['threads']} threads, {' '.join(target['features'])}"
        lines += ["", f"{device}; onnxruntime {environment['onnxruntime']}, Python {platform.python_version()}."]
    return "\n".join(lines)


def line(row: dict) -> str:
    if "manifest" not in row:
        reason = row.get("reason", {})
        return (
            f"| {row['name']} | | | | | | {row.get('seconds', 0):.0f} | {row['outcome']}: {reason.get('message', '')} |"
        )
    manifest = row["manifest"]
    result, baseline = manifest["result"], manifest["baseline"]
    speedup, quality = result["speedup"], result["quality"]
    low, high = speedup["ci95"]
    steps = " + ".join(step_label(step) for step in manifest["recipe"]) or "original"
    return (
        f"| {row['name']} | {baseline['latency_ms']['p50']:.3g} | {result['latency_ms']['p50']:.3g} "
        f"| {speedup['value']:.2f} [{low:.2f}, {high:.2f}] | {result['bytes_ratio']:.2f} times smaller "
        f"| {quality['metric']} {quality['value']:.4f} ({quality['drop']:.4f}, {quality['ci95'][1]:.4f}) on {quality['samples']} "
        f"| {row['seconds']:.0f} | {steps} |"
    )


def step_label(step: dict) -> str:
    shown = {key: f"{len(json.loads(value))} layers" if key == "skip" else value for key, value in step.items()}
    settings = ", ".join(f"{key}={value}" for key, value in shown.items() if key != "technique")
    return step["technique"] + (f"({settings})" if settings else "")


if __name__ == "__main__":
    sys.exit(main())
