"""``edgeopt serve``: the daemon in the foreground, as systemd wants it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from edgeopt.cli import options

if TYPE_CHECKING:
    from edgeopt.cli.main import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Arguments of ``serve``."""
    parser = subparsers.add_parser(
        "serve",
        help="the daemon: watch the inbox, optimize, publish",
        description="Watch the inbox and turn every model dropped into it into the fastest version that is still right.",
    )
    options.add_config(parser)
    parser.add_argument("--once", action="store_true", help="work off what is in the inbox, then end")


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM; 0 after an orderly end, 1 where the daemon cannot go on or, with --once, a job failed."""
    config = options.load_config(arguments.config)
    from edgeopt.daemon import app  # after the configuration: its mistakes need none of this

    return app.serve(config, once=arguments.once, reload=lambda: options.load_config(arguments.config))
