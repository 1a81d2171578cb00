"""``python -m edgeopt`` and the ``edgeopt`` script: both are the command line."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line on this process' arguments; returns the exit code."""
    from edgeopt.cli.main import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
