"""TensorRT's real interfaces: what edgeopt uses of them is in 10.3, 10.16, 11.4 and RTX, and what it must not use is told apart."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import check_tensorrt as tool

FLAGS = """

class Flags(Protocol):
    @property
    def FP16(self) -> Any: ...


class WithFlags(Library, Protocol):
    @property
    def BuilderFlag(self) -> Flags: ...
"""
"""What a version of edgeopt would ask for that still used the precision flags."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("check")
    wider = folder / "api.py"
    wider.write_text(tool.API.read_text() + FLAGS)
    flagged = [
        replace(each, name=f"flags-{each.name}", protocol="WithFlags")
        for each in tool.RELEASES
        if each.name in ("10.16", "11.4")
    ]
    try:
        return tool.check([*tool.RELEASES, *flagged], wheels=folder, api=wider)
    except tool.CannotTellError as reason:
        pytest.skip(f"the interfaces cannot be looked at here: {reason}")


@pytest.mark.parametrize("release", [each.name for each in tool.RELEASES])
def test_release_has_everything_that_edgeopt_uses(found: dict[str, list[str]], release: str) -> None:
    assert found[release] == []


def test_flag_that_is_gone_since_11_would_be_noticed(found: dict[str, list[str]]) -> None:
    assert found["flags-10.16"] == []
    assert any("FP16" in line or "BuilderFlag" in line for line in found["flags-11.4"])
