"""Calibration streams: what it holds does not depend on how many samples there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ALONE = Path(__file__).with_name("calibrate_alone.py")
ALLOWED_KIB = 16 << 10
"""Measured is under 1 MiB; keeping the samples would take 27 MiB more, keeping their values 80."""


def peak_kib(samples: int, folder: Path) -> int:
    command = [sys.executable, str(ALONE), str(samples), str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def test_peak_memory_does_not_grow_from_32_to_1024_samples(tmp_path: Path) -> None:
    few, many = (peak_kib(samples, tmp_path) for samples in (32, 1024))
    assert many < few + ALLOWED_KIB
