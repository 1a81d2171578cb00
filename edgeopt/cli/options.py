"""Options that several commands share, and what is read out of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.errors import UsageError

if TYPE_CHECKING:
    from edgeopt.config.schema import Config


def add_config(parser: argparse.ArgumentParser) -> None:
    """``-c/--config FILE``; where it is not given, the default places are tried."""
    parser.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="configuration file (default: the usual places)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``: one JSON document on stdout and nothing else there."""
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout and nothing else there")


def load_config(path: Path | None) -> Config:
    """The configuration at ``path``, else the one in the usual places, else the defaults.

    Raises :class:`~edgeopt.errors.ConfigError` with every mistake in it, :class:`UsageError` where ``path`` is missing.
    """
    from edgeopt.config import reader

    chosen = path or reader.find_default()
    if chosen is None:
        return reader.default()
    if not chosen.is_file():
        raise UsageError(f"there is no configuration file {chosen}", hint="Name an existing file with -c FILE.")
    return reader.load(chosen)


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
