"""``edgeopt accept``: choose on this device among the candidates that another machine prepared, and publish the choice.

The bundle becomes a :class:`~edgeopt.oneshot.Request` like a model's: same staging, sandbox, worker and publisher, no network. A version
that was published as unverified becomes a bundle of one candidate first (``stages.rebundling``).
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt import oneshot
from edgeopt.cli import optimize, options
from edgeopt.errors import UsageError
from edgeopt.layout import BUNDLE_SUFFIX, CURRENT_LINK, MANIFEST_FILE
from edgeopt.policy import Policy

if TYPE_CHECKING:
    from edgeopt.cli.main import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Arguments of ``accept``."""
    parser = subparsers.add_parser(
        "accept",
        help="choose here among what was prepared elsewhere",
        description="Measure and judge the candidates of a bundle (`edgeopt optimize --prepare`), or a version that was published as unverified, on this device, and publish the best.",
    )
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help=f"the bundle, NAME{BUNDLE_SUFFIX}, or the folder of a version"
    )
    parser.add_argument("--eval", type=Path, metavar="P", help="eval samples to judge by instead of the bundle's own")
    parser.add_argument("--original", type=Path, metavar="MODEL", help="of a version: the model file it was made of")
    parser.add_argument("--budget", type=optimize.duration, metavar="TIME", help="time to measure, such as 10m")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("published"),
        metavar="DIR",
        help="where NAME/VERSION/ goes (default: published)",
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Accept and print the outcome; 1 where the bundle is refused."""
    if (folder := _version_folder(arguments.bundle)) is not None:
        from edgeopt.published import read_version
        from edgeopt.stages import rebundling

        with tempfile.TemporaryDirectory(prefix="edgeopt-version-") as scratch:
            made = rebundling.write(
                read_version(folder), original=arguments.original, samples=arguments.eval, out=Path(scratch)
            )
            return _accept(made, arguments)
    if arguments.bundle.suffix != BUNDLE_SUFFIX:
        raise UsageError(
            f"{arguments.bundle} is neither a version's folder nor a bundle by its name: it does not end in {BUNDLE_SUFFIX}",
            hint="Make one with `edgeopt optimize --prepare`, or run `edgeopt optimize` with a model.",
        )
    if arguments.original is not None:
        raise UsageError("a bundle holds its original", hint="Leave --original out.")
    return _accept(arguments.bundle, arguments)


def _version_folder(path: Path) -> Path | None:
    """The version that a folder is, or that a model's folder serves; None where it is neither."""
    return next((each for each in (path, path / CURRENT_LINK) if (each / MANIFEST_FILE).is_file()), None)


def _accept(bundle: Path, arguments: argparse.Namespace) -> int:
    policy = Policy()
    if arguments.budget is not None:
        policy = replace(policy, search=replace(policy.search, budget_s=arguments.budget))
    request = oneshot.Request(
        model=bundle,
        eval=arguments.eval,
        policy=policy,
        limits=oneshot.default_limits(),
        out=arguments.out,
    )
    return optimize.publish(request, as_json=arguments.json)
