from __future__ import annotations

import time
from pathlib import Path

import onnx
import pytest
from inbox import external_everywhere, external_model, external_tensor, model_bytes
from onnx import helper

from edgeopt.daemon import protowalk
from edgeopt.daemon.gate import plain_location
from edgeopt.daemon.protowalk import Walk
from edgeopt.errors import JobCancelled, NotAModel, TooLarge, TruncatedModel, UnsafeReference


def test_a_whole_model_walks_and_counts(tmp_path: Path) -> None:
    seen = walk(tmp_path, model_bytes())
    assert (seen.nodes, seen.tensors, seen.references) == (1, 1, ())


def test_external_data_is_found_in_every_place_onnx_has_for_a_tensor(tmp_path: Path) -> None:
    data, places = external_everywhere()
    assert {location for location, _ in walk(tmp_path, data).references} == places


def test_a_reference_says_how_far_its_file_must_reach(tmp_path: Path) -> None:
    tensors = [
        external_tensor("a", location="w", offset="0", length="16"),
        external_tensor("b", location="w", offset="4096", length="16"),
        external_tensor("c", location="v"),
    ]
    model = helper.make_model(helper.make_graph([], "g", [], [], tensors))
    assert walk(tmp_path, model.SerializeToString()).references == (("w", 4112), ("v", 0))


def test_every_cut_of_a_model_is_truncated(tmp_path: Path) -> None:
    data = model_bytes()
    for length in range(1, len(data)):
        with pytest.raises(TruncatedModel):
            walk(tmp_path, data[:length])


def test_a_model_with_a_hole_of_zeros_is_truncated(tmp_path: Path) -> None:
    data = model_bytes(weights=4096)
    graph_at = data.index(b"Add") - 20
    with pytest.raises(TruncatedModel, match="allocated but not filled"):
        walk(tmp_path, data[:graph_at] + bytes(len(data) - graph_at))


@pytest.mark.parametrize(
    "data", [b"hello, world\n", b"\xff" * 64, b'{"a": 1}', bytes(range(255, 0, -1)), b"\x12\x03abc"]
)
def test_other_bytes_are_no_model(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(NotAModel):
        walk(tmp_path, data)


def test_damage_inside_the_graph_names_the_byte(tmp_path: Path) -> None:
    data = bytearray(model_bytes())
    data[data.index(b"Add") - 1] = 0xFF
    with pytest.raises(NotAModel, match="damaged at byte"):
        walk(tmp_path, bytes(data))


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "w", "basepath": "/etc"},
        {"location": "w", "offset": "-1"},
        {"location": "w", "length": "0x10"},
        {"location": "w", "length": "1e3"},
        {"location": "w", "offset": "99999999999999999999"},
        {"offset": "0"},
        {},
    ],
)
def test_external_data_with_odd_keys_or_numbers_is_unsafe(tmp_path: Path, entries: dict[str, str]) -> None:
    model = helper.make_model(helper.make_graph([], "g", [], [], [external_tensor("w", **entries)]))
    with pytest.raises(UnsafeReference):
        walk(tmp_path, model.SerializeToString())


def test_a_key_given_twice_is_unsafe(tmp_path: Path) -> None:
    tensor = external_tensor("w", location="w")
    tensor.external_data.add(key="location", value="/etc/passwd")
    model = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    with pytest.raises(UnsafeReference, match="twice"):
        walk(tmp_path, model.SerializeToString())


def test_entries_count_even_where_the_location_flag_comes_in_another_piece(tmp_path: Path) -> None:
    """Protobuf merges an attribute's tensor that is given twice; the two pieces together are external."""
    entries = onnx.TensorProto()
    entries.external_data.add(key="location", value="/etc/passwd")
    flag = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    pieces = b"".join(b"\x2a" + bytes([len(part)]) + part for part in (entries.SerializeToString(),))
    attribute = onnx.AttributeProto.FromString(pieces + b"\x2a\x02" + flag.SerializeToString())
    assert attribute.t.data_location == onnx.TensorProto.EXTERNAL  # what onnx would make of it
    model = helper.make_model(helper.make_graph([], "g", [], []))
    data = model.SerializeToString()
    node = b"\x2a" + bytes([len(pieces)]) + pieces
    graph = b"\x0a" + bytes([len(node)]) + node
    assert ("/etc/passwd", 0) in walk(tmp_path, data + b"\x3a" + bytes([len(graph)]) + graph).references


@pytest.mark.parametrize(
    "location",
    [
        "", "/etc/passwd", "../w", "a/../../w", "a//b", "a/./b", "C:w", "a\\b", "w\0x", "w\n", "*/_ORT_MEM_ADDR_/*",
        ".git/config", "a/b/c/d/e", "x" * 2000, ".", "..", "a/",
    ],
)  # fmt: skip
def test_a_location_that_could_leave_the_drop_is_unsafe(location: str) -> None:
    with pytest.raises(UnsafeReference):
        plain_location(location)


@pytest.mark.parametrize("location", ["w.data", "./w.data", "weights/w.bin", "模型.data", "a b", "-rf", "..data"])
def test_a_plain_location_is_kept(location: str) -> None:
    assert plain_location(location) == location.removeprefix("./")


def test_a_deeply_nested_model_is_refused_without_recursion(tmp_path: Path) -> None:
    data = b""
    for _ in range(200):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # attribute.g in node.attribute in graph.node
            data = tag + varint(len(data)) + data
    with pytest.raises(TooLarge, match="deep"):
        walk(tmp_path, b"\x08\x08\x42\x00\x3a" + varint(len(data)) + data)


def test_a_long_field_of_weights_is_jumped_over(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    model = model_bytes(weights=25_000_000)
    path.write_bytes(model)
    started = time.perf_counter()
    assert walk_file(path).tensors == 1
    assert time.perf_counter() - started < 1.0


def test_the_walk_can_be_stopped(tmp_path: Path) -> None:
    model = helper.make_model(helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])] * 20_000, "g", [], []))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with path.open("rb") as file, pytest.raises(JobCancelled):
        protowalk.walk(file.fileno(), path.stat().st_size, should_stop=lambda: True)


def test_too_many_data_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protowalk, "MAX_LOCATIONS", 3)
    tensors = [external_tensor(str(number), location=str(number)) for number in range(4)]
    with pytest.raises(TooLarge):
        walk(tmp_path, helper.make_model(helper.make_graph([], "g", [], [], tensors)).SerializeToString())


def test_a_model_saved_by_onnx_with_external_data_walks(tmp_path: Path) -> None:
    model = onnx.load_from_string(model_bytes(weights=4096))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    (reference,) = walk_file(tmp_path / "m.onnx").references
    assert reference == ("m.data", (tmp_path / "m.data").stat().st_size)
    assert walk(tmp_path, external_model("w", offset="0", length="16")).references == (("w", 16),)


def varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*data, number])


def walk(folder: Path, data: bytes) -> Walk:
    path = folder / "walked.onnx"
    path.write_bytes(data)
    return walk_file(path)


def walk_file(path: Path) -> Walk:
    with path.open("rb") as file:
        return protowalk.walk(file.fileno(), path.stat().st_size)
