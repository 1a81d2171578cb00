"""Holds ``edgeopt/runtimes/trt/api.py`` against the real Python interfaces of TensorRT 10.3, 10.16, 11.4 and TensorRT for RTX.

    python tools/check_tensorrt.py [--wheels DIR] [RELEASE ...]

The releases' binding wheels (1 MB each) are fetched with pip, their libraries are replaced by empty ones that only have the symbols' names, so that the bindings can
be imported without a GPU and without the 2 GB of libraries; ``stubgen`` writes down what they declare, and mypy says whether that has everything that edgeopt uses, with
its types. Nothing is kept but the wheels: what is generated follows the vendor's licence and is not ours to commit. Ends with 0 where every release fits, 1 where
one does not, 3 where it cannot be told (no wheel for this Python, no network, no C compiler), with the reason.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

API = Path(__file__).resolve().parent.parent / "edgeopt" / "runtimes" / "trt" / "api.py"
CANNOT_TELL = 3
_FETCH_S = 60
_TOOLS = ("cc", "nm", "readelf")


@dataclass(frozen=True, slots=True)
class Release:
    """One release's bindings: as pip finds them, and as they are imported."""

    name: str
    requirement: str
    module: str
    protocol: str = "Library"


RELEASES = (
    Release("10.3", "tensorrt_cu12_bindings==10.3.0", "tensorrt_bindings.tensorrt"),
    Release("10.16", "tensorrt_cu12_bindings==10.16.1.11", "tensorrt_bindings.tensorrt"),
    Release("11.4", "tensorrt_cu13_bindings==11.4.0.106", "tensorrt_bindings.tensorrt"),
    Release("rtx-1.7", "tensorrt_rtx_cu12_bindings==1.7.1.116", "tensorrt_rtx_bindings.tensorrt_rtx", "RtxLibrary"),
)

OVERRIDES = '''
class Logger(real.ILogger):
    """As ``child`` derives it."""
    def __init__(self) -> None:
        real.ILogger.__init__(self)
    def log(self, severity: object, text: str) -> None: ...


class Monitor(real.IProgressMonitor):
    """As ``child`` derives it; a parent phase may be None at run time, whatever the binding declares."""
    def __init__(self) -> None:
        real.IProgressMonitor.__init__(self)
    def phase_start(self, phase: str, parent: str | None, steps: SupportsInt) -> None: ...
    def step_complete(self, phase: str, step: SupportsInt) -> bool:
        return True
    def phase_finish(self, phase: str) -> None: ...
'''
"""What the library calls back: it passes by position, so the names of parameters may differ."""


class CannotTellError(Exception):
    """The check cannot be made here; the text says why."""


