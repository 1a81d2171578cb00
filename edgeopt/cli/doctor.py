"""``edgeopt doctor``: what this device can do, and what is missing and how to get it.

Collects the findings of ``checkup`` and ``checkup_targets`` and prints them by topic, or as one JSON document. Ends
with 1 where something is broken that edgeopt cannot work without, with 0 otherwise.
"""

from __future__ import annotations

import argparse
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.cli import options
from edgeopt.errors import ConfigError

if TYPE_CHECKING:
    from edgeopt.cli.checkup import Finding
    from edgeopt.cli.main import Subparsers

_MARKS = {"ok": " ", "note": "!", "broken": "x"}
_UNIT_FOLDERS = (Path("/etc/systemd/system"), Path("/usr/local/lib/systemd/system"), Path("/usr/lib/systemd/system"))


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="what this device can do, and what is missing",
        description="What this device can do: CPU features, runtimes, GPU, limits, disk; what is missing, how to get it.",
    )
    options.add_config(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    findings = _findings(arguments.config)
    broken = any(finding.state == "broken" for finding in findings)
    if arguments.json:
        from edgeopt.wire import encode

        options.print_json({"ok": not broken, "findings": encode(findings)})
    else:
        _print(findings)
    return 1 if broken else 0


def _findings(config_file: Path | None) -> list[Finding]:
    from edgeopt.cli import checkup, checkup_targets
    from edgeopt.config import reader
    from edgeopt.device import THIS_HOST
    from edgeopt.worker import landlock

    chosen = config_file or reader.find_default()
    try:
        config = reader.load(chosen) if chosen else reader.default()
        about_config = [checkup.Finding(topic="configuration", name="file", value=str(chosen or "none: the defaults"))]
    except ConfigError as error:
        # the rest of the check-up is still worth having, on the defaults
        config = reader.default()
        about_config = [
            checkup.Finding(
                topic="configuration",
                name="file",
                value=error.message,
                state="broken",
                meaning="; ".join(error.mistakes),
                fix=f"edgeopt config check {chosen}",
            )
        ]
    return [
        *checkup.check_device(THIS_HOST),
        *checkup.check_instructions(THIS_HOST),
        *checkup.check_runtimes(),
        *checkup_targets.check_gpu(THIS_HOST),
        *checkup_targets.check_targets(THIS_HOST),
        *checkup.check_inotify(THIS_HOST),
        *about_config,
        *checkup.check_folders(config, THIS_HOST, configured=chosen is not None),
        *checkup.check_sandbox(config, landlock.abi()),
        *checkup.check_systemd(Path("/run"), _UNIT_FOLDERS),
    ]


def _print(findings: list[Finding]) -> None:
    width = max(len(finding.name) for finding in findings)
    for topic, group in groupby(findings, key=lambda finding: finding.topic):
        print(topic)
        for finding in group:
            meaning = f"  ({finding.meaning})" if finding.meaning else ""
            print(f"{_MARKS[finding.state]} {finding.name:<{width}}  {finding.value}{meaning}")
            if finding.fix:
                print(f"  {'':<{width}}  to get it: {finding.fix}")
    if any(finding.state != "ok" for finding in findings):
        print("\n! worth knowing   x broken")
