"""Samples read back as what was saved, whatever the shapes; made-up ones fit whatever a model declares."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeopt.calibrate import dtypes
from edgeopt.calibrate.samples import open_samples, synthetic
from edgeopt.errors import BadData
from edgeopt.policy import InputHint
from edgeopt.records import Signature, StatePair, TensorSpec

NUMBERS = st.sampled_from(["float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool"])
DIMS = st.one_of(st.integers(1, 6), st.sampled_from(["n", "batch", "sequence", "height", "a + b", "?"]))


def signature(*inputs: TensorSpec, states: tuple[StatePair, ...] = ()) -> Signature:
    return Signature(format="onnx", opset=17, inputs=inputs, outputs=(), operators=(), states=states)


@given(
    data=st.data(),
    shape=hnp.array_shapes(min_dims=1, max_dims=4, max_side=5),
    dtype=NUMBERS,
    packing=st.tuples(st.booleans(), st.booleans()),
    stacked=st.booleans(),
)
def test_every_sample_reads_back_as_it_was_saved(
    data: st.DataObject, shape: tuple[int, ...], dtype: str, packing: tuple[bool, bool], stacked: bool
) -> None:
    values = data.draw(
        hnp.arrays(dtype, shape, elements=hnp.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False))
    )
    fortran, compressed = packing
    rank = len(shape) - 1 if stacked else len(shape)
    spec = TensorSpec(name="x", dtype=dtype, shape=tuple(f"d{axis}" for axis in range(rank)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "calibration.npz")
        (np.savez_compressed if compressed else np.savez)(path, x=np.asfortranarray(values) if fortran else values)
        samples = open_samples(path, signature(spec), unpack_to=Path(folder, "work"))
        assert len(samples) == shape[0]
        for index in range(len(samples)):
            expected = values[index] if stacked else values[index : index + 1]
            np.testing.assert_array_equal(samples.feeds(index)["x"], expected)
            assert samples.feeds(index)["x"].dtype == np.dtype(dtype)


@given(stored=NUMBERS, wanted=NUMBERS, data=st.data())
def test_cast_that_is_allowed_keeps_every_integer_and_no_value_overflows(
    stored: str, wanted: str, data: st.DataObject
) -> None:
    elements = hnp.from_dtype(np.dtype(stored), allow_nan=False, allow_infinity=False)
    values = data.draw(hnp.arrays(stored, 5, elements=elements))
    seen = dtypes.Seen()
    seen.add(values)
    assume(dtypes.why_not(np.dtype(stored), np.dtype(wanted), seen) is None)
    with np.errstate(all="raise", under="ignore"):
        cast = values.astype(wanted)
    if np.dtype(stored).kind in "iub":
        np.testing.assert_array_equal(cast.astype(object), values.astype(object))
    else:
        assert np.isfinite(cast).all()


@given(content=st.binary(max_size=300), place=st.integers(0, 400))
def test_damaged_archive_is_refused_or_read(content: bytes, place: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "calibration.npz")
        np.savez(path, x=np.arange(6, dtype=np.float32))
        whole = bytearray(path.read_bytes())
        whole[place : place + len(content)] = content
        path.write_bytes(whole)
        try:
            samples = open_samples(
                path, signature(TensorSpec(name="x", dtype="float32", shape=("n",))), unpack_to=Path(folder, "work")
            )
        except BadData as error:
            assert error.hint
        else:
            assert len(list(samples)) == len(samples)


@given(
    inputs=st.lists(st.tuples(NUMBERS, st.lists(DIMS, max_size=4)), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    span=st.one_of(st.none(), st.tuples(st.integers(-5, 0), st.integers(0, 100))),
)
def test_made_up_inputs_fit_the_signature_and_their_range(
    inputs: list[tuple[str, list[int | str]]], seed: int, span: tuple[int, int] | None
) -> None:
    specs = [TensorSpec(name=f"x{i}", dtype=dtype, shape=tuple(dims)) for i, (dtype, dims) in enumerate(inputs)]
    span = (0, span[1]) if span and any(dtype == "uint8" for dtype, _ in inputs) else span
    hints = [(spec.name, InputHint(range=span)) for spec in specs] if span else []
    samples = synthetic(signature(*specs), hints, seed=seed, count=2)
    lengths: dict[str, int] = {}
    for spec in specs:
        value = samples.feeds(1)[spec.name]
        assert value.dtype == np.dtype(spec.dtype)
        assert len(value.shape) == len(spec.shape)
        for length, dim in zip(value.shape, spec.shape, strict=True):
            assert length >= 1
            assert dim == "?" or length == (dim if isinstance(dim, int) else lengths.setdefault(dim, length))
        if span and spec.dtype != "bool" and value.size:
            assert span[0] <= value.min() <= value.max() <= span[1]


def test_made_up_inputs_depend_on_the_seed_and_the_index_only() -> None:
    spec = TensorSpec(name="image", dtype="float32", shape=("n", 3, "h", "w"))
    one, same, other = (synthetic(signature(spec), seed=seed, count=3) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.feeds(2)["image"], same.feeds(2)["image"])
    assert not np.array_equal(one.feeds(2)["image"], one.feeds(1)["image"])
    assert not np.array_equal(one.feeds(2)["image"], other.feeds(2)["image"])
    assert one.origin == same.origin
    assert one.origin.origin == "synthetic"


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 64, 64, 3)])
def test_made_up_pictures_are_smooth(shape: tuple[int, ...]) -> None:
    picture = synthetic(signature(TensorSpec(name="x", dtype="float32", shape=shape)), seed=0, count=1).feeds(0)["x"]
    plane = picture[0, 0] if shape[1] == 3 else picture[0, :, :, 0]
    neighbours = np.abs(np.diff(plane, axis=0)).mean() + np.abs(np.diff(plane, axis=1)).mean()
    assert neighbours < 0.4 * plane.std()


def test_made_up_inputs_follow_names_and_hints() -> None:
    specs = [
        TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence")),
        TensorSpec(name="attention_mask", dtype="int64", shape=("batch", "past + sequence")),
        TensorSpec(name="token_type_ids", dtype="int64", shape=("batch", "sequence")),
        TensorSpec(name="past_key", dtype="float32", shape=("batch", 4, "past", 8)),
    ]
    states = (StatePair(input="past_key", output="present_key"),)
    hints = [("input_ids", InputHint(shape=(1, 20)))]
    feeds = synthetic(signature(*specs, states=states), hints, seed=0, count=1).feeds(0)
    assert feeds["input_ids"].shape == (1, 20)
    assert feeds["token_type_ids"].shape == (1, 20)
    assert feeds["past_key"].shape == (1, 4, 16, 8)
    assert feeds["attention_mask"].min() == 1
    assert feeds["token_type_ids"].max() == 0
    assert not feeds["past_key"].any()