def fetch(release: Release, wheels: Path) -> Path:
    """The wheel of ``release``, from ``wheels`` or through pip into it."""
    distribution, _, version = release.requirement.partition("==")
    pattern = f"{distribution}-{version}-cp{sys.version_info[0]}{sys.version_info[1]}-*.whl"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--retries", "0", "--timeout", "10", "--dest", str(wheels)]
    if not any(wheels.glob(pattern)):
        try:
            ran = subprocess.run(
                [*command, release.requirement], capture_output=True, text=True, timeout=_FETCH_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise CannotTellError(f"{release.requirement} could not be fetched within {_FETCH_S} s") from error
        if ran.returncode:
            said = next((line for line in ran.stderr.splitlines() if line.startswith("ERROR")), "pip failed")
            raise CannotTellError(f"{release.requirement} could not be fetched: {said}")
    return next(iter(wheels.glob(pattern)))


def declare(release: Release, wheel: Path, folder: Path) -> Path:
    """What the bindings in ``wheel`` declare, as a stub file that mypy can read."""
    unpacked = folder / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    bindings = next(unpacked.glob(f"{release.module.replace('.', '/')}*.so"))
    links = _links(bindings, folder / "links")
    command = [Path(sys.executable).with_name("stubgen"), "--quiet", "--module", release.module, "--output", folder]
    environment = {"LD_LIBRARY_PATH": str(links), "PYTHONPATH": str(unpacked), "PATH": "/usr/bin:/bin"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    stub = folder / f"{release.module.replace('.', '/')}.pyi"
    if ran.returncode or not stub.exists():
        raise CannotTellError(
            f"stubgen does not read the bindings of {release.name}: {ran.stdout[-300:]}{ran.stderr[-300:]}"
        )
    if "__version__" not in (bindings.parent / "__init__.py").read_text():
        raise SystemExit(f"{release.name} has no __version__")
    return stub


def _links(bindings: Path, folder: Path) -> Path:
    """Empty libraries under the names that ``bindings`` asks for, with the functions that it imports from them."""
    folder.mkdir()
    missing = _said("nm", "--dynamic", "--undefined-only", bindings)
    names = re.findall(r" U ((?:createInfer|createNv|get(?:Builder)?Plugin|getNv|initLibNv)\w+)", missing)
    source = folder / "links.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in names))
    for library in re.findall(r"NEEDED.*\[(lib(?:nv|tensorrt)\S+)\]", _said("readelf", "--dynamic", bindings)):
        _said("cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library, source)
    return folder


def _said(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def mended(stub: str) -> str:
    """``stub`` without what stubgen gets wrong about bindings made with pybind11."""
    stub = re.sub(r"(channel_axis: [\w.]+)\)", r"\1 = ...)", stub)  # a default that is missing after others
    stub = re.sub(r"^bool: DataType$", "", stub, flags=re.MULTILINE)  # hides bool in every signature
    # pybind11 converts a tuple where it says Dims, lets Dims be iterated, and gives host memory as a buffer
    stub = re.sub(r"def \w+\([^)]*\)", lambda found: re.sub(r": Dims\b", ": Dims | tuple[int, ...]", found[0]), stub)
    stub = stub.replace("class Dims:\n", "class Dims:\n    def __iter__(self) -> collections.abc.Iterator[int]: ...\n")
    buffer = "class IHostMemory:\n    def __buffer__(self, flags: int, /) -> memoryview: ...\n"
    return "import collections.abc\n" + stub.replace("class IHostMemory:\n", buffer) + "\n__version__: str\n"


def complaints(stubs: dict[Release, Path], api: Path, folder: Path) -> dict[str, list[str]]:
    """What mypy says about each release's declarations, by its name; nothing where edgeopt's protocols fit."""
    (folder / "real").mkdir()
    (folder / "real" / "__init__.pyi").touch()
    shutil.copy(api, folder / "api.py")
    checks = {}
    for release, stub in stubs.items():
        module = "r" + re.sub(r"\W", "_", release.name)
        (folder / "real" / f"{module}.pyi").write_text(mended(stub.read_text()))
        check = folder / f"check_{module}.py"
        check.write_text(
            f"from typing import SupportsInt\nfrom real import {module} as real\nfrom api import {release.protocol}\n"
            f"library: {release.protocol} = real\n{OVERRIDES}"
        )
        checks[release.name] = check
    settings = folder / "mypy.ini"
    # the stubs themselves are as they are; numpy is only named in them
    settings.write_text(
        "[mypy]\nstrict = True\n[mypy-real.*]\nignore_errors = True\n[mypy-numpy.*]\nfollow_imports = skip\n"
    )
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        settings,
        "--cache-dir",
        folder / "cache",
        *checks.values(),
    ]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if ran.returncode not in (0, 1):
        raise CannotTellError(f"mypy did not run: {ran.stdout[-300:]}{ran.stderr[-300:]}")
    lines = ran.stdout.splitlines()
    return {name: [line for line in lines if line.startswith(check.name)] for name, check in checks.items()}


def check(releases: list[Release], *, wheels: Path, api: Path = API) -> dict[str, list[str]]:
    """Complaints by release; raises :class:`CannotTellError` where it cannot be told."""
    if lacking := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        raise CannotTellError(f"{', '.join(lacking)} is missing: install a C compiler and binutils")
    with tempfile.TemporaryDirectory() as given, ThreadPoolExecutor(len(releases)) as pool:
        folder = Path(given)
        bindings = {each.requirement: each for each in releases}
        wheel_of = dict(zip(bindings, pool.map(lambda each: fetch(each, wheels), bindings.values()), strict=True))
        places = [folder / each.name for each in bindings.values()]
        for place in places:
            place.mkdir()
        declared = pool.map(declare, bindings.values(), wheel_of.values(), places)
        stub_of = dict(zip(bindings, declared, strict=True))
        return complaints({each: stub_of[each.requirement] for each in releases}, api, folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("releases", nargs="*", metavar="RELEASE", help=", ".join(each.name for each in RELEASES))
    parser.add_argument("--wheels", type=Path, default=Path(tempfile.gettempdir()) / "edgeopt-tensorrt-wheels")
    given = parser.parse_args()
    wanted = [each for each in RELEASES if not given.releases or each.name in given.releases]
    given.wheels.mkdir(exist_ok=True)
    try:
        found = check(wanted, wheels=given.wheels)
    except CannotTellError as reason:
        print(f"not checked: {reason}", file=sys.stderr)
        return CANNOT_TELL
    for name, lines in found.items():
        print(f"{name}: {'fits' if not lines else 'does not fit'}")
        print("".join(f"  {line}\n" for line in lines), end="")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
