"""What the configuration takes as a technique's setting, held against what the technique itself takes: never one without the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.calibrate.removal import PruneScheme
from edgeopt.calibrate.scheme import read_names, read_settings
from edgeopt.calibrate.sparse_scheme import SparseScheme
from edgeopt.config import reader, settings
from edgeopt.config.fields import Kind
from edgeopt.errors import ConfigError, PassFailed
from edgeopt.policy import Policy, Techniques
from edgeopt.records import Step
from edgeopt.stages import asked
from edgeopt.training import course


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique:
    key: str
    known: Mapping[str, Kind]
    scheme: type

    def wish(self, name: str, value: object) -> Any:
        pattern = {"pattern": "unstructured"} if self.scheme is SparseScheme else {}
        return {**pattern, name: value}


TECHNIQUES = {
    "prune_channels": Technique(key="prune", known=settings.PRUNE_CHANNELS, scheme=PruneScheme),
    "prune_weights": Technique(key="prune", known=settings.PRUNE_WEIGHTS, scheme=SparseScheme),
    "distill": Technique(key="distill", known=settings.DISTILL, scheme=course.Course),
}
_MEANT = {
    "criterion": "obs",
    "scope": "global",
    "direction": "high",
    "families": "inner",
    "method": "magnitude",
    "form": "dense",
    "pattern": "2:4",
    "schedule": "linear",
    "optimizer": "sgd",
    "loss": "kl",
    "inputs": "mixed",
    "precision": "bfloat16",
    "fake_quantize": "int8",
}
_WORDS = sorted({"auto", "off", "l1", "entropy", "masked", "nonsense", "4:2", "1:16", "8:17", "1:2x", *_MEANT.values()})
_values = st.one_of(
    st.sampled_from(_WORDS),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([-1.0, -0.0, 0.0, 0.5, 0.999, 1.0, 1.5, 1e6]),
    st.lists(st.sampled_from(["conv1.weight", "7"]), max_size=2),
    st.dictionaries(st.sampled_from(["conv1.weight", "7"]), st.integers(-1, 9), max_size=2),
    st.sampled_from(['["conv1.weight"]', '{"conv1.weight": 8}', "[1]", '{"a": -1}', "[" * 2000, '{"a": true}']),
)


def _configured(techniques: object) -> Techniques:
    text = yaml.safe_dump({"techniques": techniques}, width=10**6)
    return reader.overlay_job(Policy(), text).techniques


def _asked(techniques: Techniques) -> Step:
    """The step of the first recipe that comes of the wish."""
    return next(iter(asked.recipes(techniques, Step.of("quantize_static"))))[0]


def _checked(name: str, step: Step) -> Any:
    """What the technique makes of the settings of a step; raises ``PassFailed``."""
    given = dict(step.settings)
    if name == "distill":
        return course.read(given, technique=name)
    scheme: Any = read_settings(TECHNIQUES[name].scheme, given, technique=name)
    scheme.check()
    if name == "prune_channels":
        scheme.counts()
    else:
        read_names(scheme.skip)
    return scheme


@pytest.mark.parametrize("name", TECHNIQUES)
def test_configuration_knows_every_setting_of_a_technique_and_no_other(name: str) -> None:
    technique = TECHNIQUES[name]
    assert set(technique.known) == {field.name for field in fields(technique.scheme)}


@pytest.mark.parametrize("name", TECHNIQUES)
@given(data=st.data(), value=_values)
def test_configuration_takes_what_the_technique_takes_and_nothing_else(
    name: str, data: st.DataObject, value: object
) -> None:
    technique = TECHNIQUES[name]
    setting = data.draw(st.sampled_from(sorted(technique.known)))
    wish = technique.wish(setting, value)
    if setting == "seed" and isinstance(value, int) and value < 0:
        return  # fails only where the numbers are drawn

    try:
        read = _configured({technique.key: wish})
    except ConfigError as error:
        assert any(f"techniques.{technique.key}.{setting} is" in mistake for mistake in error.mistakes)
        with pytest.raises(PassFailed):
            _checked(name, _asked(Techniques(**{technique.key: wish})))
    else:
        step = _asked(read)
        assert step.technique == name
        as_scheme = getattr(_checked(name, step), setting)
        if isinstance(value, list | dict):
            assert json.loads(as_scheme) == value
        elif value != "auto":
            assert as_scheme == value


@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_word_of_a_choice_is_a_word_of_the_technique(name: str) -> None:
    technique = TECHNIQUES[name]
    for setting in set(technique.known) & set(_MEANT):
        with pytest.raises(ConfigError) as caught:
            _configured({technique.key: technique.wish(setting, "[nonsense]")})
        told = caught.value.mistakes[0]
        with pytest.raises(PassFailed) as refused:
            _checked(name, Step.of(name, **{setting: "[nonsense]"}))
        if setting != "pattern":
            listed = told.partition("not one of ")[2].split(", ")
            assert sorted(listed) == sorted(refused.value.hint.removeprefix("Use one of ").rstrip(".").split(", "))
        assert _configured({technique.key: technique.wish(setting, _MEANT[setting])})


def test_pattern_and_a_global_ranking_clash_for_both() -> None:
    wish = {"pattern": "2:4", "scope": "global"}
    with pytest.raises(ConfigError, match="a mistake") as caught:
        _configured({"prune": wish})
    assert "removes the same share everywhere" in caught.value.mistakes[0]
    with pytest.raises(PassFailed, match="removes the same share everywhere"):
        _checked("prune_weights", Step.of("prune_weights", **wish))
    assert _configured({"prune": {**wish, "pattern": "unstructured"}})
