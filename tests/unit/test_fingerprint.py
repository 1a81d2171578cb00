"""What a measurement depends on: what is recorded, what counts as changed, what is never held against an artifact."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt import fingerprint, wire
from edgeopt.fingerprint import Fingerprint
from tests.devices import gpu_host

THEN = Fingerprint(
    runtime="onnxruntime", runtime_version="1.0", arch="x86_64", device="Some CPU", features=("avx2", "avx_vnni")
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["fingerprint", "runtime", "arch", "features"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def test_nothing_has_changed_on_the_same_day() -> None:
    today = fingerprint.here("onnxruntime")
    assert today.runtime_version
    assert fingerprint.changes(today, fingerprint.here("onnxruntime")) == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"runtime_version": "1.1"}, "runtime"),
        ({"arch": "aarch64"}, "device"),
        ({"device": "Other CPU"}, "device"),
        ({"features": ("avx2",)}, "device"),
    ],
)
def test_each_fact_that_changed_is_told_with_both_values(change: dict[str, Any], reason: str) -> None:
    (found,) = fingerprint.changes(THEN, replace(THEN, **change))
    assert found.reason == reason
    assert found.text.endswith(" now")


def test_driver_and_gpu_count_for_what_runs_on_one_only(tmp_path: Path) -> None:
    old, new = (gpu_host(tmp_path / driver, driver) for driver in ("550.1", "560.2"))
    then, now = fingerprint.here("tensorrt", host=old), fingerprint.here("tensorrt", host=new)
    assert (then.driver, then.gpus) == ("550.1", ("NVIDIA L4",))
    assert fingerprint.reasons(then, now) == ("driver",)
    assert fingerprint.here("onnxruntime", host=old).driver is None


@pytest.mark.parametrize("name", THEN.__slots__)
def test_what_one_side_does_not_know_is_never_a_change(name: str) -> None:
    assert fingerprint.changes(replace(THEN, **{name: None}), THEN) == ()
    assert fingerprint.changes(THEN, replace(THEN, **{name: None})) == ()


def test_another_name_and_more_instruction_sets_make_nothing_doubtful_but_fewer_do() -> None:
    assert fingerprint.misfits(THEN, replace(THEN, device="Board", features=("avx2", "avx_vnni", "amx_int8"))) == ()
    (missing,) = fingerprint.misfits(THEN, replace(THEN, features=("avx2",)))
    assert missing.text == "its instruction sets: avx2 avx_vnni then, avx2 now"


def test_manifest_gives_back_what_was_written_into_it() -> None:
    manifest = {"environment": {"fingerprint": json.loads(wire.dumps(THEN))}}
    assert fingerprint.of_manifest(manifest) == THEN


def test_manifest_from_before_fingerprints_tells_the_same_facts() -> None:
    manifest = {
        "artifact": {"runtime": "onnxruntime", "runtime_version": "1.0"},
        "target": {"arch": "x86_64", "device": "Some CPU", "features": ["avx2", "avx_vnni"]},
    }
    assert fingerprint.of_manifest(manifest) == THEN


@given(artifact=ANYTHING, target=ANYTHING, environment=ANYTHING)
def test_no_manifest_breaks_the_reader(artifact: Any, target: Any, environment: Any) -> None:
    manifest = {"artifact": artifact, "target": target, "environment": environment}
    fingerprint.changes(fingerprint.of_manifest(manifest), THEN)


def package(root: Path, version: str) -> None:
    """The metadata of an onnxruntime on disk."""
    folder = root / f"onnxruntime-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: onnxruntime\nVersion: {version}\n")


def test_another_version_is_seen_as_soon_as_its_metadata_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint.installed("onnxruntime")
    package(tmp_path, "99.1")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert fingerprint.installed("onnxruntime") == "99.1" != before
    assert fingerprint.installed("no-runtime") is None


def test_library_in_memory_counts_and_not_the_one_that_was_installed_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    package(tmp_path, "99.1")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert fingerprint.here("onnxruntime").runtime_version == onnxruntime.__version__
    monkeypatch.delitem(sys.modules, "onnxruntime")
    assert fingerprint.here("onnxruntime").runtime_version == "99.1", "whoever has imported nothing would get this one"
    assert "onnxruntime" not in sys.modules


@pytest.mark.parametrize(
    ("packaged", "loaded", "told"),
    [
        ("1.2.0.dev20260101", "1.2.0", "1.2.0.dev20260101"),
        ("1.2.0+local", "1.2.0", "1.2.0+local"),
        ("1.2.10", "1.2.1", "1.2.1"),
        ("1.2.0", "1.2.0", "1.2.0"),
        ("1.3.0", "", "1.3.0"),
    ],
)
def test_package_that_only_says_more_than_its_module_is_the_same_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packaged: str, loaded: str, told: str
) -> None:
    package(tmp_path, packaged)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = ModuleType("onnxruntime")
    module.__version__ = loaded  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    assert fingerprint.running("onnxruntime") == told


@pytest.mark.parametrize("distribution", ["onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"])
def test_runtime_is_found_in_whichever_package_it_came(distribution: str) -> None:
    has = {distribution: "1.23"}
    assert fingerprint.installed("onnxruntime", find=has.get) == "1.23"
    assert fingerprint.installed("tensorrt", find=has.get) is None
