"""When no job may start, decided on what was seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.config.schema import Neighbour
from edgeopt.daemon.neighbour import Surroundings, in_window, parse_window, pause_reason
from edgeopt.errors import ConfigError

NOON = Surroundings(minute_of_day=12 * 60)


@pytest.mark.parametrize(
    ("window", "minute", "inside"),
    [
        ("01:00-05:00", 60, True),
        ("01:00-05:00", 299, True),
        ("01:00-05:00", 300, False),
        ("22:00-06:00", 23 * 60, True),
        ("22:00-06:00", 0, True),
        ("22:00-06:00", 12 * 60, False),
        ("00:00-00:00", 777, True),
    ],
)
def test_window_holds_its_minutes_also_over_midnight(window: str, minute: int, inside: bool) -> None:
    assert in_window(parse_window(window), minute) is inside


@pytest.mark.parametrize("text", ["", "1-5", "25:00-01:00", "01:00", "01:60-02:00", "01:00-02:00-03:00"])
def test_window_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"neighbour\.window"):
        parse_window(text)


@given(first=st.integers(0, 1439), last=st.integers(0, 1439), minute=st.integers(0, 1439))
def test_window_and_the_rest_of_the_day_share_no_minute(first: int, last: int, minute: int) -> None:
    if first != last:
        assert in_window((first, last), minute) is not in_window((last, first), minute)


def test_nothing_configured_pauses_nothing() -> None:
    seen = Surroundings(minute_of_day=0, temperature_c=200.0, load=99.0)
    assert pause_reason(Neighbour(), seen) is None


def test_each_limit_has_its_reason() -> None:
    assert pause_reason(Neighbour(window="01:00-02:00"), NOON) == "window"
    assert pause_reason(Neighbour(max_load=1.0), Surroundings(minute_of_day=0, load=1.5)) == "load"
    assert (
        pause_reason(Neighbour(max_temperature_c=80.0), Surroundings(minute_of_day=0, temperature_c=81.0))
        == "temperature"
    )
    assert (
        pause_reason(Neighbour(pause_file="/x"), Surroundings(minute_of_day=0, pause_file_exists=True)) == "pause_file"
    )


def test_what_is_not_known_pauses_nothing() -> None:
    assert pause_reason(Neighbour(max_temperature_c=80.0, max_load=1.0), NOON) is None


def test_hot_device_has_to_cool_down_some_degrees_before_it_goes_on() -> None:
    settings = Neighbour(max_temperature_c=80.0)
    warm = Surroundings(minute_of_day=0, temperature_c=78.0)
    assert pause_reason(settings, warm) is None
    assert pause_reason(settings, warm, paused="temperature") == "temperature"
    cool = Surroundings(minute_of_day=0, temperature_c=74.0)
    assert pause_reason(settings, cool, paused="temperature") is None
