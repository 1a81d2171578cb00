"""What ``edgeopt doctor`` looks at: one function a topic, each a list of findings with what they mean and what to do.

Facts only, from /proc, /sys, the configuration and the metadata of installed packages: nothing heavy is imported, so
the check-up also works where an installation is broken, which is when it is needed. Targets and GPUs are in
``checkup_targets``.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from edgeopt import device, fingerprint
from edgeopt.config import sections, units
from edgeopt.config.schema import Config
from edgeopt.device import Host

State: TypeAlias = Literal["ok", "note", "broken"]

_INT8_DOT_PRODUCTS = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")
_INSTALLABLE = (
    ("onnxruntime", True, "runs every model", "pip install onnxruntime"),
    ("onnx", True, "reads and checks models", "pip install onnx"),
    ("onnx-ir", True, "edits models", "pip install onnx-ir"),
    ("onnxscript", True, "cleans models up", "pip install onnxscript"),
    ("torch", False, "optional: distillation and .pt2 files, in later versions", "pip install 'edgeopt[train]'"),
)
_FEW_WATCHES, _FEW_INSTANCES = 8192, 128
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fact: ``note`` is worth knowing, ``broken`` keeps edgeopt from working; ``fix`` says how to get it."""

    topic: str
    name: str
    value: str
    state: State = "ok"
    meaning: str = ""
    fix: str = ""


def check_device(host: Host) -> list[Finding]:
    """Processor, cores, memory, temperature, load."""
    temperature = device.temperature_c(host=host)
    memory = device.memory_bytes(host=host)
    facts = {
        "processor": f"{device.describe(host=host)} ({host.machine})",
        "cores": f"{device.usable_cores(host=host)} physical, of {len(host.processors())} processors usable here",
        "memory": f"{memory / 2**30:.1f} GiB" if memory else "unknown",
        "temperature": "no sensor" if temperature is None else f"{temperature:.0f} °C",
        "load": f"{device.load_1min(host=host):.2f} in the last minute",
        "python": sys.version.split()[0],
    }
    return [Finding(topic="device", name=name, value=value) for name, value in facts.items()]


def check_instructions(host: Host) -> list[Finding]:
    """Instruction sets, and whether int8 has a chance to be faster here."""
    present = device.features(host=host)
    findings = [
        Finding(topic="instructions", name=name, value="yes", meaning=device.FEATURES[name]) for name in present
    ]
    dot_product = next((name for name in _INT8_DOT_PRODUCTS if name in present), None)
    if dot_product:
        verdict = Finding(topic="instructions", name="int8", value=f"dot products ({dot_product})")
    else:
        verdict = Finding(
            topic="instructions",
            name="int8",
            value="no dot products",
            state="note",
            meaning="int8 is often slower than float32 here; it is measured all the same, and loses where it is",
        )
    return [*findings, verdict]


def check_runtimes(find: Callable[[str], str | None] = fingerprint.version_of) -> list[Finding]:
    """Runtimes and libraries, found by their metadata: nothing is imported."""
    findings = []
    for name, needed, purpose, fix in _INSTALLABLE:
        version = fingerprint.installed(name, find=find) if name in fingerprint.DISTRIBUTIONS else find(name)
        missing: State = "broken" if needed else "note"
        findings.append(
            Finding(
                topic="runtimes",
                name=name,
                value=version or "not installed",
                state="ok" if version else missing,
                meaning=purpose,
                fix="" if version else fix,
            )
        )
    return findings


def check_inotify(host: Host) -> list[Finding]:
    """Whether the kernel lets another watcher in."""
    findings = []
    for name, few in (("max_user_watches", _FEW_WATCHES), ("max_user_instances", _FEW_INSTANCES)):
        try:
            limit = int((host.proc / "sys" / "fs" / "inotify" / name).read_text())
        except (OSError, ValueError):
            findings.append(
                Finding(
                    topic="inotify", name=name, value="unknown", state="note", meaning="the inbox is polled instead"
                )
            )
            continue
        low = limit < few
        findings.append(
            Finding(
                topic="inotify",
                name=name,
                value=str(limit),
                state="note" if low else "ok",
                meaning="few; where they are used up, the inbox is polled instead" if low else "",
                fix=f"sysctl fs.inotify.{name}={few}" if low else "",
            )
        )
    return findings


