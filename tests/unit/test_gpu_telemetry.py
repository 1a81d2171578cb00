"""What is told of a GPU's clocks, temperature and power: by NVML, on a stand-in for it, and by what /sys shows without."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from edgeopt.runtimes.trt import telemetry


def nvml(**answers: Any) -> types.ModuleType:
    module = types.ModuleType("stand_in_nvml")

    class NVMLError(Exception): ...

    def unknown(*_: Any) -> Any:
        raise NVMLError

    module.NVMLError = NVMLError  # type: ignore[attr-defined]
    for name in ("ClockInfo", "Temperature", "PowerUsage", "CurrentClocksThrottleReasons"):
        setattr(module, f"nvmlDeviceGet{name}", answers.get(name, unknown))
    module.nvmlInit = answers.get("init", lambda: None)  # type: ignore[attr-defined]
    module.nvmlShutdown = lambda: None  # type: ignore[attr-defined]
    module.nvmlDeviceGetHandleByPciBusId = lambda bus: bus  # type: ignore[attr-defined]
    module.nvmlDeviceGetHandleByIndex = lambda index: index  # type: ignore[attr-defined]
    return module


def test_nvml_tells_clocks_temperature_and_power_and_leaves_out_what_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = {
        "ClockInfo": lambda _gpu, kind: {1: 1980, 2: 2619}[kind],
        "Temperature": lambda _gpu, _sensor: 41,
        "CurrentClocksThrottleReasons": lambda _gpu: 1,
    }
    monkeypatch.setitem(sys.modules, "stand_in_nvml", nvml(**answers))
    told = telemetry.readings("0000:01:00.0", sys=tmp_path, module="stand_in_nvml")
    assert told == {"gpu_clock_mhz": 1980, "memory_clock_mhz": 2619, "temperature_c": 41, "throttled": 0}


def test_board_without_nvml_tells_what_sys_shows(tmp_path: Path) -> None:
    clock = tmp_path / "class" / "devfreq" / "17000000.ga10b" / "cur_freq"
    clock.parent.mkdir(parents=True)
    clock.write_text("612000000\n")
    for number, (kind, value) in enumerate([("cpu-thermal", 60000), ("gpu-thermal", 48500)]):
        zone = tmp_path / "class" / "thermal" / f"thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "type").write_text(kind)
        (zone / "temp").write_text(str(value))
    told = telemetry.readings("", sys=tmp_path, module="no_such_module")
    assert told == {"gpu_clock_mhz": 612.0, "temperature_c": 48.5}


def test_nothing_told_is_no_error(tmp_path: Path) -> None:
    assert telemetry.readings("", sys=tmp_path, module="no_such_module") == {}
