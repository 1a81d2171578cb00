"""What a manifest says of a published model, and how little of it is believed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.config.schema import Publish
from edgeopt.daemon import marks
from edgeopt.daemon.marks import Mark
from edgeopt.daemon.models import Models, describe
from edgeopt.daemon.publish import pin, publish, rollback
from edgeopt.daemon.shelf import Shelf, read
from edgeopt.fingerprint import Fingerprint
from tests.published import out_folder

HERE = Fingerprint(runtime="onnxruntime", runtime_version="2.0", arch="x86_64", device="Some CPU", features=("avx2",))
MANIFEST = {
    "artifact": {"runtime": "onnxruntime", "runtime_version": "2.0"},
    "target": {"device": "Some CPU", "arch": "x86_64", "features": ["avx2"]},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["value", "p50", "quality", "bytes"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def published(tmp_path: Path, **parts: Any) -> Shelf:
    root = tmp_path / "published"
    publish(out_folder(tmp_path, json.dumps(parts).encode(), **parts), "m", root, settings=Publish(keep=9))
    return read(root, "m")


def test_manifest_becomes_facts_and_a_row(tmp_path: Path) -> None:
    shelf = published(
        tmp_path,
        result={
            "speedup": {"value": 2.0},
            "latency_ms": {"p50": 1.0, "p90": 2.0},
            "bytes_ratio": 4.0,
            "quality": {"kind": "accuracy", "value": 0.9},
        },
        baseline={"latency_ms": {"p50": 2.0}, "bytes": 100},
    )
    model = describe(shelf)
    assert model.facts.speedup_ratio == 2.0
    assert model.facts.latency_s == {"original": {"0.5": 0.002}, "published": {"0.5": 0.001, "0.9": 0.002}}
    assert model.facts.size_bytes["original"] == 100
    assert (model.facts.quality_ratio, model.facts.quality_kind) == (0.9, "accuracy")
    assert (model.row["version"], model.row["bytes_ratio"]) == (1, 4.0)


@given(result=JSON, baseline=JSON)
def test_no_manifest_breaks_the_reader(tmp_path_factory: Any, result: Any, baseline: Any) -> None:
    folder = tmp_path_factory.mktemp("m")
    (folder / "m" / "1").mkdir(parents=True)
    manifest = {
        "schema": 1,
        "source": {},
        "artifact": {"bytes": result},
        "result": result,
        "baseline": baseline,
        "target": result,
    }
    (folder / "m" / "1" / "manifest.json").write_text(json.dumps(manifest))
    shelf = Shelf(name="m", folder=folder / "m", versions=(1,), highest=1, current=1, pinned=0)
    json.dumps(describe(shelf).row, allow_nan=False)


def test_damaged_manifest_is_stale_and_says_nothing_else(tmp_path: Path) -> None:
    shelf = published(tmp_path)
    manifest = shelf.folder / "1" / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text("{")
    assert describe(shelf).facts.stale == ("manifest",)


def models_of(tmp_path: Path, *today: Fingerprint, **parts: Any) -> Models:
    """The models' view of one version with these parts in its manifest; the conditions of each look, the last for good."""
    days = list(today)
    root = tmp_path / "published"
    out = out_folder(tmp_path, b"model")
    manifest = json.loads((out / "manifest.json").read_text())
    for name, part in parts.items():
        manifest[name] = manifest.get(name, {}) | part
    (out / "manifest.json").write_text(json.dumps(manifest))
    publish(out, "m", root)
    models = Models(root, lambda _runtime: days.pop(0) if days[1:] else days[0])
    models.refresh_moved()
    return models


def stale_of(models: Models) -> tuple[str, ...]:
    return models.facts()["m"].stale


@pytest.mark.parametrize(
    ("now", "reasons"),
    [
        (HERE, ()),
        (replace(HERE, runtime_version="2.1"), ("runtime",)),
        (replace(HERE, features=()), ("device",)),
        (replace(HERE, device="Other CPU", runtime_version="2.1"), ("runtime", "device")),
        (replace(HERE, runtime_version=None), ()),
    ],
)
def test_version_is_stale_on_another_device_or_runtime(
    tmp_path: Path, now: Fingerprint, reasons: tuple[str, ...]
) -> None:
    assert stale_of(models_of(tmp_path, now, **MANIFEST)) == reasons


def test_manifest_that_tells_no_conditions_is_held_against_nothing(tmp_path: Path) -> None:
    assert stale_of(models_of(tmp_path, HERE)) == ()


def test_comparing_again_finds_what_changed_under_the_running_daemon_and_remembers_it(tmp_path: Path) -> None:
    other = replace(HERE, runtime_version="3.0")
    models = models_of(tmp_path, HERE, other, other, HERE, **MANIFEST)
    assert models.compare() == ["m"]
    assert (stale_of(models), models.rows()[0]["stale"]) == (("runtime",), "runtime")
    assert not models.is_current_enough("m", 1)
    assert models.compare() == ["m"]
    assert stale_of(models) == ()
    # its series falls to 0 instead of going away
    assert models.facts()["m"].seen_stale == ("runtime",)


def test_version_that_is_marked_bad_is_stale_and_good_for_no_duplicate(tmp_path: Path) -> None:
    models = models_of(tmp_path, HERE, **MANIFEST)
    marks.put(tmp_path / "published" / "m", 1, Mark(kind=marks.DAMAGED, reason="a bit rotted"))
    models.refresh("m")
    assert stale_of(models) == ("damaged",)
    assert not models.is_current_enough("m", 1)


def test_moves_by_others_are_noticed_once(tmp_path: Path) -> None:
    for number in range(3):
        published(tmp_path, number=number)
    root = tmp_path / "published"
    models = Models(root, lambda _runtime: HERE)
    assert [shelf.current for shelf in models.refresh_moved()] == [3]
    assert models.refresh_moved() == []
    rollback(root, "m")
    assert [shelf.current for shelf in models.refresh_moved()] == [2]
    pin(root, "m")
    assert [shelf.pinned for shelf in models.refresh_moved()] == [2]
    (root / "m").rename(tmp_path / "gone")
    models.refresh_moved()
    assert models.rows() == []
