"""What a manifest says of a published model, and how little of it is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edgeopt.config.schema import Publish
from edgeopt.daemon.models import Models, describe, stale
from edgeopt.daemon.publish import pin, publish, rollback
from edgeopt.daemon.shelf import Shelf, read
from edgeopt.records import Target
from tests.published import out_folder

HERE = Target(name="cpu", device="Some CPU", arch="x86_64", features=("avx2",), threads=2, memory_bytes=1 << 30)
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
    model = describe(shelf, HERE)
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
    json.dumps(describe(shelf, HERE).row, allow_nan=False)


def test_damaged_manifest_is_stale_and_says_nothing_else(tmp_path: Path) -> None:
    shelf = published(tmp_path)
    manifest = shelf.folder / "1" / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text("{")
    assert describe(shelf, HERE).facts.stale == ("manifest",)


def test_version_is_stale_on_another_device_or_runtime() -> None:
    target = {"device": "Some CPU", "arch": "x86_64", "features": ["avx2"]}
    assert stale({"target": target, "artifact": {"runtime": "other", "runtime_version": "1"}}, HERE) == ()
    assert stale({"target": target | {"features": []}}, HERE) == ("device",)
    assert stale({"target": target, "artifact": {"runtime": "onnxruntime", "runtime_version": "0.0"}}, HERE) == (
        "runtime",
    )


def test_moves_by_others_are_noticed_once(tmp_path: Path) -> None:
    for number in range(3):
        published(tmp_path, number=number)
    root = tmp_path / "published"
    models = Models(root, HERE)
    assert [shelf.current for shelf in models.refresh_moved()] == [3]
    assert models.refresh_moved() == []
    rollback(root, "m")
    assert [shelf.current for shelf in models.refresh_moved()] == [2]
    pin(root, "m")
    assert [shelf.pinned for shelf in models.refresh_moved()] == [2]
    (root / "m").rename(tmp_path / "gone")
    models.refresh_moved()
    assert models.rows() == []
