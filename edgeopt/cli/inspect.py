"""``edgeopt inspect``: what a model or an artifact is. A sandboxed child reads the file; this renders what it says."""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.cli import options, tables
from edgeopt.cli.child import ask
from edgeopt.daemon import gate_bundle
from edgeopt.daemon.printable import printable
from edgeopt.errors import BadBundle, UsageError
from edgeopt.layout import BUNDLE_SUFFIX

if TYPE_CHECKING:
    from edgeopt.cli.main import Subparsers

_MOST_ROWS = 40


def add_parser(subparsers: Subparsers) -> None:
    """Arguments of ``inspect``."""
    parser = subparsers.add_parser(
        "inspect",
        help="what a model or an artifact is",
        description="Inputs, outputs, operators, precision of each layer, size and provenance of a model or an artifact.",
    )
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="a model file, an engine, a bundle, or the folder of a published version",
    )
    parser.add_argument(
        "--channels",
        action="store_true",
        help="also what pruning could take from the model, and why it leaves the rest",
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what the file is; 1 where it is refused."""
    path: Path = arguments.path
    if not path.exists():
        raise UsageError(f"there is no file or folder {str(path)!r}", hint="Name an existing model.")
    if path.suffix == BUNDLE_SUFFIX and path.is_file():
        if arguments.channels:
            raise UsageError("nothing in a bundle is opened", hint="Name the model that it was made of.")
        return _run_bundle(path, as_json=arguments.json)
    document = _asked(path.absolute(), with_channels=arguments.channels)
    if arguments.json:
        options.print_json(document)
    else:
        print("\n".join(describe(document)))
    return 0


def _asked(path: Path, *, with_channels: bool) -> dict[str, Any]:
    if not with_channels:
        return ask("edgeopt.worker.inspect", [str(path)])
    with tempfile.TemporaryDirectory(prefix="edgeopt-inspect-") as work:
        return ask("edgeopt.worker.inspect", [str(path), work])


def _run_bundle(path: Path, *, as_json: bool) -> int:
    """Print what a bundle's document says; nothing else of it is opened."""
    with path.open("rb") as file:
        document = gate_bundle.document(file.fileno(), path.stat().st_size)
    if as_json:
        options.print_json(document)
    else:
        print("\n".join(describe_bundle(document)))
    return 0


def describe_bundle(document: Mapping[str, Any]) -> list[str]:
    """A bundle's document as lines for people; :class:`~edgeopt.errors.BadBundle` where it is none."""
    try:
        source, target = document["source"], document["target"]
        facts = {
            "bundle": f"version {document['bundle']}, made by edgeopt {document['edgeopt']} on {document['machine']}",
            "from": f"{source['file']} (sha256 {source['sha256'][:12]})",
            "for": f"{target['name']} ({target['arch']}), not timed for any device",
            "goal": f"{document['policy']['goal']['objective']}, max_drop {document['policy']['goal']['max_drop']:g}",
            "judged on": f"{document['eval']['samples']} samples ({document['eval']['origin']})",
        }
        rows = tables.bundle_rows(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadBundle(
            f"the bundle's document lacks what one holds: {error!r:.100}", hint="Prepare the bundle again."
        ) from error
    lines = [f"{title:<11} {printable(text)}" for title, text in facts.items()]
    return [
        *lines,
        "",
        "candidates, in the order in which they are measured",
        *_indented(tables.plain(tables.BUNDLE_COLUMNS, rows)),
    ]


def describe(document: Mapping[str, Any]) -> list[str]:
    """The document as lines for people: facts first, then tensors, operators and layers."""
    lines = _engine(document)
    if "format" not in document:
        return lines  # an engine without the model that it was made of
    lines += [
        f"format      {document['format']}, opset {document['opset']}",
        f"weights     {tables.size(document['parameter_bytes'])}{', quantized' if document.get('quantized') else ''}",
    ]
    if producer := document.get("producer"):
        lines.append(f"producer    {printable(str(producer))}")
    for title in ("inputs", "outputs"):
        rows = [(item["name"], item["dtype"], _shape(item["shape"])) for item in document[title]]
        lines += ["", title, *_indented(tables.plain(("name", "type", "shape"), rows))]
    operators = sorted(_pairs(document["operators"]), key=lambda pair: (-pair[1], pair[0]))
    lines += ["", "operators", *_indented(tables.plain(("type", "count"), [(name, str(n)) for name, n in operators]))]
    if layers := document.get("layers"):
        lines += ["", "layers", *_layers(layers)]
    if channels := document.get("channels"):
        lines += ["", *_channels(channels)]
    if manifest := document.get("manifest"):
        lines += ["", "provenance", *_provenance(manifest)]
    return lines


def _engine(document: Mapping[str, Any]) -> list[str]:
    """What is known of an engine without opening it; nothing where there is none."""
    engine, manifest = document.get("engine"), document.get("manifest") or {}
    if not engine:
        return []
    header = engine["header"]
    known = (
        f"TensorRT for RTX {header['version']} for {', '.join(header['gpus']) or 'no GPU that is known'}"
        if header
        else ""
    )
    told = [f"{known or 'its first bytes are of no layout that is known'}, {tables.size(engine['bytes'])}"]
    told += tables.engine_lines((manifest.get("artifact") or {}).get("engine"))
    return [f"{'' if number else 'engine':<12}{line}" for number, line in enumerate(told)]


def _layers(layers: list[Mapping[str, Any]]) -> list[str]:
    columns = tuple(str(key) for key in layers[0])
    rows = [tuple(str(layer.get(key, "")) for key in columns) for layer in layers[:_MOST_ROWS]]
    lines = _indented(tables.plain(columns, rows))
    if len(layers) > _MOST_ROWS:
        lines.append(f"  and {len(layers) - _MOST_ROWS} more; --json prints all of them")
    return lines


def _channels(found: Mapping[str, Any]) -> list[str]:
    """Families that may lose units, and what stays with its reason; every row, since that is what was asked for."""
    if refused := found.get("refused"):
        return ["channels", f"  none can go: {printable(str(refused))}"]
    families = [
        (each["name"], each["kind"], str(each["units"]), _operators(each["made_by"]), _operators(each["read_by"]))
        for each in found["families"]
    ]
    lines = [
        "channels that may go",
        *_indented(tables.plain(("family", "kind", "units", "made by", "read by"), families)),
    ]
    if found.get("lengths") == "declared":
        lines.append(
            "  the model does not run on made-up inputs, so only declared shapes were gone by; a job with samples sees more"
        )
    stay = [(each["name"], each["reason"]) for each in found["frozen"]]
    return [*lines, "", "channels that stay", *_indented(tables.plain(("layer", "because"), stay))]


def _operators(places: list[Mapping[str, Any]]) -> str:
    counts = Counter(str(place["operator"]) for place in places)
    return ", ".join(name if number == 1 else f"{number} {name}" for name, number in sorted(counts.items()))


def _provenance(manifest: Mapping[str, Any]) -> list[str]:
    source = manifest.get("source", {})
    return [
        f"  {manifest.get('name')} version {manifest.get('version')}, made by edgeopt {manifest.get('edgeopt')}",
        f"  from {printable(str(source.get('file')))} (sha256 {str(source.get('sha256'))[:12]})",
        f"  recipe {tables.label(manifest.get('recipe', []))}",
    ]


def _pairs(operators: Any) -> list[tuple[str, int]]:
    items = operators.items() if isinstance(operators, dict) else operators
    return [(str(name), int(count)) for name, count in items]


def _shape(dims: list[int | str]) -> str:
    return "x".join(str(dim) for dim in dims) or "scalar"


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]
