"""What is shown is read back as the very number; no text makes a parser raise anything but ValueError."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.config import units


@given(st.integers(min_value=0, max_value=units.MAX_SECONDS * 1000))
def test_every_duration_of_whole_milliseconds_survives_being_shown(milliseconds: int) -> None:
    assert units.parse_duration(units.show_duration(milliseconds / 1000)) == milliseconds / 1000


@given(st.floats(min_value=0, max_value=1e6).map(lambda value: round(value, 9)))
def test_every_shorter_duration_survives_being_shown(seconds: float) -> None:
    assert units.parse_duration(units.show_duration(seconds)) == seconds


@given(st.integers(min_value=0, max_value=units.MAX_BYTES))
def test_every_size_survives_being_shown(size: int) -> None:
    assert units.parse_size(units.show_size(size)) == size


@given(st.integers(min_value=0, max_value=10_000))
def test_every_share_survives_being_shown(hundredths: int) -> None:
    assert units.parse_percent(units.show_percent(hundredths / 10_000)) == hundredths / 10_000


@given(st.integers(min_value=0o400, max_value=0o777))
def test_every_readable_mode_survives_being_shown(mode: int) -> None:
    assert units.parse_mode(units.show_mode(mode | 0o400)) == mode | 0o400


@given(
    st.sampled_from([units.parse_duration, units.parse_size, units.parse_percent, units.parse_mode]),
    st.text(alphabet=st.sampled_from("0123456789.dhmskKMGTiB% -+eE\u0663\n"), max_size=40),
)
def test_any_text_is_a_number_within_bounds_or_a_value_error(parse: object, text: str) -> None:
    try:
        value = parse(text)  # type: ignore[operator]  # one of the four parsers above
    except ValueError as error:
        assert str(error).split(" ")[0] in {"is", "has", "repeats", "takes", "leaves"}
    else:
        assert 0 <= value <= units.MAX_BYTES


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10m", 600),
        ("1h30m", 5400),
        ("2s", 2),
        ("500ms", 0.5),
        ("1.5h", 5400),
        ("0.1s", 0.1),
        ("90", 90),
        ("1d", 86_400),
    ],
)
def test_durations_read_as_people_write_them(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "m", "10 m", "-1s", "1s1m", "1m1m", "1e9s", "nan", "inf", "10min", "20y", "9999999d"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(is|repeats)"):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 << 20),
        ("4GiB", 4 << 30),
        ("1GB", 10**9),
        ("1.5KiB", 1536),
        ("7", 7),
        ("3 MB", 3_000_000),
        ("0B", 0),
    ],
)
def test_sizes_read_as_people_write_them(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1B", "0.5B", "1.0001KiB", "5XB", "5gib", "9999999TiB", "1e3B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(is|has)"):
        units.parse_size(text)


def test_ambiguous_unit_names_both_meanings() -> None:
    with pytest.raises(ValueError, match="MiB or MB"):
        units.parse_size("512M")


@pytest.mark.parametrize("text", ["0888", "07777", "4644", "12", "0o644", "0044", "rw-r--r--"])
def test_what_is_no_plain_file_mode_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(is|takes)"):
        units.parse_mode(text)
