"""Which TensorRT is installed here: found by name and metadata, never imported.

Stands under everything in this room, and under ``edgeopt doctor``, which must work where an installation is broken. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata, util


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavour:
    """One of the two libraries: their engines are of no use to each other."""

    name: str
    """As a target and a runtime is called."""
    modules: tuple[str, ...]
    """Names that it is imported by, the preferred one first."""
    distributions: tuple[str, ...]
    install: str
    needs_gpu: bool
    """Building times kernels on the GPU; RTX leaves that to the device."""


TENSORRT = Flavour(
    name="tensorrt",
    modules=("tensorrt", "tensorrt_bindings"),
    distributions=("tensorrt", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
    install="pip install tensorrt, on a device with an NVIDIA GPU; on a Jetson it comes with JetPack",
    needs_gpu=True,
)
RTX = Flavour(
    name="tensorrt-rtx",
    modules=("tensorrt_rtx", "tensorrt_rtx_bindings"),
    distributions=("tensorrt-rtx", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
    install="pip install 'edgeopt[tensorrt-rtx]', on x86-64",
    needs_gpu=False,
)
FLAVOURS = {flavour.name: flavour for flavour in (TENSORRT, RTX)}


CUDA_BINDINGS = "cuda-bindings"
"""What starts engines; building needs none of it."""
CUDA_INSTALL = "pip install 'edgeopt[gpu]'"


def has_cuda() -> bool:
    """Whether cuda-bindings is installed."""
    try:
        return bool(metadata.version(CUDA_BINDINGS))
    except metadata.PackageNotFoundError:
        return False


def module_of(flavour: Flavour) -> str | None:
    """The name to import ``flavour`` by; None where it is not installed."""
    return next((name for name in flavour.modules if util.find_spec(name) is not None), None)


def version_of(flavour: Flavour) -> str | None:
    """The installed release; None where there is none."""
    for name in flavour.distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def installed_version(flavour: Flavour) -> str | None:
    """The release that can be imported here; None where the library or its metadata is missing."""
    return version_of(flavour) if module_of(flavour) is not None else None
