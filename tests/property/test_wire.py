from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt import wire
from edgeopt.orders import Event, JobOrder, Source, StagedFiles
from edgeopt.policy import Goal, InputHint, Policy, WorkerLimits
from edgeopt.records import Artifact, Interval, Latency, Measurement, Quality, Recipe, Step, Trial

SCALARS = st.text() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
STEPS = st.builds(Step.of, st.text(min_size=1))
RECIPES = st.builds(lambda steps: Recipe(steps=tuple(steps)), st.lists(STEPS, max_size=3))


@given(st.dictionaries(st.text(), SCALARS), RECIPES)
def test_order_survives_the_wire(settings, recipe) -> None:
    step = Step(technique="quantize", settings=tuple(sorted(settings.items())))
    order = JobOrder(
        job_id="1",
        name="n",
        source=Source(file="f", format="onnx", sha256="0", bytes=1),
        files=StagedFiles(model="model.onnx", eval="eval.npz"),
        policy=Policy(goal=Goal(max_drop=0.5), inputs=(("x", InputHint(shape=(1, "H"), range=(0.0, 1.0))),)),
        limits=WorkerLimits(),
        only_recipe=Recipe(steps=(*recipe.steps, step)),
    )
    assert wire.loads(JobOrder, wire.dumps(order)) == order


@given(st.floats(0, 10), RECIPES)
def test_trial_survives_the_wire(number, recipe) -> None:
    quality = Quality(
        kind="agreement",
        metric="nsr",
        value=number,
        drop=number,
        ci95=(0.0, number),
        samples=3,
        details=(("kl", number),),
    )
    measurement = Measurement(
        latency=Latency(p50_ms=number, p90_ms=1.0, p99_ms=2.0),
        speedup=Interval(value=1.0, low=0.5, high=number),
        bytes=1,
        bytes_ratio=number,
        peak_memory_bytes=2,
        memory_ratio=1.0,
        quality=quality,
    )
    artifact = Artifact(
        path="p", format="onnx", sha256="0", bytes=1, runtime="r", runtime_version="1", session=(("a", 2),)
    )
    trial = Trial(recipe=recipe, artifact=artifact, measurement=measurement, seconds=number)
    assert wire.loads(Trial, wire.dumps(trial)) == trial


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"kind": 3}', "Event.kind is 3"),
        ('{"fields": {}}', "lacks"),
        ('{"kind": "x", "extra": 1}', "unknown fields"),
        ('["kind"]', "not an object"),
        ('{"kind": "x", "fields": []}', "not an object"),
    ],
)
def test_what_does_not_fit_is_named(line, complaint) -> None:
    with pytest.raises(ValueError, match=complaint):
        wire.loads(Event, line)


def test_infinity_is_not_sent() -> None:
    with pytest.raises(ValueError, match="JSON"):
        wire.dumps(Event(kind="x", fields={"a": float("inf")}))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_no_rubbish_gets_past_the_decoder(data) -> None:
    try:
        assert isinstance(wire.decode(Event, data), Event)
    except ValueError:
        return
