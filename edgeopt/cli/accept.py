"""``edgeopt accept``: choose on this device among the candidates that another machine prepared, and publish the choice.

The bundle becomes a :class:`~edgeopt.oneshot.Request` like a model's: same staging, sandbox, worker and publisher, no network.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt import oneshot
from edgeopt.cli import optimize, options
from edgeopt.errors import UsageError
from edgeopt.layout import BUNDLE_SUFFIX
from edgeopt.policy import Policy

if TYPE_CHECKING:
    from edgeopt.cli.main import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Arguments of ``accept``."""
    parser = subparsers.add_parser(
        "accept",
        help="choose here among what was prepared elsewhere",
        description="Measure and judge the candidates of a bundle (`edgeopt optimize --prepare`) on this device, and publish the best.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help=f"the bundle, NAME{BUNDLE_SUFFIX}")
    parser.add_argument("--eval", type=Path, metavar="P", help="eval samples to judge by instead of the bundle's own")
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
    if arguments.bundle.suffix != BUNDLE_SUFFIX:
        raise UsageError(
            f"{arguments.bundle} is no bundle by its name: it does not end in {BUNDLE_SUFFIX}",
            hint="Make one with `edgeopt optimize --prepare`, or run `edgeopt optimize` with a model.",
        )
    policy = Policy()
    if arguments.budget is not None:
        policy = replace(policy, search=replace(policy.search, budget_s=arguments.budget))
    request = oneshot.Request(
        model=arguments.bundle,
        eval=arguments.eval,
        policy=policy,
        limits=oneshot.default_limits(),
        out=arguments.out,
    )
    return optimize.publish(request, as_json=arguments.json)
