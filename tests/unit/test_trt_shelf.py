"""Engines are built once: found by their whole key and checked by their sha256. A stand-in for the library, no TensorRT needed."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import builders
import onnx_ir as ir
import pytest

from edgeopt.integrity import sha256_of
from edgeopt.records import EngineFacts, Recipe
from edgeopt.runtimes.trt.flavours import Flavour
from edgeopt.runtimes.trt.runtime import TensorRt
from edgeopt.runtimes.trt.shelf import Finished, Shelf

KEY = "ab" * 32
FACTS = EngineFacts(key=KEY, gpus=("SM86",), build_s=2.0, products=3, int8_products=1)
TARGET = dataclasses.replace(builders.TARGET, name="tensorrt-rtx", compute_capability=(8.6,))
COPYING = Flavour(
    name="tensorrt-rtx",
    modules=("copying_tensorrt",),
    distributions=("onnx",),
    install="",
    releases=(),
    needs_gpu=False,
)


def kept(folder: Path, content: bytes = b"engine") -> tuple[Shelf, Finished]:
    engine = folder / "built.engine"
    engine.write_bytes(content)
    finished = Finished(facts=FACTS, version="1.7", sha256=sha256_of(engine))
    shelf = Shelf(folder / "engines")
    shelf.keep(finished, engine)
    return shelf, finished


def test_engine_comes_back_with_all_that_was_known_of_it(tmp_path: Path) -> None:
    shelf, finished = kept(tmp_path)
    assert shelf.find(KEY, tmp_path / "model.engine") == finished
    assert (tmp_path / "model.engine").read_bytes() == b"engine"


def test_engine_whose_bytes_have_changed_is_not_taken(tmp_path: Path) -> None:
    shelf, _ = kept(tmp_path)
    (kept_engine,) = (tmp_path / "engines").rglob("model.engine")
    kept_engine.write_bytes(b"enginf")
    assert shelf.find(KEY, tmp_path / "model.engine") is None
    assert not (tmp_path / "model.engine").exists()


@pytest.mark.parametrize("key", ["cd" * 32, "ab" * 31 + "cc"], ids=["another", "same beginning"])
def test_engine_of_another_key_is_not_taken(tmp_path: Path, key: str) -> None:
    assert kept(tmp_path)[0].find(key, tmp_path / "model.engine") is None


def test_facts_that_cannot_be_read_are_as_good_as_none(tmp_path: Path) -> None:
    shelf, _ = kept(tmp_path)
    (facts,) = (tmp_path / "engines").rglob("facts.json")
    facts.write_text("{}")
    assert shelf.find(KEY, tmp_path / "model.engine") is None


def test_shelf_without_a_folder_holds_nothing(tmp_path: Path) -> None:
    _, finished = kept(tmp_path)
    Shelf(None).keep(finished, tmp_path / "built.engine")
    assert Shelf(None).find(KEY, tmp_path / "model.engine") is None


def test_same_build_is_done_once_and_another_one_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, told = tmp_path / "log", list[str]()
    monkeypatch.setenv("COPYING_TENSORRT_LOG", str(log))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    runtime = TensorRt(COPYING).under(
        limit_s=60.0, tell=lambda _share, words: told.append(words), cache=tmp_path / "cache"
    )
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        ir.save(builders.conv_net(), tmp_path / name / "model.onnx")
    first, second = tmp_path / "first" / "model.onnx", tmp_path / "second" / "model.onnx"
    made = [runtime.compile(model, Recipe(), TARGET) for model in (first, second)]
    assert log.read_text() == "built "
    assert made[1] == dataclasses.replace(made[0], path=str(second.with_name("model.engine")))
    assert told == ["engine: Taking it from the cache, 1 of 1"]
    other_gpu = dataclasses.replace(TARGET, compute_capability=(8.9,))
    specs, shape = builders.signature(builders.conv_net()).inputs, (1, 3, 16, 16)
    assert runtime.compile(second, Recipe(), other_gpu).engine != made[1].engine
    shaped = runtime.taking(specs, [{specs[0].name: shape}, {specs[0].name: (2, *shape[1:])}])
    shaped.compile(second, Recipe(), TARGET)
    assert log.read_text() == "built built built "
    # what replaced the second engine has left the one that is kept alone
    assert runtime.compile(first, Recipe(), TARGET) == made[0]
    assert log.read_text() == "built built built "
