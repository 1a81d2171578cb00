"""``edgeopt bench A [B]``: one artifact's latency, or two measured in turns with the ratio's confidence interval."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt import runtime, wire
from edgeopt.cli import options, tables
from edgeopt.cli.child import probe
from edgeopt.cli.verify import version_folder
from edgeopt.errors import BrokenArtifact, UsageError

if TYPE_CHECKING:
    from edgeopt.cli.main import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Arguments of ``bench``."""
    parser = subparsers.add_parser(
        "bench",
        help="measure one artifact, or two against each other",
        description="Measure one artifact, or two in turns (ABBA), each alone in its process with its own settings, in several pairs of processes.",
    )
    parser.add_argument("first", type=Path, metavar="A", help="a published version's folder, or an ONNX file")
    parser.add_argument("second", type=Path, nargs="?", metavar="B", help="the one to compare with A")
    parser.add_argument("--data", type=Path, metavar="FILE", help="an .npz file; its first sample is the input")
    parser.add_argument(
        "--threads", type=_positive, metavar="N", help="threads for ONNX files (default: this device's)"
    )
    parser.add_argument("--seconds", type=_seconds, default=6.0, metavar="S", help="how long at most (default: 6)")
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; 1 where an artifact does not open or run."""
    paths = [path for path in (arguments.first, arguments.second) if path is not None]
    artifacts = [_artifact(path) for path in paths]
    for path in filter(None, [arguments.data]):
        if not path.is_file():
            raise UsageError(f"there is no file {str(path)!r}", hint="Name an existing .npz file.")
    print("measuring ...", file=sys.stderr)
    document = probe(
        {
            "artifacts": artifacts,
            "data": str(arguments.data.absolute()) if arguments.data else None,
            "threads": arguments.threads,
            "seconds": arguments.seconds,
            "compare": True,
        }
    )
    document["paths"] = [str(path) for path in paths]
    if arguments.json:
        options.print_json({key: document[key] for key in document if key not in ("outputs", "sandbox")})
    else:
        _print(document)
    return 0


def _artifact(path: Path) -> Any:
    """What the probe takes: an artifact in wire form, or the path of a plain model."""
    if path.is_file():
        return str(path.absolute())
    if not path.exists():
        raise UsageError(f"there is no file or folder {str(path)!r}", hint="Name a version's folder or an ONNX file.")
    version = runtime.read_version(version_folder(path))
    if problems := runtime.check_files(version):
        raise BrokenArtifact(f"{path} is not what its manifest says: {problems[0]}", hint="Publish it again.")
    return wire.encode(version.artifact)


def _print(document: dict[str, Any]) -> None:
    rows = [
        (
            name,
            path,
            f"{latency['p50_ms']:.3f}",
            f"{latency['p90_ms']:.3f}",
            f"{latency['p99_ms']:.3f}",
            tables.size(peak),
        )
        for name, path, latency, peak in zip(
            "AB", document["paths"], document["latency_ms"], document["peak_memory_bytes"], strict=False
        )
    ]
    tables.draw(("", "artifact", "p50 ms", "p90 ms", "p99 ms", "peak memory"), rows, to=sys.stdout)
    if ratio := document.get("speedup"):
        interval = f"[{ratio['low']:.3f}, {ratio['high']:.3f}]"
        print(
            f"A takes {ratio['value']:.3f} {interval} times as long as B (95 %, {document['pairs']} pairs of processes)"
        )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600.0:
        raise argparse.ArgumentTypeError(f"{text} is not within 0.1 and 3600")
    return value
