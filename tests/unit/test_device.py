"""The device as /proc and /sys tell it: recorded trees of a PC, two boards, and containers of both cgroup versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from edgeopt import device
from edgeopt.device import Host
from edgeopt.policy import TargetRequest

XEON = """processor\t: {n}
vendor_id\t: GenuineIntel
model name\t: Intel(R)  Xeon(R) Gold 6430
flags\t\t: fpu sse2 avx2 fma avx512f avx512_vnni avx_vnni amx_int8 avx512_bf16 avx512_fp16 {more}

"""
CORTEX_A76 = """processor\t: {n}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""
CORTEX_A53 = CORTEX_A76.replace("0xd0b", "0xd03").replace(" asimddp", "").replace(" fphp asimdhp", "")


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def host(root: Path, files: Mapping[str, str], *, machine: str = "x86_64", processors: int = 4) -> Host:
    write(root, files)
    affinity = frozenset(range(processors))
    return Host(proc=root / "proc", sys=root / "sys", dev=root / "dev", machine=machine, affinity=affinity)


def hyperthreaded(processors: int) -> dict[str, str]:
    """Processor n and n + half are siblings, as on a PC."""
    half = processors // 2
    return {
        f"sys/devices/system/cpu/cpu{n}/topology/core_cpus_list": f"{n % half},{n % half + half}\n"
        for n in range(processors)
    }


def test_pc_is_told_by_model_name_cores_without_siblings_and_features_that_matter(tmp_path: Path) -> None:
    cpuinfo = "".join(XEON.format(n=n, more="") for n in range(4))
    there = host(
        tmp_path, {"proc/cpuinfo": cpuinfo, "proc/meminfo": "MemTotal:       16000000 kB\n", **hyperthreaded(4)}
    )
    target = device.detect(TargetRequest(batch=2), host=there)
    assert (target.name, target.arch, target.device) == ("cpu", "x86_64", "Intel(R) Xeon(R) Gold 6430")
    expected = {"avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "avx512_bf16", "avx512_fp16"}
    assert set(target.features) == expected
    assert (target.threads, target.memory_bytes, target.batch) == (2, 16_000_000 * 1024, 2)


def test_raspberry_pi_is_told_by_its_board_and_core(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": "".join(CORTEX_A76.format(n=n) for n in range(4))
        + "Revision\t: d04170\nModel\t\t: Raspberry Pi 5\n",
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "sys/class/thermal/thermal_zone0/temp": "61250\n",
    }
    there = host(tmp_path, files, machine="aarch64")
    target = device.detect(TargetRequest(), host=there)
    assert (target.name, target.device) == ("arm", "Raspberry Pi 5 Model B Rev 1.0 (Cortex-A76)")
    assert set(target.features) == {"asimd", "asimddp", "fphp", "asimdhp"}
    assert target.threads == 4
    assert device.temperature_c(host=there) == 61.25


def test_arm_wished_for_on_a_pc_is_an_arm_processor_with_what_was_asked_for(tmp_path: Path) -> None:
    here = host(tmp_path, {"proc/cpuinfo": XEON.format(n=0, more="")}, machine="x86_64")
    plain = device.detect(TargetRequest(name="arm"), host=here)
    assert (plain.name, plain.arch, plain.features) == ("arm", "aarch64", ("asimd",))
    wished = device.detect(TargetRequest(name="arm", features=("i8mm", "asimddp"), threads=4), host=here)
    assert (wished.features, wished.threads) == (("asimd", "asimddp", "i8mm"), 4)
    assert "i8mm" in wished.device
    assert not device.is_here(wished, host=here)
    assert device.is_here(device.detect(TargetRequest(), host=here), host=here)


def test_features_of_a_processor_that_is_here_are_read_and_not_believed(tmp_path: Path) -> None:
    here = host(tmp_path, {"proc/cpuinfo": CORTEX_A53.format(n=0)}, machine="aarch64")
    for name in ("arm", "auto"):
        target = device.detect(TargetRequest(name=name, features=("i8mm",)), host=here)  # type: ignore[arg-type]  # one of its words
        assert target.features == ("asimd",)
        assert device.is_here(target, host=here)


def test_only_what_every_usable_core_can_do_counts(tmp_path: Path) -> None:
    mixed = "".join(CORTEX_A53.format(n=n) for n in range(2)) + "".join(CORTEX_A76.format(n=n) for n in range(2, 4))
    both = host(tmp_path, {"proc/cpuinfo": mixed}, machine="aarch64")
    big = Host(proc=both.proc, sys=both.sys, dev=both.dev, machine="aarch64", affinity=frozenset({2, 3}))
    assert device.features(host=both) == ("asimd",)
    assert "asimddp" in device.features(host=big)
    assert device.describe(host=both) == "Cortex-A53 + Cortex-A76"
    assert device.usable_cores(host=big) == 2


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1)]
)
def test_unified_cgroup_limits_cores_and_memory(tmp_path: Path, quota: str, cores: int) -> None:
    files = {
        "proc/self/cgroup": "0::/system.slice/edgeopt.service\n",
        "proc/meminfo": "MemTotal: 8000000 kB\n",
        "sys/fs/cgroup/system.slice/edgeopt.service/cpu.max": f"{quota}\n",
        "sys/fs/cgroup/system.slice/edgeopt.service/memory.max": "max\n",
        "sys/fs/cgroup/system.slice/memory.max": "2147483648\n",
    }
    there = host(tmp_path, files)
    assert device.usable_cores(host=there) == cores
    assert device.memory_bytes(host=there) == 2 << 30


