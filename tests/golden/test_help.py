"""Every command's --help, word for word. After a wanted change: EDGEOPT_UPDATE_GOLDEN=1 pytest tests/golden/test_help.py."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from edgeopt.cli.main import COMMANDS, build_parser

GOLDEN = Path(__file__).parent / "help"
NAMES = ("edgeopt", *(command.name for command in COMMANDS))


def help_of(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    asked = None if name == "edgeopt" else name
    parser, _ = build_parser(asked)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(([asked] if asked else []) + ["--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_help_is_what_the_golden_file_says(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, golden = help_of(name, capsys, monkeypatch), GOLDEN / f"{name}.txt"
    if os.environ.get("EDGEOPT_UPDATE_GOLDEN"):
        golden.write_text(text)
    expected = golden.read_text()
    if sys.version_info < (3, 13):
        assert text == expected
    else:  # argparse lays options out differently since 3.13: compare what they are
        options = re.compile(r"--?[a-z][a-z-]*")
        assert set(options.findall(text)) == set(options.findall(expected))


def test_every_golden_file_belongs_to_a_command() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(NAMES)
