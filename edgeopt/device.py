"""What this device is: architecture, instruction sets, usable cores and memory, temperature, load, GPU.

:func:`detect` turns the operator's :class:`~edgeopt.policy.TargetRequest` into the :class:`~edgeopt.records.Target`
that candidates are made for. Everything is read from /proc and /sys by the standard library, so that the daemon may
ask too, and every reader takes a :class:`Host` whose roots may lie elsewhere. A file that is missing or garbled means
"unknown" and never an error: boards, containers and kernels differ in what they show.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from edgeopt.policy import TargetRequest
from edgeopt.records import Target

FEATURES = {
    "avx2": "256-bit integer kernels: int8 runs, without dot products often slower than float32",
    "avx512f": "512-bit kernels",
    "avx_vnni": "int8 dot products on 256 bits: static int8 usually gains",
    "avx512_vnni": "int8 dot products on 512 bits: static int8 usually gains",
    "amx_int8": "int8 matrix tiles: static int8 gains most on large matrices",
    "avx512_bf16": "bfloat16 dot products",
    "avx512_fp16": "half-precision arithmetic: a whole graph in fp16 may gain",
    "neon": "128-bit kernels on 32-bit ARM",
    "asimd": "128-bit kernels: int8 runs, without dot products at moderate gain",
    "asimddp": "int8 dot products (sdot, udot): static int8 usually gains",
    "i8mm": "int8 matrix products (smmla, ummla): static int8 gains most",
    "sve": "scalable vectors",
    "fphp": "scalar half-precision arithmetic",
    "asimdhp": "half-precision vector arithmetic: a whole graph in fp16 may gain",
}
"""The instruction sets that change which kernels run, in Linux' words, and what they mean for a model."""

_ARM_CORES = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x4E, 0x004): "Carmel",
}
"""(implementer, part) of /proc/cpuinfo to the core's name, as lscpu (util-linux, sys-utils/lscpu-arm.c) has them."""

_NO_LIMIT_BYTES = 1 << 60
"""cgroup v1 writes "no limit" as the largest page-aligned number."""
_ARM_ARCHES = ("aarch64", "arm64", "armv7l", "armv8l")
_EVERY_ARM = "asimd"
"""What every 64-bit ARM processor has; nothing more is taken for granted of one that is not here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Where the facts are read from; the defaults are this machine."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    dev: Path = Path("/dev")
    machine: str = field(default_factory=platform.machine)
    affinity: frozenset[int] | None = None
    """The processors this process may run on; None asks the kernel."""

    def processors(self) -> frozenset[int]:
        return frozenset(os.sched_getaffinity(0)) if self.affinity is None else self.affinity


THIS_HOST = Host()


def detect(request: TargetRequest, *, host: Host = THIS_HOST) -> Target:
    """The target that ``request`` means on this device; ``auto`` is ``arm`` on ARM and ``cpu`` elsewhere.

    ``threads`` is one for each physical core that the process may use, within the cgroup's quota, unless it is given.
    Asked for ``arm`` elsewhere than on ARM, the target is a 64-bit ARM processor with the features that were asked for.
    """
    auto = "arm" if host.machine in _ARM_ARCHES else "cpu"
    absent = request.name == "arm" and auto != "arm"
    asked = {_EVERY_ARM, *request.features}
    listed = tuple(name for name in FEATURES if name in asked)
    return Target(
        name=auto if request.name == "auto" else request.name,
        device=f"an ARM processor with {' '.join(listed)}" if absent else describe(host=host),
        arch="aarch64" if absent else host.machine,
        features=listed if absent else features(host=host),
        threads=request.threads or usable_cores(host=host),
        memory_bytes=memory_bytes(host=host),
        batch=request.batch,
        compute_capability=request.compute_capability,
    )


def is_here(target: Target, *, host: Host = THIS_HOST) -> bool:
    """Whether the processor of ``target`` is of this machine's kind: elsewhere nothing can be timed for it."""
    return target.arch == host.machine


