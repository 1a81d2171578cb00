"""``edgeopt verify``: is a published version whole, and does it run? Checksums here, opening and running in the sandbox."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt import runtime, wire
from edgeopt.cli import options
from edgeopt.cli.child import probe
from edgeopt.daemon.printable import printable
from edgeopt.errors import EdgeoptError, UsageError
from edgeopt.layout import CURRENT_LINK, MANIFEST_FILE

if TYPE_CHECKING:
    from edgeopt.cli.main import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Arguments of ``verify``."""
    parser = subparsers.add_parser(
        "verify",
        help="check a published version: checksums, manifest, does it run",
        description="Check a published version's checksums and manifest, then open and run it once in the sandbox.",
    )
    parser.add_argument("folder", type=Path, metavar="ARTIFACT_DIR", help="a version's folder, or a model's")
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what was checked; 1 where anything is wrong."""
    folder = version_folder(arguments.folder)
    version = runtime.read_version(folder)
    problems = runtime.check_files(version)
    document: dict[str, Any] = {
        "folder": str(folder),
        "name": version.manifest.get("name"),
        "version": version.manifest.get("version"),
        "problems": problems,
    }
    if not problems:
        # files that are not what was published are not opened
        try:
            ran = probe({"artifacts": [wire.encode(version.artifact)]})
            document["ran"] = {key: ran[key] for key in ("inputs", "outputs", "sandbox")}
            problems += [f"output {item['name']} is not finite" for item in ran["outputs"][0] if not item["finite"]]
        except EdgeoptError as error:
            problems.append(f"it does not run: {error.message}")
    if arguments.json:
        options.print_json(document)
    else:
        _print(document)
    return 1 if problems else 0


def version_folder(folder: Path) -> Path:
    """The version's folder that a path means: itself, or what ``current`` under it points to."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {str(folder)!r}", hint="Name the folder of a published version.")
    current = folder / CURRENT_LINK
    if not (folder / MANIFEST_FILE).exists() and current.is_dir():
        return current.resolve()
    return folder.resolve()


def _print(document: dict[str, Any]) -> None:
    if problems := document["problems"]:
        for problem in problems:
            print(f"edgeopt: {printable(problem)}", file=sys.stderr)
        return
    print(f"{document['name']} version {document['version']}: checksums and manifest hold")
    outputs = ", ".join(f"{item['name']} {item['dtype']}{item['shape']}" for item in document["ran"]["outputs"][0])
    print(f"opened and ran once: {printable(outputs)}")
