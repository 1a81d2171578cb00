"""Whatever /proc and /sys hold, the device is described: garbled files mean "unknown" and never an error."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from edgeopt import device
from edgeopt.device import Host
from edgeopt.policy import TargetRequest

FILES = (
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/loadavg",
    "proc/device-tree/model",
    "proc/self/cgroup",
    "sys/class/thermal/thermal_zone0/temp",
    "sys/devices/system/cpu/cpu0/topology/core_cpus_list",
    "sys/fs/cgroup/cpu.max",
    "sys/fs/cgroup/memory.max",
    "sys/fs/cgroup/memory/memory.limit_in_bytes",
)
_pieces = st.sampled_from(
    ["processor: ", "flags: ", "Features\t: ", "MemTotal:", "kB", "0::/", "5:memory:/", "max", "avx2"]
) | (
    st.sampled_from(
        ["-1", "0", "4", "99" * 30, "\n", "\n\n", " ", ":", "/../..", "\0", "²", "CPU part: 0x41", "nan", "1e999"]
    )
)
_contents = st.one_of(
    st.lists(_pieces, max_size=12).map(lambda pieces: "".join(pieces).encode()), st.binary(max_size=40)
)


@given(st.dictionaries(st.sampled_from(FILES), _contents))
def test_any_content_of_proc_and_sys_describes_some_device(contents: dict[str, bytes]) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for name, content in contents.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        host = Host(
            proc=root / "proc", sys=root / "sys", dev=root / "dev", machine="x86_64", affinity=frozenset({0, 1})
        )
        target = device.detect(TargetRequest(), host=host)
        assert 1 <= target.threads <= 2
        assert target.memory_bytes >= 0
        assert target.device
        assert set(target.features) <= set(device.FEATURES)
        assert 0 < (device.temperature_c(host=host) or 1) < 150
        assert device.load_1min(host=host) >= 0