def describe(*, host: Host = THIS_HOST) -> str:
    """The board's and the processor's name, such as ``Raspberry Pi 5 Model B Rev 1.0 (Cortex-A76)``."""
    board = _read(host.proc / "device-tree" / "model").strip("\0 \n")
    processor = _processor_name(list(_processors(host))) or host.machine
    return f"{board} ({processor})" if board else processor


def features(*, host: Host = THIS_HOST) -> tuple[str, ...]:
    """The instruction sets out of :data:`FEATURES` that every usable processor has: threads may land on any of them."""
    usable = host.processors()
    everywhere: set[str] | None = None
    for processor in _processors(host):
        number = processor.get("processor", "")
        listed = processor.get("flags") or processor.get("features")
        # boards close /proc/cpuinfo with a block about themselves
        if listed is None or (number.isdecimal() and int(number) not in usable):
            continue
        flags = set(listed.split())
        everywhere = flags if everywhere is None else everywhere & flags
    return tuple(name for name in FEATURES if name in (everywhere or ()))


def usable_cores(*, host: Host = THIS_HOST) -> int:
    """Physical cores that the process may keep busy: its affinity, without siblings, within the cgroup's quota."""
    cores = {_core_of(number, host) for number in host.processors()}
    quota = _cpu_quota(host)
    # rounded down: a thread too many waits for the quota's next period, and a barrier waits for that thread
    return max(1, min(len(cores), int(quota)) if quota is not None else len(cores))


def memory_bytes(*, host: Host = THIS_HOST) -> int:
    """The device's memory, or the cgroup's limit where that is less; 0 where neither is known."""
    total = _meminfo(host).get("MemTotal", 0)
    limits = [*_limits(host, "memory", "memory.max", "memory.limit_in_bytes"), total]
    return min((limit for limit in limits if 0 < limit < _NO_LIMIT_BYTES), default=0)


def temperature_c(*, host: Host = THIS_HOST) -> float | None:
    """The hottest thermal zone in degrees Celsius; None where the device shows none."""
    zones = sorted((host.sys / "class" / "thermal").glob("thermal_zone*/temp"))
    sensors = zones or sorted((host.sys / "class" / "hwmon").glob("hwmon*/temp*_input"))
    readings = [millidegrees / 1000 for millidegrees in (_number(_read(sensor)) for sensor in sensors) if millidegrees]
    # broken sensors report 0, -273 or 200 and more
    return max((reading for reading in readings if 0 < reading < 150), default=None)


def load_1min(*, host: Host = THIS_HOST) -> float:
    """The load average over the last minute; 0 where it is unknown."""
    first = _read(host.proc / "loadavg").split(" ")[0]
    try:
        load = float(first)
    except ValueError:
        return 0.0
    return load if 0 <= load < math.inf else 0.0


def gpu_present(*, host: Host = THIS_HOST) -> bool:
    """Whether there is an NVIDIA GPU whose driver is loaded: discrete, or integrated as on a Jetson."""
    discrete = host.proc / "driver" / "nvidia" / "gpus"
    nodes = ("nvidia0", "nvhost-gpu", "nvhost-ctrl-gpu")
    return any(discrete.glob("*")) or any((host.dev / node).exists() for node in nodes)


def gpu_driver(*, host: Host = THIS_HOST) -> str:
    """The version of the loaded NVIDIA driver, such as ``550.54.15``; empty where none is loaded or it does not tell."""
    words = _read(host.proc / "driver" / "nvidia" / "version").partition("\n")[0].split()
    return next((word for word in words if word[0].isdigit() and "." in word), "")


def gpu_names(*, host: Host = THIS_HOST) -> tuple[str, ...]:
    """The models of the discrete NVIDIA GPUs, one a GPU, sorted."""
    return _told_of_gpus("Model", host)


def gpu_uuids(*, host: Host = THIS_HOST) -> tuple[str, ...]:
    """What tells each discrete NVIDIA GPU from every other, sorted; a driver that nobody has used yet shows question marks, which are left out."""
    return tuple(uuid for uuid in _told_of_gpus("GPU UUID", host) if "?" not in uuid)


