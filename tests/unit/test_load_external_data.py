"""The worker's door for weights beside the model: read lazily, and never from anywhere or anything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from doors import WEIGHT, external, refusal, saved, with_data

from edgeopt.errors import (
    MissingExternalData,
    NotAModel,
    TooLarge,
    TruncatedModel,
    UnsafeFile,
    UnsafeReference,
)
from edgeopt.graph.limits import GraphLimits
from edgeopt.graph.load import load, load_checked


def test_external_weight_is_loaded_lazily_and_right(tmp_path: Path) -> None:
    with_data(tmp_path)
    model = load(saved(tmp_path, external(offset="0", length="64")))
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), WEIGHT)


@pytest.mark.parametrize(
    "location",
    [
        *("../w.bin", "a/../../w.bin", "/etc/passwd", "w.bin\0x", "a\\w.bin", "C:w.bin"),
        *("", ".", "a//w.bin", "./w.bin", "*/_ORT_MEM_ADDR_/*", "model.onnx"),
    ],
)
def test_reference_out_of_the_folder_is_unsafe(tmp_path: Path, location: str) -> None:
    with_data(tmp_path)
    refusal(tmp_path, external(location), UnsafeReference)


@pytest.mark.parametrize("keys", [{"offset": "-4"}, {"length": "1e3"}, {"offset": "٣"}, {"basepath": "/etc"}])
def test_reference_with_odd_keys_or_numbers_is_unsafe(tmp_path: Path, keys: dict[str, str]) -> None:
    with_data(tmp_path)
    refusal(tmp_path, external(**keys), UnsafeReference)


@pytest.mark.parametrize(("offset", "size"), [("0", 60), ("4", 64), (str(1 << 62), 64)])
def test_reference_behind_the_end_of_its_file_is_truncated(tmp_path: Path, offset: str, size: int) -> None:
    with_data(tmp_path, size=size)
    assert "'w.bin'" in refusal(tmp_path, external(offset=offset), TruncatedModel)


def test_length_that_is_not_the_tensor_s_is_refused(tmp_path: Path) -> None:
    with_data(tmp_path)
    assert "64 bytes" in refusal(tmp_path, external(length="4"), NotAModel)


def test_missing_external_file_is_named(tmp_path: Path) -> None:
    assert "'w.bin'" in refusal(tmp_path, external(), MissingExternalData)


def link_symbolically(tmp_path: Path) -> None:
    (tmp_path / "w.bin").symlink_to("other.bin")
    (tmp_path / "other.bin").write_bytes(WEIGHT.tobytes())


def link_hard(tmp_path: Path) -> None:
    (tmp_path / "other.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "w.bin").hardlink_to(tmp_path / "other.bin")


def make_folder(tmp_path: Path) -> None:
    (tmp_path / "w.bin").mkdir()


@pytest.mark.parametrize("prepare", [link_symbolically, link_hard, make_folder])
def test_external_file_that_is_no_plain_file_of_its_own_is_unsafe(
    tmp_path: Path, prepare: Callable[[Path], None]
) -> None:
    prepare(tmp_path)
    refusal(tmp_path, external(), UnsafeFile)


def test_external_file_behind_a_linked_folder_is_unsafe(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/w.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "data").symlink_to("real")
    refusal(tmp_path, external("data/w.bin"), UnsafeFile)


def test_external_data_counts_towards_the_limit(tmp_path: Path) -> None:
    with_data(tmp_path)
    size = saved(tmp_path, external()).stat().st_size
    load_checked(tmp_path / "model.onnx", limits=GraphLimits(model_bytes=size + 64))
    refusal(tmp_path, external(), TooLarge, GraphLimits(model_bytes=size + 63))
