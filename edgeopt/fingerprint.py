"""What a measurement depends on besides the model: the runtime's version, the device, its instruction sets, driver and GPUs.

The worker writes it into ``environment.fingerprint`` of the manifest (``stages.report``); the daemon holds what is here
today against it, at its start and daily; ``edgeopt.load`` does before it opens anything. Everything is read from package
metadata, /proc and /sys: nothing heavy is imported, so that it costs the daemon nothing. Where a runtime is imported
already, the version in memory is the truth for this process: an upgrade in place changes the metadata under it, and the
process goes on with the old library. A fact that is unknown on either side is never held against an artifact.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from edgeopt import device, wire
from edgeopt.device import THIS_HOST, Host

DISTRIBUTIONS = {
    "onnxruntime": (
        "onnxruntime",
        "onnxruntime-gpu",
        "onnxruntime-openvino",
        "onnxruntime-qnn",
        "onnxruntime-migraphx",
        "onnxruntime-cann",
    ),
    "tensorrt": ("tensorrt", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
}
"""Packages whose version is a runtime's, the preferred one first."""
_MODULES = {
    "onnxruntime": ("onnxruntime",),
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""What a process that runs a runtime has imported."""
_ON_GPU = ("tensorrt", "tensorrt-rtx")
REASONS = ("runtime", "device", "driver", "gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """The conditions of a measurement; None is unknown."""

    runtime: str | None = None
    runtime_version: str | None = None
    arch: str | None = None
    device: str | None = None
    features: tuple[str, ...] | None = None
    driver: str | None = None
    """Only of artifacts that run on a GPU, and only where there was one."""
    gpus: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One fact that is not what it was; ``reason`` is one of :data:`REASONS`, ``text`` a clause for people."""

    reason: str
    text: str


def here(runtime: str | None, *, host: Host = THIS_HOST) -> Fingerprint:
    """Today's conditions for artifacts of ``runtime``."""
    on_gpu = runtime in _ON_GPU and device.gpu_present(host=host)
    return Fingerprint(
        runtime=runtime,
        runtime_version=running(runtime),
        arch=host.machine,
        device=device.describe(host=host),
        features=device.features(host=host),
        driver=(device.gpu_driver(host=host) or None) if on_gpu else None,
        gpus=(device.gpu_names(host=host) or None) if on_gpu else None,
    )


def version_of(distribution: str) -> str | None:
    """The version of an installed package, from its metadata; None where there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def installed(runtime: str | None, *, find: Callable[[str], str | None] = version_of) -> str | None:
    """The installed version of a runtime, whichever of its packages it came in; None where there is none."""
    found = (find(distribution) for distribution in DISTRIBUTIONS.get(runtime or "", ()))
    return next(filter(None, found), None)


def running(runtime: str | None) -> str | None:
    """The version of a runtime that this process runs, or would if it imported it now; nothing is imported."""
    on_disk = installed(runtime)
    for name in _MODULES.get(runtime or "", ()):
        loaded = getattr(sys.modules.get(name), "__version__", None)
        if isinstance(loaded, str) and loaded:
            return on_disk if on_disk is not None and _refines(on_disk, loaded) else loaded
    return on_disk


def _refines(packaged: str, loaded: str) -> bool:
    """Whether a package's version only adds to its module's: a nightly build's date, a fourth number, ``.post1``."""
    return packaged.startswith(loaded) and not packaged[len(loaded) :][:1].isdigit()


def of_manifest(manifest: Mapping[str, Any]) -> Fingerprint:
    """What a manifest tells of its conditions. One without a fingerprint tells some of it elsewhere; garbage is unknown."""
    artifact, target = _part(manifest, "artifact"), _part(manifest, "target")
    told = _part(_part(manifest, "environment"), "fingerprint")
    try:
        found = wire.decode(Fingerprint, dict(told))
    except ValueError:
        found = Fingerprint()
    elsewhere = Fingerprint(
        runtime=_text(artifact, "runtime"),
        runtime_version=_text(artifact, "runtime_version"),
        arch=_text(target, "arch"),
        device=_text(target, "device"),
        features=_texts(target, "features"),
    )
    return _filled(found, elsewhere)


def changes(then: Fingerprint, now: Fingerprint) -> tuple[Change, ...]:
    """What is not what it was, in the order of :data:`REASONS`."""
    pairs = (
        ("runtime", then.runtime or "the runtime", then.runtime_version, now.runtime_version),
        ("device", "the architecture", then.arch, now.arch),
        ("device", "the device", then.device, now.device),
        ("device", "its instruction sets", then.features, now.features),
        ("driver", "the GPU driver", then.driver, now.driver),
        ("gpu", "the GPUs", then.gpus, now.gpus),
    )
    return tuple(
        Change(reason=reason, text=f"{what}: {_shown(old)} then, {_shown(new)} now")
        for reason, what, old, new in pairs
        if old is not None and new is not None and old != new
    )


def reasons(then: Fingerprint, now: Fingerprint) -> tuple[str, ...]:
    """The reasons of :func:`changes`, each once."""
    return tuple(dict.fromkeys(change.reason for change in changes(then, now)))


def misfits(then: Fingerprint, now: Fingerprint) -> tuple[Change, ...]:
    """What of it makes an artifact doubtful to run: the device's name and more instruction sets than then do not."""
    superset = set(now.features or ()) >= set(then.features or ())
    return changes(then, replace(now, device=None, features=then.features if superset else now.features))


def _filled(found: Fingerprint, elsewhere: Fingerprint) -> Fingerprint:
    unknown = {name: getattr(elsewhere, name) for name in found.__slots__ if getattr(found, name) is None}
    return replace(found, **unknown)


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def _text(record: Mapping[str, Any], name: str) -> str | None:
    value = record.get(name)
    return value if isinstance(value, str) and value else None


def _texts(record: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    value = record.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return None
    return tuple(value)


def _shown(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else " ".join(value) or "none"
