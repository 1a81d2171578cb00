"""Which TensorRT is installed here: found by name and metadata, never imported.

Stands under everything in this room, and under ``edgeopt doctor``, which must work where an installation is broken. Standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import util

from edgeopt import fingerprint

Release = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavour:
    """One of the two libraries: their engines are of no use to each other."""

    name: str
    """As a target and a runtime is called."""
    modules: tuple[str, ...]
    """Names that it is imported by, the preferred one first."""
    distributions: tuple[str, ...]
    install: str
    releases: tuple[tuple[Release, Release], ...]
    """First and last of each span that the code was held against, as far as they are spelled out: (10, 16) is every 10.16."""
    needs_gpu: bool
    """Building times kernels on the GPU; RTX leaves that to the device."""


TENSORRT = Flavour(
    name="tensorrt",
    modules=("tensorrt", "tensorrt_bindings"),
    distributions=fingerprint.DISTRIBUTIONS["tensorrt"],
    install="pip install 'tensorrt>=10.3,<12', on a device with an NVIDIA GPU; on a Jetson it comes with JetPack 6.1 and later",
    releases=(((10, 3), (10, 16)), ((11,), (11,))),
    needs_gpu=True,
)
RTX = Flavour(
    name="tensorrt-rtx",
    modules=("tensorrt_rtx", "tensorrt_rtx_bindings"),
    distributions=fingerprint.DISTRIBUTIONS["tensorrt-rtx"],
    install="pip install 'edgeopt[tensorrt-rtx]', on x86-64",
    releases=(((1, 7, 1, 116), (1, 7, 1, 116)),),
    needs_gpu=False,
)
FLAVOURS = {flavour.name: flavour for flavour in (TENSORRT, RTX)}


CUDA_BINDINGS = "cuda-bindings"
"""What starts engines; building needs none of it."""
CUDA_INSTALL = "pip install 'edgeopt[gpu]'"


def has_cuda() -> bool:
    """Whether cuda-bindings is installed."""
    return fingerprint.version_of(CUDA_BINDINGS) is not None


def module_of(flavour: Flavour) -> str | None:
    """The name to import ``flavour`` by; None where it is not installed."""
    return next((name for name in flavour.modules if util.find_spec(name) is not None), None)


def version_of(flavour: Flavour) -> str | None:
    """The installed release; None where there is none."""
    return next(filter(None, map(fingerprint.version_of, flavour.distributions)), None)


def unfit(flavour: Flavour, version: str) -> str | None:
    """Why release ``version`` is not used, in one clause; None for one within the spans, or that does not tell its number."""
    release = _release(version)
    if not release or any(_within(release, span) for span in flavour.releases):
        return None
    spans = " and ".join(_span(span) for span in flavour.releases)
    return f"this edgeopt is written for {flavour.name} {spans}, and {version} is installed"


def _release(version: str) -> Release:
    """The leading numbers of a version; empty where it has none."""
    told = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, told[0].split("."))) if told else ()


def _within(release: Release, span: tuple[Release, Release]) -> bool:
    first, last = span
    return release[: len(first)] >= first and release[: len(last)] <= last


def _span(span: tuple[Release, Release]) -> str:
    first, last = (".".join(map(str, end)) for end in span)
    return first if first == last else f"{first} to {last}"


def installed_version(flavour: Flavour) -> str | None:
    """The release that can be imported here; None where the library or its metadata is missing."""
    return version_of(flavour) if module_of(flavour) is not None else None
