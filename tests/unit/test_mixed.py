"""Which quantizations are repaired, how many layers stay in float, and what they may become instead."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import builders
import pytest
from builders import FakeEvidence

from edgeopt.passes import QuantizeDynamic, QuantizeStatic, QuantizeWeights
from edgeopt.policy import Goal
from edgeopt.records import Interval, Latency, Measurement, Quality, Recipe, Step, Trial
from edgeopt.stages import ladder, mixed
from edgeopt.stages.sensitivity import Group

STATIC = Step.of("quantize_static", method="min_max")
LATER = 3600.0


def _trial(*steps: Step, speedup: float, bound: float) -> Trial:
    measurement = Measurement(
        latency=Latency(p50_ms=1.0, p90_ms=1.0, p99_ms=1.0),
        speedup=Interval(value=speedup, low=speedup * 0.98, high=speedup * 1.02),
        bytes=100,
        bytes_ratio=speedup,
        peak_memory_bytes=100,
        memory_ratio=1.0,
        quality=Quality(kind="agreement", metric="nsr", value=bound, drop=bound, ci95=(0.0, bound), samples=10),
    )
    return Trial(recipe=Recipe(steps=steps), measurement=measurement)


def _bases(*trials: Trial) -> tuple[list[Trial], list[Any]]:
    events: list[Any] = []
    bench = SimpleNamespace(goal=Goal(), emit=events.append)
    return mixed.bases(trials, bench), events  # type: ignore[arg-type]  # it asks for the goal and tells a note


def test_quantization_that_is_wrong_and_fast_is_repaired_and_one_that_is_slow_is_not() -> None:
    wrong = _trial(Step.of("tidy"), STATIC, speedup=1.7, bound=0.03)
    slow = _trial(Step.of("tidy"), Step.of("quantize_dynamic"), speedup=1.0, bound=0.02)
    assert _bases(wrong, slow) == ([wrong], [])


def test_nothing_is_repaired_that_could_not_beat_what_is_right_already() -> None:
    wrong = _trial(Step.of("tidy"), STATIC, speedup=1.7, bound=0.03)
    right = _trial(Step.of("tidy"), Step.of("migrate_outliers"), STATIC, speedup=1.69, bound=0.004)
    found, events = _bases(wrong, right)
    assert found == []
    assert "1.69" in events[0].fields["text"]
    faster = _trial(Step.of("tidy"), STATIC, speedup=2.0, bound=0.03)
    assert _bases(faster, right)[0] == [faster]


class Rehearsed:
    """Right once ``needed`` layers stay in float."""

    def __init__(self, needed: int) -> None:
        self.needed, self.asked = needed, []

    def quality(self, recipe: Recipe) -> Any:
        kept = len(json.loads(str(dict(recipe.steps[-1].settings)["skip"])))
        self.asked.append(kept)
        return SimpleNamespace(ci95=(0.0, 0.0 if kept >= self.needed else 0.5))


def _repair(needed: int, damages: list[float]) -> mixed.Repair:
    groups = tuple(Group(layers=(f"l{number}",), damage=damage, share=0.1) for number, damage in enumerate(damages))
    return mixed.Repair(
        bench=SimpleNamespace(goal=Goal()),  # type: ignore[arg-type]
        prefix=(Step.of("tidy"),),
        step=STATIC,
        groups=groups,
        rehearsal=Rehearsed(needed),  # type: ignore[arg-type]
        model=builders.mlp(),
    )


@pytest.mark.parametrize("needed", [1, 2, 7, 20, 38])
@pytest.mark.parametrize("foreseen", [1, 12, 39])
def test_bisection_finds_the_fewest_wherever_the_damages_say_it_should_begin(needed: int, foreseen: int) -> None:
    damages = [0.1] * foreseen + [0.0] * (40 - foreseen)
    repair = _repair(needed, damages)
    assert mixed._fewest(repair, list(repair.groups), time.monotonic() + LATER) == needed
    assert len(repair.rehearsal.asked) <= 12  # type: ignore[attr-defined]


def test_damages_that_add_up_to_the_truth_take_few_rehearsals() -> None:
    repair = _repair(5, [0.1] * 5 + [0.0001] * 35)
    assert mixed._fewest(repair, list(repair.groups), time.monotonic() + LATER) == 5
    assert repair.rehearsal.asked[0] == 5  # type: ignore[attr-defined]
    assert len(repair.rehearsal.asked) <= 4  # type: ignore[attr-defined]


def test_nothing_is_found_where_even_all_but_one_layer_in_float_are_wrong() -> None:
    repair = _repair(41, [0.1] * 40)
    assert mixed._fewest(repair, list(repair.groups), time.monotonic() + LATER) is None


class Profiled:
    """A runtime that opens nothing and whose profile knows MatMulNBits as fast and 16-bit codes as slow."""

    def compile(self, model: Path, recipe: Recipe, target: Any) -> Any:
        return SimpleNamespace(path=str(model))

    def node_seconds(self, model: Path, feeds: Any, *, threads: int) -> dict[str, float]:
        import onnx

        operators = [node.op_type for node in onnx.load(model).graph.node]
        costs = {"MatMulNBits": 0.4, "MatMul": 1.0, "Gemm": 1.0}
        return {str(number): costs.get(operator, 0.1) for number, operator in enumerate(operators)}


def _request(folder: Path, step: Step, *, features: tuple[str, ...] = ("avx2",)) -> tuple[ladder.Request, Recipe]:
    model = builders.bert_block()
    passes = {each.name: each for each in (QuantizeStatic(), QuantizeDynamic(), QuantizeWeights())}
    bench = SimpleNamespace(
        model=model,
        made={},
        passes=passes,
        evidence=FakeEvidence(model),
        runtime=Profiled(),
        target=replace(builders.TARGET, features=features),
        timed={},
        folder=folder,
        goal=Goal(),
    )
    first, second, *_ = passes[step.technique].layers(model)
    request = ladder.Request(model=model, step=step, floats=(first,), middle=(second,), bench=bench)  # type: ignore[arg-type]
    plain = Recipe(steps=(Step.of(step.technique, **dict(step.settings), skip=json.dumps([first, second])),))
    return request, plain


def test_layers_that_stay_float_are_offered_packed_weights_which_are_measured(tmp_path) -> None:
    request, plain = _request(tmp_path, Step.of("quantize_dynamic", per_channel=True))
    _, packed, wide = ladder.rungs()
    offer = ladder.offer(packed, request, (), plain)
    assert offer is not None
    assert offer.pays
    assert offer.seconds == pytest.approx(offer.float_seconds - 0.6)
    assert [step.technique for step in offer.recipe.steps] == ["quantize_weights", "quantize_dynamic"]
    assert ladder.offer(wide, request, (), plain) is None


def test_a_rung_that_is_slower_than_float_says_by_how_much(tmp_path) -> None:
    request, plain = _request(tmp_path, STATIC)
    offer = ladder.offer(ladder.rungs()[2], request, (), plain)
    assert offer is not None
    assert not offer.pays
    assert "16-bit activations takes" in offer.reason
    assert "ms with these layers in float" in offer.reason


def test_layers_are_offered_unsigned_weights_where_signed_ones_saturate(tmp_path) -> None:
    request, plain = _request(tmp_path, Step.of("quantize_dynamic", per_channel=True, reduced_range=True))
    unsigned = ladder.rungs()[0]
    offer = ladder.offer(unsigned, request, (), plain)
    assert offer is not None
    last = dict(offer.recipe.steps[-1].settings)
    assert json.loads(str(last["unsigned"])) == list(request.middle)
    assert json.loads(str(last["skip"])) == list(request.floats)
    exact, plain = _request(tmp_path, STATIC, features=("avx2", "avx512_vnni"))
    assert ladder.offer(unsigned, exact, (), plain) is None


def test_layers_that_stay_float_are_not_rounded_to_the_grid_either() -> None:
    repair = replace(_repair(1, [0.1, 0.2]), prefix=(Step.of("tidy"), Step.of("round_weights", reduced_range=True)))
    tidy, rounding, quantization = repair.recipe(repair.groups[1:]).steps
    assert tidy == Step.of("tidy")
    assert dict(rounding.settings) == {"reduced_range": True, "skip": '["l1"]'}
    assert dict(quantization.settings)["skip"] == '["l1"]'
    assert repair.recipe(()).steps[1] == Step.of("round_weights", reduced_range=True)
