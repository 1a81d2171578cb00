"""Calibrates a small model in a process of its own and prints that process's peak memory in KiB.

Run by ``test_calibration_memory``: ``python calibrate_alone.py SAMPLES FOLDER``.
"""

from __future__ import annotations

import resource
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from builders import TARGET, Net, signature

from edgeopt.passes.quantize_static import observe
from edgeopt.records import DataOrigin
from edgeopt.runtimes.ort import OnnxRuntime
from edgeopt.stages.evidence import CalibrationEvidence

SIDE = 48


class MadeSamples:
    """Pictures made when they are asked for, 27 KiB each; nothing of them is kept here."""

    labels = None

    def __init__(self, count: int) -> None:
        self.origin = DataOrigin(sha256="", samples=count, origin="drop")

    def __len__(self) -> int:
        return self.origin.samples

    def feeds(self, index: int) -> dict[str, np.ndarray]:
        return {"image": np.random.default_rng(index).standard_normal((1, 3, SIDE, SIDE), dtype=np.float32)}


def main(count: int, folder: Path) -> None:
    net = Net(seed=5)
    value = "image"
    for channels, width in ((3, 16), *[(16, 16)] * 7):
        value = net.op("Conv", value, net.weight(width, channels, 3, 3), net.weight(width), pads=[1, 1, 1, 1])
        value = net.op("Relu", value)
    net.op("GlobalAveragePool", value, output="out")
    model = net.build({"image": [1, 3, SIDE, SIDE]}, {"out": [1, 16, 1, 1]})
    evidence = CalibrationEvidence(
        calibration=MadeSamples(count),
        signature=signature(model),
        target=TARGET,
        observer=partial(OnnxRuntime().observe, threads=1),
        folder=folder,
        seed=0,
    )
    observed = observe(model, evidence)
    assert all(seen.stats.samples == count for seen in observed.values())
    sys.stdout.write(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
