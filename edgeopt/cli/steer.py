"""``edgeopt retry``, ``cancel``, ``pin``, ``rollback`` and ``gc``: the commands that change something.

Jobs belong to the daemon, so ``retry`` and ``cancel`` leave a wish in its database; versions are folders, so ``pin``,
``rollback`` and ``gc`` act on them at once, with the same functions and locks that the daemon uses.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.cli import options, tables
from edgeopt.cli.state import find_job, opened_store, owner_pid
from edgeopt.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from edgeopt.cli.main import Subparsers
    from edgeopt.config.schema import Config

_RETRIABLE = ("failed", "rejected", "cancelled", "held")
_CANCELLABLE = ("queued", "running", "held")


@dataclass(frozen=True, slots=True)
class Waste:
    """Something that nothing needs any more."""

    path: Path
    what: str


def add_parser(subparsers: Subparsers) -> None:
    """Arguments of the commands that change something."""
    retry = subparsers.add_parser(
        "retry",
        help="put a failed, held or rejected job back into the queue",
        description="Ask the daemon to take a failed, held, cancelled or rejected job up again.",
    )
    cancel = subparsers.add_parser("cancel", help="stop a job", description="Ask the daemon to stop a job.")
    for parser in (retry, cancel):
        parser.add_argument("job", metavar="JOB|NAME", help="a job's id, the beginning of one, or a model's newest job")
    pin = subparsers.add_parser(
        "pin",
        help="keep a version from being replaced or removed",
        description="Hold `current` at a version, whatever is published later.",
    )
    pin.add_argument("--off", action="store_true", help="let `current` follow the newest version again")
    rollback = subparsers.add_parser(
        "rollback",
        help="make an earlier version the current one",
        description="Let `current` point to VERSION, or to the one before the current one.",
    )
    for parser in (pin, rollback):
        parser.add_argument("name", metavar="NAME", help="a published model")
        parser.add_argument("version", nargs="?", type=int, metavar="VERSION", help="a version of it")
    gc = subparsers.add_parser(
        "gc",
        help="remove what nothing needs any more",
        description="Remove versions beyond publish.keep and, while no daemon runs, leftovers of jobs and cached candidates.",
    )
    gc.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    for parser in (retry, cancel, pin, rollback, gc):
        options.add_config(parser)
        options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it, and say in one line what was done."""
    config = options.load_config(arguments.config)
    act = {"retry": _ask, "cancel": _ask, "pin": _pin, "rollback": _rollback, "gc": _gc}[arguments.command]
    line, document = act(arguments, config)
    if arguments.json:
        options.print_json(document)
    else:
        print(line)
    return 0


def _ask(arguments: argparse.Namespace, config: Config) -> tuple[str, dict[str, object]]:
    wish = arguments.command
    fitting = _RETRIABLE if wish == "retry" else _CANCELLABLE
    with opened_store(config) as store:
        job = find_job(store, arguments.job)
        if job.state not in fitting:
            raise UsageError(
                f"job {job.job_id} is {job.state}; only {', '.join(fitting)} jobs can be "
                f"{'retried' if wish == 'retry' else 'cancelled'}",
                hint="Run `edgeopt jobs` to see what is where.",
            )
        store.ask(job.job_id, wish)
    running = owner_pid(Path(config.state)) is not None
    when = "the daemon was asked" if running else "the daemon does it when it starts again"
    return f"{wish} of job {job.job_id} ({job.name}): {when}", {"job": job.job_id, "asked": wish, "daemon": running}


def _pin(arguments: argparse.Namespace, config: Config) -> tuple[str, dict[str, object]]:
    from edgeopt.daemon import shelf

    root, name = Path(config.published), arguments.name
    if arguments.off and arguments.version is not None:
        raise UsageError("--off takes no VERSION", hint="Leave one of them out.")
    version = shelf.unpin(root, name) if arguments.off else shelf.pin(root, name, arguments.version)
    _note_current(config, name, version, pinned=0 if arguments.off else version)
    line = f"{name} follows the newest version, {version} now" if arguments.off else f"{name} is pinned at {version}"
    return line, {"name": name, "version": version, "pinned": not arguments.off}


def _rollback(arguments: argparse.Namespace, config: Config) -> tuple[str, dict[str, object]]:
    from edgeopt.daemon import shelf

    root, name = Path(config.published), arguments.name
    version = shelf.rollback(root, name, arguments.version)
    _note_current(config, name, version, pinned=shelf.read(root, name).pinned)
    return f"{name} is at version {version}", {"name": name, "version": version}


def _note_current(config: Config, name: str, version: int, *, pinned: int) -> None:
    """Tell the database, too; the folders are the truth, so its absence is no failure."""
    with suppress(EnvironmentFault), opened_store(config) as store:
        store.set_current(name, version, pinned=pinned)


def _gc(arguments: argparse.Namespace, config: Config) -> tuple[str, dict[str, object]]:
    from edgeopt.daemon import shelf, storage

    leftovers = _leftovers(config)
    found = [*_old_versions(config), *leftovers]
    freed = sum(_bytes_under(waste.path) for waste in found)
    if not arguments.dry_run:
        for each in shelf.read_all(Path(config.published)):
            with shelf.locked(each.folder):
                shelf.retain(shelf.read(Path(config.published), each.name), keep=config.publish.keep)
        for waste in leftovers:
            storage.remove_tree(waste.path)
    verb = "would free" if arguments.dry_run else "freed"
    lines = [f"{waste.what}: {waste.path}" for waste in found]
    document = {"removed": [str(waste.path) for waste in found], "bytes": freed, "dry_run": arguments.dry_run}
    return "\n".join([*lines, f"{verb} {tables.size(freed)} in {len(found)} folders"]), document


def _old_versions(config: Config) -> list[Waste]:
    from edgeopt.daemon import shelf

    waste = []
    for each in shelf.read_all(Path(config.published)):
        old = shelf.surplus(each, keep=config.publish.keep)
        waste += [Waste(each.folder / str(number), "old version") for number in old]
    return waste


def _leftovers(config: Config) -> list[Waste]:
    """Staging and cache folders without an unfinished job. A running daemon owns both, so then there are none."""
    state = Path(config.state)
    if owner_pid(state) is not None:
        return []
    from edgeopt.daemon.jobs import ACTIVE

    with suppress(EnvironmentFault), opened_store(config) as store:
        active = store.jobs(states=ACTIVE)
        staged = {job.job_id for job in active}
        cached = {job.source_sha256[:32] for job in active}
        return [
            *(Waste(path, "leftover of a job") for path in _folders(state / "staging") if path.name not in staged),
            *(Waste(path, "cached candidates") for path in _folders(state / "cache") if path.name not in cached),
        ]
    return []


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _bytes_under(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
