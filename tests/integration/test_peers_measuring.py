"""The comparison's measuring on the shipped digits model: the original stands for a tool's artifact, a torn file for another's."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgeopt
from benchmarks.peers import judge, measure
from benchmarks.peers.field import Entry
from benchmarks.peers.prepare import Prepared, prepare
from benchmarks.peers.produce import Record
from benchmarks.peers.rows import Row, is_right

DEMO = Path(edgeopt.__file__).parent / "demo"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    source = tmp_path_factory.mktemp("corpus") / "digits"
    source.mkdir()
    for name, file in (
        ("model.onnx", "digits.onnx"),
        ("calib.npz", "digits.calibration.npz"),
        ("eval.npz", "digits.eval.npz"),
    ):
        shutil.copyfile(DEMO / file, source / name)
    return prepare(source, tmp_path_factory.mktemp("models") / "digits")


def test_every_tool_gets_at_most_128_samples_in_order(given: Prepared) -> None:
    with np.load(given.folder / "feeds.npz") as feeds, np.load(DEMO / "digits.calibration.npz") as dropped:
        (name,) = feeds.files
        assert len(feeds[name]) == min(128, len(dropped[name]))
        assert np.array_equal(feeds[name].reshape(-1), dropped[name][: len(feeds[name])].reshape(-1))
    assert given.facts.judged_by == "agreement" and given.facts.has("Conv")


@pytest.mark.slow
def test_copy_of_the_original_is_right_and_torn_file_is_a_failure(given: Prepared, tmp_path: Path) -> None:
    records = {}
    for name, content in (("copy", given.model.read_bytes()), ("torn", given.model.read_bytes()[:1000])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_bytes(content)
        model = str(tmp_path / name / "model.onnx")
        records[name] = Record(model=model, wall_s=1.0, cpu_s=1.0, peak_memory_bytes=1)
    found = [(Entry(tool=name, recipe="x", label=name), record, True) for name, record in records.items()]

    def judged() -> list[Row]:
        return judge.rows(found, bench, tmp_path / "judged")

    with judge.opened(given, threads=1) as bench:
        rows = measure.one_pass(judged(), bench, 0, 2)
        assert judged() == [replace(row, speedup=None, passes=()) for row in rows], "judged again, and otherwise"
        measure.keep(rows, tmp_path / "timings.json", 1)
        control, copy, torn = measure.one_pass(measure.resumed(judged(), tmp_path / "timings.json", 1), bench, 1, 2)
    assert is_right(copy) and copy.confident_agreement == 1.0 and copy.bytes_ratio == 1.0
    assert (
        copy.speedup is not None
        and len(copy.passes) == len(control.passes) == 2
        and copy.passes[0] == rows[1].passes[0]
    )
    assert torn.speedup is None and "onnxruntime" in torn.failure
