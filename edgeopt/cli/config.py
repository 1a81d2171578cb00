"""``edgeopt config``: check a configuration file, or show the whole effective configuration.

``check`` names every mistake at once, with its line and key, and ends with 2 where there is one; ``show`` prints what
is in force with the defaults filled in and credentials blotted out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.cli import options
from edgeopt.errors import ConfigError

if TYPE_CHECKING:
    from edgeopt.cli.main import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("config", help="check or show the configuration", description=__doc__)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="every mistake of a configuration file, with line and key")
    check.add_argument("file", type=Path, metavar="FILE")
    options.add_json(check)
    show = actions.add_parser("show", help="the whole effective configuration, defaults included")
    options.add_config(show)
    options.add_json(show)


def run(arguments: argparse.Namespace) -> int:
    return _check(arguments) if arguments.action == "check" else _show(arguments)


def _check(arguments: argparse.Namespace) -> int:
    from edgeopt.config import pending, reader

    try:
        notes = pending.without_effect(reader.load(arguments.file))
    except ConfigError as error:
        if arguments.json:
            options.print_json(
                {"file": str(arguments.file), "ok": False, "mistakes": error.mistakes or [error.message]}
            )
        raise
    if arguments.json:
        options.print_json({"file": str(arguments.file), "ok": True, "mistakes": [], "notes": notes})
    else:
        print(f"{arguments.file} is in order")
        for note in notes:
            print(f"  note: {note}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from edgeopt.config import reader, show

    path = arguments.config or reader.find_default()
    config = reader.load(path) if path else reader.default()
    print(f"# {path}" if path else "# no configuration file: the defaults", file=sys.stderr)
    if arguments.json:
        options.print_json(show.as_data(config))
    else:
        print(show.effective(config), end="")
    return 0
