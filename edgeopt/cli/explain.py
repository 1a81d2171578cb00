"""``edgeopt explain FILE|NAME``: why a file or a model is where it is, out of the folders and the job database.

The same thing may be known in four places: it may lie in the inbox, have a job, have been rejected, be published. Each
place contributes its sentences, in that order; where none knows anything, that is said and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.cli import options, tables
from edgeopt.cli.state import job_document, opened_store
from edgeopt.daemon.names import escaped, is_waiting, model_format
from edgeopt.daemon.printable import printable
from edgeopt.errors import EnvironmentFault
from edgeopt.layout import CURRENT_LINK, MANIFEST_FILE, REASON_FILE

if TYPE_CHECKING:
    from edgeopt.config.schema import Config
    from edgeopt.daemon.jobs import Job

_SUFFIXES = (".onnx", ".pt2", ".ts", ".pt", ".yaml", ".calibration.npz", ".eval.npz")
_JSON_LIMIT_BYTES = 16 << 20


def run_explain(arguments: argparse.Namespace, config: Config) -> int:
    """Print every place's sentences about the file or model; 1 where no place knows it."""
    findings = find(arguments.what, config)
    if arguments.json:
        options.print_json({"what": arguments.what, "found": findings})
    else:
        places = {finding["place"] for finding in findings}
        for finding in findings:
            if finding.get("state") in places:
                finding |= {"message": "", "hint": ""}  # the folder that comes next tells the reason itself
            print("\n".join(_sentences(finding)))
    if not findings:
        print(f"edgeopt: nothing is known of {printable(arguments.what)!r}", file=sys.stderr)
        print(f"  Look whether it was dropped into {config.inbox}.", file=sys.stderr)
    return 0 if findings else 1


def find(what: str, config: Config) -> list[dict[str, Any]]:
    """What each place knows: dicts with ``place`` (inbox, job, rejected, published) and its facts."""
    base = Path(what).name or what
    name = next((base[: -len(suffix)] for suffix in _SUFFIXES if base.endswith(suffix)), base)
    findings: list[dict[str, Any]] = []
    try:
        with opened_store(config) as store:
            wanted = {base, escaped(base), name}
            jobs = [job for job in store.jobs() if wanted & {job.job_id, job.name, job.source_file}]
    except EnvironmentFault:
        jobs = []  # folders can be explained without the daemon ever having run
    dropped = Path(config.inbox) / base
    if base and os.path.lexists(dropped):
        findings.append({"place": "inbox", "path": str(dropped), "why": _why_in_inbox(dropped, jobs)})
    if jobs:
        findings.append({"place": "job", **job_document(jobs[0])})
    names = {name, *(job.name for job in jobs)}
    findings += [found for each in sorted(names) for found in _rejected(Path(config.rejected), each)]
    findings += [found for each in sorted(names) for found in _published(Path(config.published), each)]
    return findings


def _why_in_inbox(path: Path, jobs: list[Job]) -> str:
    base = path.name
    if is_waiting(base):
        return "its name says that it is not finished; it waits until it is renamed"
    active = [job for job in jobs if job.state in ("queued", "running", "held")]
    if active:
        return f"its job is {active[0].state}; it leaves the inbox when the outcome is durable"
    if path.is_dir() or model_format(base) is not None:
        return "it was not taken yet: the daemon is not running, or the file is still being written"
    return "it is no model by its name; a sidecar waits for its model"


def _rejected(root: Path, name: str) -> list[dict[str, Any]]:
    folders = [path for path in _folders(root) if path.name.rpartition("@")[0] == name]
    newest = max(folders, key=lambda path: path.lstat().st_mtime_ns, default=None)
    if newest is None:
        return []
    reason = _read_json(newest / REASON_FILE)
    return [{"place": "rejected", "path": str(newest), **reason}]


def _published(root: Path, name: str) -> list[dict[str, Any]]:
    folder = root / name / CURRENT_LINK
    if not name or not folder.is_dir():
        return []
    manifest = _read_json(folder / MANIFEST_FILE)
    return [
        {
            "place": "published",
            "path": str(root / name / str(manifest.get("version", CURRENT_LINK))),
            "version": manifest.get("version"),
            "recipe": tables.label(manifest.get("recipe", [])),
            "reason": manifest.get("verdict", ""),
            "speedup": (manifest.get("result") or {}).get("speedup"),
        }
    ]


def _sentences(finding: Mapping[str, Any]) -> list[str]:
    place = finding["place"]
    if place == "inbox":
        lines = [f"in the inbox: {finding['path']}", f"  {finding['why']}"]
    elif place == "job":
        version = f", version {finding['version']}" if finding["version"] else ""
        lines = [f"job {finding['job_id']}: {finding['state']}{version}"]
        lines += [f"  {finding[key]}" for key in ("message", "hint") if finding[key]]
    elif place == "rejected":
        lines = [f"rejected: {finding['path']}"]
        lines += [f"  {finding[key]}" for key in ("code", "message", "hint") if finding.get(key)]
    else:
        lines = [f"published: {finding['path']}", f"  recipe: {finding['recipe']}"]
        lines.append(f"  speedup: {tables.speedup(finding['speedup'])}")
        lines += [f"  {finding['reason']}"] if finding["reason"] else []
    return [printable(line) for line in lines]


def _folders(root: Path) -> list[Path]:
    try:
        return [path for path in root.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            document = json.loads(stream.read(_JSON_LIMIT_BYTES))
    except (OSError, ValueError):
        return {"message": f"{path} cannot be read"}
    return document if isinstance(document, dict) else {}
