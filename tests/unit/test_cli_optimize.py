from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from edgeopt.cli import optimize
from edgeopt.cli.main import build_parser
from edgeopt.errors import ConfigError, UsageError
from edgeopt.records import Step


def parsed(*words: str) -> argparse.Namespace:
    parser, _ = build_parser("optimize")
    return parser.parse_args(["optimize", "m.onnx", *words])


def test_options_win_over_the_job_file_and_the_job_file_over_the_defaults(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("goal: {objective: size, max_drop: 0.05}\nsearch: {seed: 7}\n")
    policy = optimize.policy_of(parsed("--job", str(job), "--max-drop", "0.002", "--budget", "1m30s"))
    assert (policy.goal.objective, policy.goal.max_drop) == ("size", 0.002)
    assert (policy.search.seed, policy.search.budget_s) == (7, 90.0)


def test_mistakes_of_a_job_file_are_wrong_usage_and_all_named(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("goal: {max_dorp: 0.1}\nsearhc: {}\n")
    with pytest.raises(ConfigError) as caught:
        optimize.policy_of(parsed("--job", str(job)))
    assert len(caught.value.mistakes) == 2


@pytest.mark.parametrize("words", [("--max-drop", "2"), ("--trials", "0"), ("--budget", "soon"), ("--budget", "0s")])
def test_numbers_out_of_range_are_wrong_usage(words: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=words[0]):
        parsed(*words)


def test_recipe_is_read_from_json_and_from_a_manifest(tmp_path: Path) -> None:
    steps = [{"technique": "tidy"}, {"technique": "quantize_static", "method": "mse", "per_channel": True}]
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"schema": 1, "recipe": steps}))
    expected = (Step.of("tidy"), Step.of("quantize_static", method="mse", per_channel=True))
    assert optimize.read_recipe(json.dumps(steps)).steps == expected
    assert optimize.read_recipe(str(manifest)).steps == expected


@pytest.mark.parametrize("text", ["[", '{"no": 1}', '[{"method": "mse"}]', "[1]", "nowhere.json"])
def test_what_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        optimize.read_recipe(text)