def check_folders(config: Config, host: Host, *, configured: bool = True) -> list[Finding]:
    """The daemon's folders: there, writable, with room, on filesystems that suit them.

    A folder that cannot be written is broken where somebody ``configured`` it; as a mere default it only wants another.
    """
    unwritable: State = "broken" if configured else "note"
    findings = [_folder(name, Path(getattr(config, name)), config, host) for name in sections.FOLDERS]
    findings = [replace(found, state=unwritable) if found.state == "broken" else found for found in findings]
    state, published = (_existing(Path(folder)) for folder in (config.state, config.published))
    if state.stat().st_dev != published.stat().st_dev:
        findings.append(
            Finding(
                topic="folders",
                name="filesystems",
                value="state and published differ",
                state="note",
                meaning="publishing copies each version once more",
                fix="put both folders on one filesystem",
            )
        )
    return findings


def _folder(name: str, folder: Path, config: Config, host: Host) -> Finding:
    place = _existing(folder)
    free = shutil.disk_usage(place).free
    value = f"{folder}, {free / 2**30:.1f} GiB free"
    if not os.access(place, os.W_OK | os.X_OK):
        fix = f"install -d -o {_user()} {folder}, as root; or name other folders in a configuration file"
        return Finding(topic="folders", name=name, value=value, state="broken", meaning="not writable", fix=fix)
    if free < config.limits.inbox_free_bytes:
        wanted = units.show_size(config.limits.inbox_free_bytes)
        meaning = f"less than limits.inbox_free ({wanted}): jobs wait"
        return Finding(topic="folders", name=name, value=value, state="note", meaning=meaning, fix="free some space")
    if name == "inbox" and (kind := _filesystem(place, host)) in _NETWORK:
        meaning = f"on {kind}, where no events arrive: the inbox is polled"
        return Finding(topic="folders", name=name, value=value, state="note", meaning=meaning)
    meaning = "" if folder.exists() else "made at the daemon's start"
    return Finding(topic="folders", name=name, value=value, meaning=meaning)


def check_sandbox(config: Config, abi: int) -> list[Finding]:
    """Landlock, which fences the worker in; ``abi`` is the kernel's, 0 where it has none."""
    if abi >= 4:
        return [
            Finding(topic="sandbox", name="landlock", value=f"ABI {abi}", meaning="files and network are fenced off")
        ]
    if abi:
        meaning = "files are fenced off, the network only from ABI 4 (Linux 6.7)"
        return [Finding(topic="sandbox", name="landlock", value=f"ABI {abi}", state="note", meaning=meaning)]
    return [
        Finding(
            topic="sandbox",
            name="landlock",
            value="not available",
            state="broken" if config.limits.sandbox == "required" else "note",
            meaning="the worker is limited by resource limits and system call filters only",
            fix="boot a kernel 5.13 or later with landlock in the lsm= list",
        )
    ]


def check_systemd(run: Path, units_at: tuple[Path, ...]) -> list[Finding]:
    """Whether systemd runs here, and whether edgeopt is its service."""
    if not (run / "systemd" / "system").is_dir():
        return [
            Finding(topic="systemd", name="systemd", value="not running", meaning="run `edgeopt serve` by other means")
        ]
    unit = next((path for path in (folder / "edgeopt.service" for folder in units_at) if path.exists()), None)
    if unit:
        return [Finding(topic="systemd", name="edgeopt.service", value=str(unit))]
    fix = "cp systemd/edgeopt.service /etc/systemd/system/ && systemctl enable --now edgeopt"
    return [Finding(topic="systemd", name="edgeopt.service", value="not installed", state="note", fix=fix)]


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))


def _filesystem(place: Path, host: Host) -> str:
    """The type of the filesystem that ``place`` lies on; empty where /proc/mounts does not tell."""
    try:
        lines = (host.proc / "mounts").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    mounts = [(Path(fields[1]), fields[2]) for fields in map(str.split, lines) if len(fields) > 2]
    around = [(mount, kind) for mount, kind in mounts if place.resolve().is_relative_to(mount)]
    return max(around, key=lambda found: len(found[0].parts), default=(place, ""))[1]


def _user() -> str:
    return os.environ.get("USER") or str(os.getuid())
