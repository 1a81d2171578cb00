"""What ``edgeopt doctor`` says of targets: what is made for each of them here, what runs here, and what its GPU is.

The part of the check-up that knows runtimes, by the metadata of what is installed; nothing heavy is imported. The other
topics are in ``checkup``, whose findings these are.
"""

from __future__ import annotations

from collections.abc import Callable

from edgeopt import device, fingerprint
from edgeopt.cli.checkup import Finding
from edgeopt.device import Host
from edgeopt.policy import TargetRequest
from edgeopt.runtimes.trt import flavours
from edgeopt.runtimes.trt.flavours import Flavour

_NO_GPU = "there is no NVIDIA GPU here, or its driver is not loaded"


def check_targets(
    host: Host,
    *,
    installed_flavour: Callable[[Flavour], str | None] = flavours.installed_version,
    version_of: Callable[[str], str | None] = fingerprint.version_of,
) -> list[Finding]:
    """For each target: whether artifacts for it can be made here and run here, why not, and how to get there."""
    here = device.detect(TargetRequest(), host=host).name
    gpu, bindings = device.gpu_present(host=host), version_of("cuda-bindings")
    engines = flavours.FLAVOURS.values()
    return [
        *(_onnx_target(name, here, version_of) for name in ("cpu", "arm")),
        *(_engine_target(each, installed_flavour(each), gpu=gpu, bindings=bindings) for each in engines),
    ]


def _onnx_target(name: str, here: str, version_of: Callable[[str], str | None]) -> Finding:
    if fingerprint.installed("onnxruntime", find=version_of) is None:
        return _target(name, meaning="onnxruntime is not installed", fix="pip install onnxruntime")
    if name == here:
        return _target(name, builds=True, runs=True)
    if name == "arm":
        meaning = "made ahead of time for target.features and published as unverified: no ARM device has run it"
        return _target(name, builds=True, meaning=meaning, fix=_elsewhere(name))
    meaning = f"this device is {here}: what is made for {name} is not what its own kernels were measured with"
    return _target(name, meaning=meaning, fix="run edgeopt on such a device")


def _engine_target(flavour: Flavour, version: str | None, *, gpu: bool, bindings: str | None) -> Finding:
    elsewhere = _elsewhere(flavour.name)
    if version is None:
        if gpu or not flavour.needs_gpu:
            return _target(flavour.name, meaning="not installed", fix=flavour.install)
        return _target(flavour.name, meaning=f"not installed, and {_NO_GPU}", fix=f"{flavour.install}; or {elsewhere}")
    if reason := flavours.unfit(flavour, version):
        return _target(flavour.name, version=version, meaning=reason, fix=flavour.install)
    if gpu and bindings:
        meaning = "engines are built, judged and timed on the GPU; the authors of this version had none to try that on"
        return _target(flavour.name, builds=True, runs=True, version=version, meaning=meaning)
    if gpu:
        meaning = "cuda-bindings is not installed, and nothing else starts an engine"
        return _target(flavour.name, builds=True, version=version, meaning=meaning, fix="pip install 'edgeopt[gpu]'")
    if flavour.needs_gpu:
        meaning = f"it builds on the GPU that will run the engine, and {_NO_GPU}"
        return _target(flavour.name, version=version, meaning=meaning, fix=elsewhere)
    meaning = f"built ahead of time for target.compute_capability, published as unverified; {_NO_GPU}"
    return _target(flavour.name, builds=True, version=version, meaning=meaning, fix=elsewhere)


def _elsewhere(target: str) -> str:
    return f"edgeopt optimize --target {target} --prepare here, edgeopt accept on that device"


def _target(name: str, *, builds: bool = False, runs: bool = False, version: str = "", **more: str) -> Finding:
    """What a target is good for here; an installed library that can do nothing is worth a look."""
    if builds:
        can = "builds and runs here" if runs else "builds but does not run here"
    else:
        can = "neither builds nor runs here"
    value = f"{version}, {can}" if version else can
    return Finding(
        topic="targets",
        name=name,
        value=value,
        state="note" if version and not builds else "ok",
        **more,
    )


def check_gpu(host: Host) -> list[Finding]:
    """The NVIDIA GPUs whose driver is loaded, and the driver's version where it tells."""
    if not device.gpu_present(host=host):
        return [Finding(topic="gpu", name="nvidia", value="none, or its driver is not loaded")]
    driver = device.gpu_driver(host=host)
    meaning = "engines are built, judged and timed on it for the targets tensorrt and tensorrt-rtx"
    names = ", ".join(device.gpu_names(host=host)) or "present"
    value = f"{names}, driver {driver}" if driver else names
    return [Finding(topic="gpu", name="nvidia", value=value, meaning=meaning)]
