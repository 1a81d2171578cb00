"""Engines for a device that is not here: what stands in for latency, and what the manifest says. A builder that only copies stands in."""

from __future__ import annotations

import dataclasses

import pytest

from edgeopt.policy import Goal
from edgeopt.records import Artifact, EngineFacts, Interval, Latency, Measurement, Quality, Recipe, Step, Trial
from edgeopt.stages import ahead, select

QUALITY = Quality(kind="agreement", metric="expected_drop", value=1.0, drop=0.0, ci95=(0.0, 0.001), samples=64)


def engine(*, size: int, traffic: int | None, weights: int = 0, activation: int = 0) -> Artifact:
    facts = EngineFacts(
        key="k", gpus=("SM86",), build_s=1.0, weights_bytes=weights, activation_bytes=activation, traffic_bytes=traffic
    )
    return Artifact(
        path="/x/model.engine",
        format="tensorrt-engine",
        sha256="0" * 64,
        bytes=size,
        runtime="tensorrt-rtx",
        runtime_version="1",
        session=(),
        engine=facts,
    )


ORIGINAL = engine(size=1000, traffic=800, weights=300, activation=100)


def test_bytes_moved_stand_in_for_the_speedup_and_nothing_claims_to_be_measured() -> None:
    found = ahead._unmeasured(engine(size=500, traffic=200, weights=100, activation=100), QUALITY, ORIGINAL)
    assert not found.measured
    assert found.speedup == Interval(value=4.0, low=4.0, high=4.0)
    assert (found.bytes_ratio, found.memory_ratio) == (2.0, 2.0)


def test_without_a_layer_table_weights_and_activations_stand_in() -> None:
    plain = engine(size=1000, traffic=None, weights=300, activation=100)
    found = ahead._unmeasured(engine(size=500, traffic=None, weights=100, activation=100), QUALITY, plain)
    assert found.speedup.value == 2.0


def trial(gain: float, *, drop: float = 0.001) -> Trial:
    measurement = Measurement(
        latency=Latency(p50_ms=0, p90_ms=0, p99_ms=0),
        speedup=Interval(value=gain, low=gain, high=gain),
        bytes=500,
        bytes_ratio=2.0,
        peak_memory_bytes=1,
        memory_ratio=1.0,
        quality=dataclasses.replace(QUALITY, ci95=(0.0, drop)),
        measured=False,
    )
    recipe = Recipe(steps=(Step.of("tidy"), Step.of("cast_fp16", mode=f"{gain}")))
    return Trial(recipe=recipe, artifact=ORIGINAL, measurement=measurement)


def test_verdict_over_engines_never_speaks_of_speed() -> None:
    verdict = select.choose(
        [trial(1.5), trial(2.0, drop=0.5), trial(1.01)],
        trial(1.0),
        Goal(),
        harmless=(),
        confirm=lambda each: each,
    )
    assert verdict.winner.recipe == trial(1.5).recipe
    assert "1.50 times fewer bytes moved by one inference, not timed" in verdict.reason
    said = [verdict.reason, *(each.refused or "" for each in verdict.trials)]
    assert not any("faster" in sentence or sentence.startswith("speedup") for sentence in said)


@pytest.mark.parametrize("gain", [1.0, 1.01])
def test_too_small_a_gain_is_refused_with_what_it_is_a_gain_of(gain: float) -> None:
    reason = select.shortcoming(trial(gain).measurement or pytest.fail("no measurement"), Goal())
    assert reason is not None
    assert "bytes moved by one inference" in reason
