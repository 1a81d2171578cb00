"""What a GPU says of itself while it is timed: clocks, temperature, power; every one of them optional.

In comes the GPU's PCI address, out go numbers by name. NVML tells them on graphics cards (nvidia-ml-py, where it is installed); boards show the clock and the temperature in /sys.
What is not told is left out: a latency is worth less without its clocks, but it is one all the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MODULE = "pynvml"
_SYS = Path("/sys")
_BOARD_GPUS = ("*.gpu", "*.gv11b", "*.ga10b", "*.gp10b")
"""How the kernel names the frequency device of a board's GPU: Orin, Xavier, TX2 and the newer common name."""
_GPU_ZONES = ("gpu-thermal", "gpu-therm", "GPU-therm")
_SM_CLOCK, _MEMORY_CLOCK, _CORE_SENSOR = 1, 2, 0
"""NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU."""
_IDLE = 1
"""nvmlClocksThrottleReasonGpuIdle: a clock that is low because nothing runs is not held back."""


def readings(bus: str, *, sys: Path = _SYS, module: str = _MODULE) -> dict[str, float]:
    """``gpu_clock_mhz memory_clock_mhz temperature_c power_w`` and ``throttled`` (0 or 1), as far as they are told."""
    return _from_nvml(bus, module) or _from_board(sys)


def _from_nvml(bus: str, module: str) -> dict[str, float]:
    try:
        nvml: Any = importlib.import_module(module)
    except ImportError:
        return {}
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return {}  # the package is here, the driver's library is not
    try:
        gpu = nvml.nvmlDeviceGetHandleByPciBusId(bus.encode()) if bus else nvml.nvmlDeviceGetHandleByIndex(0)
        asked: dict[str, Callable[[], float]] = {
            "gpu_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, _SM_CLOCK),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, _MEMORY_CLOCK),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(gpu, _CORE_SENSOR),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
            "throttled": lambda: bool(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu) & ~_IDLE),
        }
        return {name: float(told) for name, ask in asked.items() if (told := _told(ask, nvml)) is not None}
    except nvml.NVMLError:
        return {}
    finally:
        nvml.nvmlShutdown()


def _told(ask: Callable[[], float], nvml: Any) -> float | None:
    """One reading; None where this GPU does not tell it."""
    try:
        return ask()
    except nvml.NVMLError:
        return None


def _from_board(sys: Path) -> dict[str, float]:
    found = {}
    clocks = [file for name in _BOARD_GPUS for file in sorted((sys / "class" / "devfreq").glob(f"{name}/cur_freq"))]
    if clocks and (hertz := _number(clocks[0])):
        found["gpu_clock_mhz"] = hertz / 1e6
    for zone in sorted((sys / "class" / "thermal").glob("thermal_zone*")):
        if _text(zone / "type") in _GPU_ZONES and (millidegrees := _number(zone / "temp")):
            found["temperature_c"] = millidegrees / 1000
    return found


def _number(file: Path) -> float | None:
    try:
        return float(_text(file))
    except ValueError:
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
