"""``edgeopt optimize``: one model in the foreground, with a progress bar and the table of candidates at the end.

Arguments become a :class:`~edgeopt.oneshot.Request`: the defaults, under the job file, under what the command line says.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from edgeopt import oneshot
from edgeopt.cli import options, progress, tables
from edgeopt.daemon.printable import printable
from edgeopt.errors import ConfigError, UsageError
from edgeopt.layout import BUNDLE_SUFFIX
from edgeopt.policy import Policy
from edgeopt.records import Recipe, Scalar, Step

if TYPE_CHECKING:
    from edgeopt.cli.main import Subparsers

_TEXT_LIMIT_BYTES = 1 << 20


def add_parser(subparsers: Subparsers) -> None:
    """Arguments of ``optimize``."""
    parser = subparsers.add_parser(
        "optimize",
        help="optimize one model in the foreground",
        description="Turn one model into the fastest version this device can run that is still right, as the daemon would.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="the model file")
    parser.add_argument("--calibration", type=Path, metavar="P", help="calibration samples: an .npz file or a folder")
    parser.add_argument("--eval", type=Path, metavar="P", help="eval samples, with labels where there are any")
    parser.add_argument("--job", type=Path, metavar="FILE", help="a job.yaml; the options below win over it")
    parser.add_argument("--target", choices=oneshot.TARGETS, help="what to optimize for (default: auto)")
    parser.add_argument("--objective", choices=("latency", "size", "memory"), help="what to gain (default: latency)")
    parser.add_argument("--max-drop", type=_ratio, metavar="X", help="largest quality drop at its 95 %% bound, 0 to 1")
    parser.add_argument("--budget", type=duration, metavar="TIME", help="time for the search, such as 10m")
    parser.add_argument("--trials", type=_positive, metavar="N", help="candidates to try (default: auto)")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the search (default: 0)")
    parser.add_argument("--recipe", metavar="FILE|JSON", help="replay this recipe: a manifest, or its recipe as JSON")
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="write NAME.edgeopt, for `edgeopt accept` on another device, instead of choosing here",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where NAME/VERSION/ goes (default: published), or with --prepare NAME.edgeopt (default: prepared)",
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Optimize, print the outcome; 1 where the model or its data is refused."""
    if arguments.model.suffix == BUNDLE_SUFFIX:
        raise UsageError(f"{arguments.model} is a prepared bundle", hint="Run `edgeopt accept` with it.")
    policy = policy_of(arguments)
    request = oneshot.Request(
        model=arguments.model,
        calibration=arguments.calibration,
        eval=arguments.eval,
        # the job file names a file beside itself
        teacher=arguments.job.parent / policy.teacher if policy.teacher is not None else None,
        policy=policy,
        limits=oneshot.default_limits(),
        recipe=read_recipe(arguments.recipe) if arguments.recipe else None,
        out=arguments.out or Path("prepared" if arguments.prepare else "published"),
    )
    if arguments.prepare:
        return _prepare(request, as_json=arguments.json)
    return publish(request, as_json=arguments.json)


def publish(request: oneshot.Request, *, as_json: bool) -> int:
    """Run the request to its published version and print that."""
    with terminated_as_interrupted(), progress.shown(sys.stderr, name=request.model.name) as observe:
        result = oneshot.run(request, on_event=observe)
    if as_json:
        options.print_json(
            {
                "folder": str(result.folder),
                "fresh": result.fresh,
                "reason": result.reason,
                "manifest": result.manifest,
            }
        )
    else:
        if not result.fresh:
            print(f"the same outcome was published already, as version {result.version}", file=sys.stderr)
        print_result(result.manifest, folder=result.folder, reason=result.reason)
    return 0


def _prepare(request: oneshot.Request, *, as_json: bool) -> int:
    with terminated_as_interrupted(), progress.shown(sys.stderr, name=request.model.name) as observe:
        made = oneshot.prepare(request, on_event=observe)
    if as_json:
        found = {"file": str(made.file), "sha256": made.sha256, "bytes": made.bytes, "reason": made.reason}
        options.print_json(found | {"bundle": made.document})
        return 0
    tables.draw(tables.BUNDLE_COLUMNS, tables.bundle_rows(made.document), to=sys.stdout)
    print()
    print(f"reason  {printable(made.reason)}")
    print(f"bundle  {made.file} ({tables.size(made.bytes)}), not timed for any other device")
    print(f"next    copy it there and run `edgeopt accept {made.file.name}`, or drop it into that device's inbox")
    return 0


def print_result(manifest: dict[str, Any], *, folder: Path, reason: str) -> None:
    """The table of candidates, the winner, why, and where it lies."""
    tables.draw(tables.CANDIDATE_COLUMNS, tables.candidate_rows(manifest), to=sys.stdout)
    print()
    print(f"winner  {tables.label(manifest.get('recipe', []))}")
    if speedup := (manifest.get("result") or {}).get("speedup"):
        print(f"        {tables.speedup(speedup)} times as fast as the original")
    if manifest.get("status") == "unverified":
        print("        unverified: made for a device that is not here, its latency is not known")
    for number, line in enumerate(tables.engine_lines((manifest.get("artifact") or {}).get("engine"))):
        print(f"{'' if number else 'engine':<8}{line}")
    if reason:
        print(f"reason  {printable(reason)}")
    print(f"folder  {folder}")


def policy_of(arguments: argparse.Namespace) -> Policy:
    """The defaults, the job file over them, the options over both."""
    policy = Policy()
    if arguments.job is not None:
        from edgeopt.config import reader

        policy = reader.overlay_job(policy, _read_text(arguments.job), name=str(arguments.job))
    goal = _given(objective=arguments.objective, max_drop=arguments.max_drop)
    search = _given(budget_s=arguments.budget, trials=arguments.trials, seed=arguments.seed)
    target = _given(name=arguments.target)
    return replace(
        policy,
        goal=replace(policy.goal, **goal),
        search=replace(policy.search, **search),
        target=replace(policy.target, **target),
    )


def read_recipe(text: str) -> Recipe:
    """A recipe out of JSON or of a file: a manifest, or the list of steps that a manifest calls ``recipe``."""
    if not text.lstrip().startswith(("[", "{")):
        text = _read_text(Path(text))
    try:
        document = json.loads(text)
        steps = document["recipe"] if isinstance(document, dict) else document
        return Recipe(steps=tuple(_step(dict(step)) for step in steps))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"the recipe cannot be read: {error!r:.200}",
            hint='Give a manifest.json, or JSON such as [{"technique": "tidy"}].',
        ) from error


def _step(fields: dict[str, Scalar]) -> Step:
    return Step.of(str(fields.pop("technique")), **fields)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(_TEXT_LIMIT_BYTES).decode()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="Name a readable file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", hint="Save the file as UTF-8.") from error


def _given(**wishes: Any) -> dict[str, Any]:
    return {name: wish for name, wish in wishes.items() if wish is not None}


def _ratio(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not within 0 and 1")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def duration(text: str) -> float:
    """Seconds out of ``10m``, for argparse."""
    from edgeopt.config import units

    try:
        seconds = units.parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text} is no time to work in")
    return seconds


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C while the block runs, so that nothing half-made stays behind."""

    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
