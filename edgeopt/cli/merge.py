"""``edgeopt merge``: several models into one graph. Announced, not there yet: it says so instead of pretending."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.errors import UsageError

if TYPE_CHECKING:
    from edgeopt.cli.main import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Arguments of ``merge``."""
    parser = subparsers.add_parser(
        "merge",
        help="several models into one graph",
        description="Several models into one graph. This version cannot do it yet; it exits with 2 and writes nothing.",
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="models to merge")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the merged model")


def run(arguments: argparse.Namespace) -> int:
    """Refuse, truthfully."""
    raise UsageError(
        f"this version of edgeopt cannot merge models yet; {arguments.out} was not written",
        hint="Optimize the models one by one with `edgeopt optimize MODEL`.",
    )