def _told_of_gpus(what: str, host: Host) -> tuple[str, ...]:
    found = []
    for information in (host.proc / "driver" / "nvidia" / "gpus").glob("*/information"):
        for line in _read(information).splitlines():
            key, _, value = line.partition(":")
            if key.strip() == what:
                found.append(value.strip())
    return tuple(sorted(found))


def gpu_nodes(*, host: Host = THIS_HOST) -> tuple[Path, ...]:
    """What a process opens that uses an NVIDIA GPU here: device files of the driver, on cards and on boards."""
    kinds = ("nvidia*", "nvidia-caps/*", "nvhost-*", "nvmap", "nvgpu/**/*", "nvsciipc")
    found = {node for kind in kinds for node in host.dev.glob(kind) if not node.is_dir()}
    return tuple(sorted(found)) if gpu_present(host=host) else ()


def _processors(host: Host) -> Iterator[dict[str, str]]:
    """The blocks of /proc/cpuinfo, keys in lower case."""
    for block in _read(host.proc / "cpuinfo").split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        if entry := {key.strip().lower(): value.strip() for key, colon, value in pairs if colon}:
            yield entry


def _processor_name(processors: list[dict[str, str]]) -> str:
    for processor in processors:
        if name := processor.get("model name"):
            return " ".join(name.split())
    cores = []
    for processor in processors:
        implementer, part = (_number(processor.get(key, "")) or 0 for key in ("cpu implementer", "cpu part"))
        name = _ARM_CORES.get((implementer, part), "")
        if name and name not in cores:
            cores.append(name)
    return " + ".join(cores)


def _core_of(number: int, host: Host) -> str:
    """A name for the physical core that a processor belongs to: the list of its siblings."""
    topology = host.sys / "devices" / "system" / "cpu" / f"cpu{number}" / "topology"
    siblings = _read(topology / "core_cpus_list") or _read(topology / "thread_siblings_list")
    return siblings.strip() or str(number)


def _cpu_quota(host: Host) -> float | None:
    """Processors' worth of time that the cgroup grants; None where it is unlimited."""
    quotas = []
    for folder in _cgroup_folders(host, "cpu"):
        quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        granted, length = _number(quota), _number(period)
        if granted and length and granted > 0:
            quotas.append(granted / length)
    return min(quotas, default=None)


def _limits(host: Host, controller: str, *files: str) -> list[int]:
    texts = (_read(folder / name) for folder in _cgroup_folders(host, controller) for name in files)
    return [limit for limit in map(_number, texts) if limit]


def _cgroup_folders(host: Host, controller: str) -> Iterator[Path]:
    """The process' cgroup and its parents, of the unified hierarchy (v2) and of the controller's own (v1).

    A limit holds for everything below it, so every parent counts. In a container the path that /proc shows may not
    exist below the mount; then the mount itself is the container's cgroup.
    """
    mount = host.sys / "fs" / "cgroup"
    for line in _read(host.proc / "self" / "cgroup").splitlines():
        fields = line.split(":", 2)
        if len(fields) != 3:
            continue
        _, controllers, path = fields
        if controllers and controller not in controllers.split(","):
            continue
        names = (controllers, controller) if controllers else ("unified", ".")
        root = next((mount / name for name in names if (mount / name).is_dir()), None)
        place = PurePosixPath(path)
        if root is None or ".." in place.parts:
            continue
        for level in (place, *place.parents):
            yield root / str(level).lstrip("/")


def _meminfo(host: Host) -> dict[str, int]:
    """Bytes by the name of their line in /proc/meminfo."""
    lines = (line.partition(":") for line in _read(host.proc / "meminfo").splitlines())
    return {name: (_number(value.split()[0]) or 0) * 1024 for name, _, value in lines if value.split()}


def _number(text: str) -> int | None:
    try:
        return int(text.strip()[:40], 0)
    except ValueError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):  # ValueError: a path with a NUL in it
        return ""
