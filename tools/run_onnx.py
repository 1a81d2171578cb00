"""Run ONNX models over feeds with numpy and ONNX Runtime only, so that it also works in an emulated Python.

    python tools/run_onnx.py MODEL FEEDS.npz OUTPUTS.npz [MODEL FEEDS.npz OUTPUTS.npz ...]

FEEDS holds arrays named ``0/INPUT``, ``1/INPUT`` ..., one number an inference; OUTPUTS gets ``0/OUTPUT`` and so on. Used by
tests/integration/test_aarch64.py and benchmarks/aarch64.py, on both sides of their comparison.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

SILENT = 4


def run(model: Path, feeds: dict[int, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The outputs by ``number/name``, with one thread and all optimizations, as edgeopt serves."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = SILENT
    # what ARM does by itself: elsewhere some layers of signed codes would be computed in float
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {
        f"{number}/{name}": array
        for number, each in sorted(feeds.items())
        for name, array in zip(names, session.run(names, each), strict=True)
    }


def read(file: Path) -> dict[int, dict[str, np.ndarray]]:
    """The feeds of each inference."""
    found: dict[int, dict[str, np.ndarray]] = {}
    with np.load(file, allow_pickle=False) as archive:
        for key in archive.files:
            number, _, name = key.partition("/")
            found.setdefault(int(number), {})[name] = archive[key]
    return found


def main(paths: list[Path]) -> None:
    for model, feeds, outputs in zip(paths[::3], paths[1::3], paths[2::3], strict=True):
        np.savez(outputs, **run(model, read(feeds)))  # type: ignore[arg-type]  # its stub takes every keyword for allow_pickle


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
