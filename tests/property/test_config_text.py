"""Whatever the text, the reader ends quickly with a configuration or with named mistakes."""

from __future__ import annotations

from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.config import document, reader, sections, settings, show
from edgeopt.config.schema import Config
from edgeopt.errors import ConfigError
from edgeopt.policy import Policy

BASE = Path("/srv/edgeopt")
NOTHING: dict[str, str] = {}

_words = st.sampled_from(
    [*sections.FOLDERS, *sections.CONFIG, *(key for section in sections.CONFIG.values() for key in section.keys)]
) | st.sampled_from(
    ["auto", "off", "true", "0", "-1", "1.5", ".nan", ".inf", "0644", "1:30", "75%", "2s", "4GiB", "null", "~", "x y"]
)
_marks = st.sampled_from(
    [
        ": ",
        "\n",
        "\n  ",
        "\n    ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "? ",
        "&a ",
        "*a",
        "<<: ",
        "!!x ",
        "---\n",
        "#",
        "'",
        '"',
        "|\n",
        "\t",
    ]
)


@given(st.lists(st.one_of(_words, _marks), max_size=60).map("".join))
def test_scrambled_configuration_is_read_or_its_mistakes_are_named(text: str) -> None:
    for read in (lambda: reader.loads(text, base=BASE, environ=NOTHING), lambda: reader.overlay_job(Policy(), text)):
        try:
            assert read()
        except ConfigError as error:
            assert error.mistakes


@given(st.binary(max_size=300))
def test_bytes_are_read_or_their_mistakes_are_named(raw: bytes) -> None:
    try:
        reader.loads(raw, base=BASE, environ=NOTHING)
    except ConfigError as error:
        assert error.mistakes


@given(st.integers(min_value=1, max_value=200), st.sampled_from(["[", "{a: ", "- ", "? ", "key below key"]))
def test_depth_is_refused_before_anything_is_composed(depth: int, opening: str) -> None:
    text = "".join(f"{' ' * level}a:\n" for level in range(depth)) if opening == "key below key" else opening * depth
    try:
        document.compose(text)
        too_deep = False
    except document.Unreadable as error:
        too_deep = "nested deeper" in str(error)
    assert too_deep == (depth > document.MAX_DEPTH)


def _changed(data: dict[str, object], changes: dict[tuple[str, str], object]) -> str:
    for (section, key), value in changes.items():
        data[section][key] = value  # type: ignore[index]  # sections are mappings
    return yaml.safe_dump(data)


_changes = st.fixed_dictionaries(
    {},
    optional={
        ("goal", "max_drop"): st.floats(0, 1),
        ("goal", "objective"): st.sampled_from(["latency", "size", "memory"]),
        ("search", "budget"): st.integers(1, 10**6).map(lambda seconds: f"{seconds}s"),
        ("search", "trials"): st.one_of(st.just("auto"), st.integers(1, 1000)),
        ("search", "seed"): st.integers(0, 2**32 - 1),
        ("limits", "memory"): st.one_of(
            st.integers(1, 100).map(lambda share: f"{share}%"), st.integers(64 << 20, 1 << 40)
        ),
        ("limits", "nice"): st.integers(-20, 19),
        ("techniques", "quantize"): st.one_of(
            st.sampled_from(["auto", "off"]), st.lists(st.sampled_from(sections.QUANTIZERS), unique=True)
        ),
        ("techniques", "prune"): st.one_of(
            st.lists(st.sampled_from(settings.PRUNERS), unique=True),
            st.fixed_dictionaries(
                {},
                optional={
                    "ratio": st.floats(0, 0.99),
                    "criterion": st.sampled_from(["l1", "obs"]),
                    "refit": st.booleans(),
                    "removed": st.dictionaries(st.sampled_from(["conv1.weight", "2"]), st.integers(0, 99)),
                },
            ),
            st.fixed_dictionaries(
                {"pattern": st.sampled_from(["2:4", "unstructured"])},
                optional={"skip": st.lists(st.sampled_from(["conv1.weight", "2"])), "bits": st.sampled_from([0, 6])},
            ),
        ),
        ("techniques", "distill"): st.fixed_dictionaries(
            {}, optional={"learning_rate": st.one_of(st.just("auto"), st.floats(0, 1)), "fake_quantize": st.just("off")}
        ),
        ("techniques", "merge"): st.dictionaries(
            st.sampled_from(["ratio", "by"]), st.one_of(st.booleans(), st.integers())
        ),
        ("target", "compute_capability"): st.lists(st.sampled_from([7.2, 8.6, 8.7]), max_size=3),
        ("target", "features"): st.lists(st.sampled_from(sections.ARM_FEATURES), max_size=3),
        ("neighbour", "max_load"): st.one_of(st.none(), st.floats(0.01, 100)),
        ("neighbour", "window"): st.one_of(st.none(), st.just("22:30-05:00")),
        ("http", "listen"): st.sampled_from(["127.0.0.1:0", "[::1]:9188", ":80"]),
        ("publish", "mode"): st.sampled_from(["0644", "0600", "0444"]),
    },
)


@given(_changes)
def test_shown_configuration_reads_back_as_itself(changes: dict[tuple[str, str], object]) -> None:
    config = reader.loads(_changed(show.as_data(Config()), changes), base=BASE, environ=NOTHING)

    assert reader.loads(show.effective(config), base=Path("/elsewhere"), environ=NOTHING) == config
