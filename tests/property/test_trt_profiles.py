"""Optimization profiles: whatever shapes the samples have, TensorRT gets a range that holds all of them and a typical one that is among them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgeopt.records import TensorSpec
from edgeopt.runtimes.trt.profiles import profile

OPEN = TensorSpec(name="tokens", dtype="int64", shape=(1, "length", "width"))
SAMPLES = st.lists(st.tuples(st.just(1), st.integers(1, 4096), st.integers(1, 64)), min_size=1, max_size=40)


@given(SAMPLES)
def test_range_holds_every_sample_and_its_typical_shape_is_one_of_them(shapes: list[tuple[int, int, int]]) -> None:
    (found,) = profile([OPEN], [{"tokens": shape} for shape in shapes])
    assert found.typical in shapes
    for shape in shapes:
        assert all(low <= side <= high for low, side, high in zip(found.least, shape, found.most, strict=True))
    # and it is no wider than needed: each bound is some sample's length
    for axis in range(3):
        assert found.least[axis] in {shape[axis] for shape in shapes}
        assert found.most[axis] in {shape[axis] for shape in shapes}


@given(SAMPLES)
def test_order_of_the_samples_does_not_matter(shapes: list[tuple[int, int, int]]) -> None:
    forth, back = ([{"tokens": shape} for shape in each] for each in (shapes, sorted(shapes)))
    one, other = profile([OPEN], forth)[0], profile([OPEN], back)[0]
    assert (one.least, one.most) == (other.least, other.most)
    volume = [shape[1] * shape[2] for shape in (one.typical, other.typical)]
    assert volume[0] == volume[1]


@given(SAMPLES)
def test_input_without_open_dimensions_needs_no_range(shapes: list[tuple[int, int, int]]) -> None:
    fixed = TensorSpec(name="tokens", dtype="int64", shape=(1, 8, 8))
    assert profile([fixed], [{"tokens": shape} for shape in shapes]) == ()
