"""Every corpus model's winner for ``target: arm``, prepared on this x86 machine and run by a real aarch64 ONNX Runtime under emulation.

    python benchmarks/aarch64.py CORPUS --root ROOT --work DIR [--budget 3m] [--samples 8] [--cpus cortex-a72 ...] [--only A,B]

ROOT is made by tools/make_aarch64_python.sh. What DIR holds already is not made again. Each row compares the outputs of the same file on one
emulated processor with those here: the largest difference, the largest output beside it, the signal-to-noise of the difference, how often the largest value
of the first output is at the same place; then what matters: the noise against the original (run here) there and here. Emulation tells nothing of latency.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from corpus_models import signal_to_noise_db

from edgeopt.calibrate.samples import open_samples
from edgeopt.graph.load import load
from edgeopt.stages.signature import signature_of

RUN_ONNX = Path(__file__).resolve().parent.parent / "tools" / "run_onnx.py"
CPUS = ("cortex-a72", "cortex-a76", "max")
Outputs = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One model with its winner for ARM and the feeds that both run."""

    name: str
    original: Path
    winner: Path
    recipe: str
    feeds: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--budget", default="3m")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--cpus", nargs="+", default=CPUS)
    parser.add_argument("--only", default="", help="comma-separated names")
    given = parser.parse_args()
    wanted = set(filter(None, given.only.split(",")))
    print(
        "| model | winner | processor | largest difference (largest output) | difference, dB | same top | noise there / here, dB |"
    )
    print("|---|---|---|---|---|---|---|")
    for folder in sorted(path.parent for path in given.corpus.glob("*/model.onnx")):
        if not wanted or folder.name in wanted:
            model = prepared(folder, given.work, budget=given.budget, samples=given.samples)
            right, here = run([sys.executable], model.original, model), run([sys.executable], model.winner, model)
            for cpu in given.cpus:
                there = run([str(given.root / "python")], model.winner, model, cpu=cpu)
                print(f"| {model.name} | {model.recipe} | {cpu} | {comparison(right, here, there)} |", flush=True)


def prepared(folder: Path, work: Path, *, budget: str, samples: int) -> Prepared:
    """Run ``edgeopt optimize --target arm`` as a user would, unless its outcome lies there from an earlier run."""
    name, published = folder.name, work / "published"
    version = published / name / "1"
    if not (version / "manifest.json").exists():
        dropped = work / "in" / name / f"{name}.onnx"
        dropped.parent.mkdir(parents=True, exist_ok=True)
        dropped.unlink(missing_ok=True)
        dropped.symlink_to((folder / "model.onnx").resolve())
        data = ["--calibration", folder / "calib.npz", "--eval", folder / "eval.npz"]
        command = [
            "-m",
            "edgeopt",
            "optimize",
            dropped,
            *data,
            "--target",
            "arm",
            "--budget",
            budget,
            "--out",
            published,
        ]
        subprocess.run([sys.executable, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    manifest = json.loads((version / "manifest.json").read_text())
    winner = next(row["label"] for row in manifest["candidates"] if row["recipe"] == manifest["recipe"])
    feeds = work / f"{name}-{samples}.npz"
    np.savez(feeds, **first_samples(folder, work, samples))  # type: ignore[arg-type]  # its stub takes every keyword for allow_pickle
    return Prepared(
        name=name, original=folder / "model.onnx", winner=version / "model.onnx", recipe=winner, feeds=feeds
    )


def first_samples(folder: Path, work: Path, count: int) -> Outputs:
    unpacked = work / "unpacked" / folder.name
    unpacked.mkdir(parents=True, exist_ok=True)
    samples = open_samples(folder / "eval.npz", signature_of(load(folder / "model.onnx")), unpack_to=unpacked)
    chosen = range(min(count, len(samples)))
    return {f"{number}/{name}": array for number in chosen for name, array in samples.feeds(number).items()}


def run(python: list[str], file: Path, model: Prepared, *, cpu: str = "") -> Outputs:
    """Outputs of ``file`` in another process, emulated or not."""
    outputs = model.feeds.with_suffix(f".{cpu or file.parent.name}.npz")
    if outputs.exists() and outputs.stat().st_mtime > file.stat().st_mtime:
        return read(outputs)
    environment = {**os.environ, "EDGEOPT_AARCH64_CPU": cpu}
    command = [*python, str(RUN_ONNX), *map(str, (file, model.feeds, outputs))]
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    return read(outputs)


def read(file: Path) -> Outputs:
    with np.load(file) as archive:
        return {key: archive[key] for key in archive.files}


def comparison(right: Outputs, here: Outputs, there: Outputs) -> str:
    keys = [key for key in here if here[key].dtype.kind == "f" and here[key].size]
    largest = max(float(np.abs(here[key].astype(float) - there[key]).max()) for key in keys)
    output = max(float(np.abs(here[key]).max()) for key in keys)
    first = keys[0].partition("/")[2]
    tops = [(here[key].argmax(), there[key].argmax()) for key in keys if key.partition("/")[2] == first]
    same = sum(int(a == b) for a, b in tops)
    noise = f"{decibel(right, there, keys)} / {decibel(right, here, keys)}"
    return f"{largest:.2g} ({output:.3g}) | {decibel(here, there, keys)} | {same}/{len(tops)} | {noise}"


def decibel(right: Outputs, got: Outputs, keys: list[str]) -> str:
    """Signal-to-noise of the worst output; 120 and more is what float32 itself is worth."""
    names = dict.fromkeys(key.partition("/")[2] for key in keys)
    ratios = []
    for name in names:
        own = [key for key in keys if key.partition("/")[2] == name]
        ratios.append(signal_to_noise_db([right[key] for key in own], [got[key] for key in own]))
    return "equal" if min(ratios) > 200 else f"{min(ratios):.0f}"


if __name__ == "__main__":
    main()
