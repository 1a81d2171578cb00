"""Devices for tests: what /proc and /sys show of them."""

from __future__ import annotations

from pathlib import Path

from edgeopt.device import Host


def gpu_host(root: Path, driver: str = "550.54.15") -> Host:
    """A device with one NVIDIA L4 under this driver, its files below ``root``."""
    nvidia = root / "proc" / "driver" / "nvidia"
    (nvidia / "gpus" / "0000:01:00.0").mkdir(parents=True)
    (nvidia / "version").write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Thu Feb 22\nGCC\n")
    (nvidia / "gpus" / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA L4\nIRQ: 1\n")
    return Host(proc=root / "proc", sys=root / "sys", dev=root / "dev", machine="x86_64", affinity=frozenset({0}))
