"""Hostile bytes: whatever is dropped, the gates end, and with nothing but their own errors."""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inbox import external_everywhere, external_model, external_tensor, model_bytes, npz_bytes
from onnx import helper

from edgeopt.daemon import gate, gate_zip, protowalk
from edgeopt.daemon.names import escaped, is_waiting, slug
from edgeopt.daemon.protowalk import Walk
from edgeopt.errors import InputError, TruncatedModel, UnsafeReference

MODELS = [model_bytes(), external_model("w.data", offset="0", length="16"), external_everywhere()[0]]
ARCHIVES = [npz_bytes(), npz_bytes(x=np.arange(5), labels=np.zeros((2, 3)))]


def on_file(data: bytes, look: Callable[[int, int], Walk | None]) -> Walk | None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return look(file.fileno(), len(data))


def judged(data: bytes) -> Walk | None:
    """The whole gate for a model; None for a refusal. Anything else than an InputError is a failure."""

    def look(fd: int, size: int) -> Walk:
        gate.refuse_by_content(fd, size)
        return protowalk.walk(fd, size)

    try:
        return on_file(data, look)
    except InputError as error:
        assert error.message
        assert error.hint
        return None


@st.composite
def mutants(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """A real file with some bytes changed, cut out, doubled or cut off."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["set", "cut", "double", "end", "varint"]))
        span = draw(st.integers(1, 16))
        if kind == "set" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + span]
        elif kind == "double":
            data[at:at] = data[at : at + span]
        elif kind == "end":
            del data[at:]
        else:
            data[at:at] = b"\xff" * span
    return bytes(data)


@given(mutants(MODELS))
def test_a_mutated_model_is_walked_or_refused_and_never_anything_else(data: bytes) -> None:
    judged(data)


@given(st.binary(max_size=600))
def test_random_bytes_are_refused_or_walked(data: bytes) -> None:
    judged(data)


@given(st.binary(max_size=300))
def test_random_bytes_behind_a_models_start_are_refused_or_walked(data: bytes) -> None:
    judged(b"\x08\x08\x42\x00\x3a" + bytes([len(data) & 0x7F]) + data)


@given(mutants(MODELS))
def test_what_onnx_would_load_as_external_data_is_among_what_was_walked(data: bytes) -> None:
    """The walk may refuse more than onnx parses, but it never misses a location that onnx would follow."""
    walked = judged(data)
    if walked is None:
        return
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception:  # noqa: BLE001 - protobuf's own refusal; its class differs between implementations
        return
    assert set(_locations(model)) <= {location for location, _ in walked.references}


def _locations(message: object) -> list[str]:
    """Every location of an external tensor, found by protobuf's own reflection."""
    if isinstance(message, onnx.TensorProto):
        external = message.data_location == onnx.TensorProto.EXTERNAL
        return [entry.value for entry in message.external_data if entry.key == "location"] if external else []
    found: list[str] = []
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.message_type is not None:
            for part in value if _is_many(value) else [value]:
                found += _locations(part)
    return found


def _is_many(value: object) -> bool:
    return hasattr(value, "__len__") and not hasattr(value, "ListFields")


@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=20), st.integers(0, 1 << 40), st.integers(0, 1 << 40)), max_size=6)
)
def test_every_reference_is_given_with_its_furthest_byte(tensors: list[tuple[str, int, int]]) -> None:
    model = helper.make_model(
        helper.make_graph(
            [], "g", [], [],
            [external_tensor(str(n), location=name, offset=str(at), length=str(size)) for n, (name, at, size) in enumerate(tensors)],
        )
    )  # fmt: skip
    walked = on_file(model.SerializeToString(), protowalk.walk)
    reach: dict[str, int] = {}
    for name, at, size in tensors:
        reach[name] = max(reach.get(name, 0), at + size)
    assert walked is not None
    assert dict(walked.references) == reach


@given(st.sampled_from(MODELS), st.data())
def test_every_cut_of_a_model_says_truncated(model: bytes, data: st.DataObject) -> None:
    cut = model[: data.draw(st.integers(1, len(model) - 1))]
    try:
        walked = on_file(cut, protowalk.walk)
    except TruncatedModel:
        return
    # a model with functions or training information behind its opset_import is whole without them
    assert walked is not None
    assert onnx.ModelProto.FromString(cut).opset_import


@given(mutants(ARCHIVES))
def test_a_mutated_archive_is_accepted_or_refused_and_never_anything_else(data: bytes) -> None:
    def look(fd: int, size: int) -> None:
        gate_zip.check_npz(fd, size, max_bytes=1 << 20)

    try:
        on_file(data, look)
    except InputError:
        return
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            for name in archive.files:
                _ = archive[name]
    except Exception as error:  # noqa: BLE001 - a wrong checksum is found by who unpacks; that numpy asks for a pickle is not allowed
        assert "pickle" not in str(error)


@given(st.text(max_size=80))
def test_a_location_that_passes_stays_in_its_folder(location: str) -> None:
    try:
        plain = gate.plain_location(location)
    except UnsafeReference:
        return
    assert os.path.normpath(f"/job/input/{plain}") == f"/job/input/{plain}"
    assert "\0" not in plain


names = st.text(st.characters(codec=None, exclude_characters="/\0"), max_size=100) | st.binary(max_size=60).map(
    os.fsdecode
)


@given(names, st.binary(min_size=32, max_size=32))
def test_a_slug_is_always_a_safe_name(raw: str, digest: bytes) -> None:
    public = slug(raw, digest.hex())
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", public)
    assert public[0] not in "-."
    assert public not in (".", "..")
    assert public == raw or public.endswith(digest.hex()[:8])


@given(names, names)
def test_escaping_is_one_printable_ascii_line_and_keeps_names_apart(one: str, other: str) -> None:
    assert escaped(one).isascii()
    assert escaped(one).isprintable() or one == ""
    assert (escaped(one) == escaped(other)) == (one == other)


@pytest.mark.parametrize("name", ["a.onnx", "a", "-", "part", "tmp"])
def test_an_ordinary_name_does_not_wait(name: str) -> None:
    assert not is_waiting(name)