def test_container_of_the_unified_hierarchy_finds_its_limits_at_the_mount(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/docker/0123abcd\n",
        "proc/meminfo": "MemTotal: 8000000 kB\n",
        "sys/fs/cgroup/cpu.max": "100000 100000\n",
        "sys/fs/cgroup/memory.max": "536870912\n",
    }
    there = host(tmp_path, files)
    assert (device.usable_cores(host=there), device.memory_bytes(host=there)) == (1, 512 << 20)


def test_old_cgroups_limit_cores_and_memory(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "5:memory:/jobs/a\n4:cpu,cpuacct:/jobs/a\n1:name=systemd:/\n0::/\ngarbled\n",
        "proc/meminfo": "MemTotal: 8000000 kB\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/jobs/a/memory.limit_in_bytes": "1073741824\n",
        "sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_quota_us": "300000\n",
        "sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/jobs/a/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/jobs/a/cpu.cfs_period_us": "100000\n",
    }
    there = host(tmp_path, files)
    assert (device.usable_cores(host=there), device.memory_bytes(host=there)) == (3, 1 << 30)


def test_unlimited_old_cgroup_leaves_the_devices_memory(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "5:memory:/\n",
        "proc/meminfo": "MemTotal: 1000 kB\nMemFree:\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert device.memory_bytes(host=host(tmp_path, files)) == 1_024_000


def test_named_threads_and_target_are_taken_as_they_are(tmp_path: Path) -> None:
    target = device.detect(TargetRequest(name="tensorrt", threads=7), host=host(tmp_path, {}))
    assert (target.name, target.threads) == ("tensorrt", 7)


def test_hottest_believable_sensor_counts(tmp_path: Path) -> None:
    zones = {
        f"sys/class/thermal/thermal_zone{n}/temp": text
        for n, text in enumerate(["45000", "-273000", "200000", "x", "71500"])
    }
    assert device.temperature_c(host=host(tmp_path, zones)) == 71.5


def test_hwmon_stands_in_for_missing_thermal_zones(tmp_path: Path) -> None:
    assert device.temperature_c(host=host(tmp_path, {"sys/class/hwmon/hwmon0/temp1_input": "50000\n"})) == 50.0


def test_load_is_the_first_number(tmp_path: Path) -> None:
    assert device.load_1min(host=host(tmp_path, {"proc/loadavg": "1.25 0.50 0.10 1/96 18518\n"})) == 1.25


@pytest.mark.parametrize("node", ["proc/driver/nvidia/gpus/0000:01:00.0/information", "dev/nvidia0", "dev/nvhost-gpu"])
def test_gpu_shows_by_its_driver(tmp_path: Path, node: str) -> None:
    assert device.gpu_present(host=host(tmp_path, {node: ""}))


def test_gpus_device_files_are_those_of_its_driver(tmp_path: Path) -> None:
    nodes = ["dev/nvidia0", "dev/nvidiactl", "dev/nvidia-uvm", "dev/nvidia-caps/nvidia-cap1", "dev/nvmap", "dev/sda"]
    found = device.gpu_nodes(host=host(tmp_path, dict.fromkeys(nodes, "")))
    assert {str(node.relative_to(tmp_path)) for node in found} == set(nodes) - {"dev/sda"}


def test_gpus_are_told_apart_by_uuids_that_the_driver_knows_already(tmp_path: Path) -> None:
    told = {
        f"proc/driver/nvidia/gpus/{number}/information": f"Model: \t NVIDIA L4\nGPU UUID: \t {uuid}\n"
        for number, uuid in enumerate(("GPU-2b", "GPU-1a", "GPU-????????-????"))
    }
    assert device.gpu_uuids(host=host(tmp_path, told)) == ("GPU-1a", "GPU-2b")


def test_device_that_shows_nothing_is_unknown_and_no_error(tmp_path: Path) -> None:
    there = host(tmp_path, {"proc/loadavg": "garbled"}, machine="riscv64", processors=1)
    target = device.detect(TargetRequest(), host=there)
    assert (target.name, target.device, target.features, target.threads) == ("cpu", "riscv64", (), 1)
    assert (target.memory_bytes, device.temperature_c(host=there), device.load_1min(host=there)) == (0, None, 0.0)
    assert not device.gpu_present(host=there)
    assert device.gpu_nodes(host=there) == ()


def test_this_machine_is_described() -> None:
    target = device.detect(TargetRequest())
    assert target.threads >= 1
    assert target.memory_bytes > 1 << 20
    assert target.device
