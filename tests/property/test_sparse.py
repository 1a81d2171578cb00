"""Arithmetic of sparse weights: masks lose nothing, patterns hold, shares come out exact, reconstruction is no worse than removal."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.calibrate import codebook, compensate, masks, sparsify
from edgeopt.calibrate.gram import Moments
from edgeopt.calibrate.masks import Pattern
from edgeopt.calibrate.sparsify import Removal
from edgeopt.errors import PassFailed

PATTERNS = [Pattern(kept, size) for size in (2, 3, 4, 8, 16) for kept in range(1, size)]
SEEDS = st.integers(0, 9999)


def layer(seed: int, outputs: int, inputs: int) -> tuple[np.ndarray, np.ndarray, Moments]:
    """Rows, correlated inputs with channels of uneven power, and the inputs' moments."""
    random = np.random.default_rng(seed)
    mix = random.normal(size=(inputs, inputs)) * np.exp(random.uniform(-2, 1, inputs))
    data = (random.normal(size=(4 * inputs, inputs)) @ mix).astype(np.float32)
    rows = random.normal(size=(outputs, inputs)).astype(np.float32)
    return rows, data, Moments(data.T @ data)


def grouped(pattern: Pattern, inputs: int) -> Removal:
    return Removal(pattern.sparsity, pattern, np.arange(inputs).reshape(-1, pattern.size))


@given(pattern=st.sampled_from(PATTERNS), groups=st.integers(1, 200), seed=SEEDS)
def test_packed_pattern_gives_back_every_mask_and_takes_no_more_than_a_bit(
    pattern: Pattern, groups: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    order = np.argsort(random.random((groups, pattern.size)), axis=1)
    mask = (order < pattern.kept).reshape(-1)
    data, table = masks.pack(mask, pattern)
    assert np.array_equal(masks.unpack(data, table, mask.size), mask)
    assert data.size <= -(-mask.size // 8) + 1


@given(count=st.integers(1, 500), seed=SEEDS)
def test_packed_mask_without_a_pattern_takes_a_bit(count: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random(count) < 0.5
    data, table = masks.pack(mask, None)
    assert np.array_equal(masks.unpack(data, table, count), mask)
    assert data.size == -(-count // 8)


def test_two_of_four_takes_two_thirds_of_a_bit() -> None:
    mask = np.tile([True, False, True, False], 3000)
    data, _ = masks.pack(mask, Pattern(2, 4))
    assert data.size * 8 / mask.size == pytest.approx(2 / 3)


@given(pattern=st.sampled_from(PATTERNS))
def test_layouts_are_all_arrangements_once(pattern: Pattern) -> None:
    layouts = pattern.layouts()
    assert len({tuple(each) for each in layouts}) == len(layouts) == pattern.arrangements
    assert pattern.arrangements == sum(1 for _ in combinations(range(pattern.size), pattern.kept))
    assert (layouts.sum(axis=1) == pattern.kept).all()


@pytest.mark.parametrize("text", ["", "2", "4:4", "0:4", "5:4", "2:17", "2:4:8", "-2:4", "two:four", "124", "٢:4"])
def test_patterns_that_say_nothing_are_refused_with_a_hint(text: str) -> None:
    with pytest.raises(PassFailed, match="pattern") as refused:
        masks.read_pattern(text)
    assert refused.value.hint


@given(seed=SEEDS, share=st.floats(0.01, 0.99), outputs=st.integers(1, 12), inputs=st.sampled_from((7, 64, 150, 300)))
def test_share_that_goes_is_exact_and_what_magnitude_removes_is_the_smallest(
    seed: int, share: float, outputs: int, inputs: int
) -> None:
    rows = np.random.default_rng(seed).normal(size=(outputs, inputs)).astype(np.float32)
    kept = sparsify.magnitude(rows, Removal(share))
    assert (~kept).sum() == round(share * rows.size)
    if (~kept).any() and kept.any():
        assert np.abs(rows[~kept]).max() <= np.abs(rows[kept]).min()


@settings(max_examples=20)
@given(seed=SEEDS, share=st.floats(0.05, 0.95), inputs=st.sampled_from((9, 100, 150)))
def test_reconstruction_removes_exactly_the_share_and_leaves_zeros_there(seed: int, share: float, inputs: int) -> None:
    rows, _, moments = layer(seed, 5, inputs)
    kept, left = sparsify.reconstructed(rows, moments, Removal(share))
    assert (~kept).sum() == round(share * rows.size)
    assert (left[~kept] == 0).all()
    assert np.isfinite(left).all()


@settings(max_examples=20)
@given(seed=SEEDS, pattern=st.sampled_from((Pattern(2, 4), Pattern(1, 3), Pattern(4, 8), Pattern(1, 2))))
def test_patterns_hold_in_every_group_with_and_without_reconstruction(seed: int, pattern: Pattern) -> None:
    inputs = 144
    rows, _, moments = layer(seed, 4, inputs)
    removal = grouped(pattern, inputs)
    for kept in (sparsify.magnitude(rows, removal), sparsify.reconstructed(rows, moments, removal)[0]):
        assert (kept.reshape(4, -1, pattern.size).sum(axis=-1) == pattern.kept).all()


@settings(max_examples=40)
@given(seed=SEEDS, share=st.floats(0.2, 0.8), patterned=st.booleans())
def test_reconstruction_changes_the_outputs_less_than_removal_does(seed: int, share: float, patterned: bool) -> None:
    rows, data, moments = layer(seed, 8, 64)
    removal = grouped(Pattern(2, 4), 64) if patterned else Removal(share)
    plain = np.where(sparsify.magnitude(rows, removal), rows, 0)
    _, left = sparsify.reconstructed(rows, moments, removal)
    errors = [float(np.square(data @ (each - rows).T).sum()) for each in (left, plain)]
    assert errors[0] < errors[1]
    assert compensate.noise(rows, left, moments) == pytest.approx(errors[0] / np.square(data @ rows.T).sum(), rel=1e-2)


@settings(max_examples=20)
@given(seed=SEEDS, bits=st.sampled_from((2, 4, 8)))
def test_rounded_weights_are_levels_where_they_are_left_and_zero_elsewhere(seed: int, bits: int) -> None:
    rows, _, moments = layer(seed, 6, 96)
    kept, left = sparsify.reconstructed(rows, moments, Removal(0.5))
    grid = codebook.fit_palette(left, 1 << bits, block=96, weights=kept.astype(np.float32))
    found = sparsify.rounded(rows, moments, kept, grid)
    assert (found[~kept] == 0).all()
    assert np.array_equal(np.where(kept, grid.decode(grid.encode(found)), 0), found)


@given(seed=SEEDS, share=st.floats(0.05, 0.9))
def test_layers_share_what_goes_and_together_lose_it(seed: int, share: float) -> None:
    random = np.random.default_rng(seed)
    weights = {str(number): (random.normal(size=(20, 40)) * 10.0**number).astype(np.float32) for number in range(-2, 3)}
    weights["heavy"] = random.standard_t(2, (20, 40)).astype(np.float32)
    shares = sparsify.layer_shares(weights, share)
    lost = sum(shares[name] * rows.size for name, rows in weights.items())
    assert lost == pytest.approx(share * sum(rows.size for rows in weights.values()), rel=0.02, abs=2)
    # The scale of a layer says nothing about it; a layer of few large weights can lose more.
    assert shares["heavy"] >= max(shares[str(number)] for number in range(-2, 3)) - 0.1


@given(shape=st.sampled_from([(8, 12, 3, 3), (8, 12), (8, 12, 1, 1), (8, 12, 5)]))
def test_groups_are_neighbouring_channels_at_one_place_of_the_kernel(shape: tuple[int, ...]) -> None:
    groups = sparsify.column_groups(shape, 0, Pattern(2, 4))
    assert groups is not None
    places = int(np.prod(shape[2:]))
    columns = np.arange(int(np.prod(shape[1:]))).reshape(shape[1], places)
    channel, place = groups // places, groups % places
    assert (channel == channel[:, :1] + np.arange(4)).all()
    assert (place == place[:, :1]).all()
    assert np.array_equal(np.sort(groups, axis=None), np.sort(columns, axis=None))
    assert sparsify.column_groups((8, 3, 3, 3), 0, Pattern(2, 4)) is None


def test_smallest_layers_stay_up_to_their_share() -> None:
    sizes = {"a": 10, "b": 900, "c": 30, "d": 60}
    assert sparsify.smallest(sizes, 0.05) == {"a", "c"}
    assert sparsify.smallest(sizes, 0.0) == frozenset()


def test_zeros_are_found_only_where_they_are_many_and_follow_the_pattern() -> None:
    rows, _, _ = layer(1, 4, 16)
    assert sparsify.found(rows, Removal(0.5)) is None
    holes = rows.copy()
    holes[:, ::2] = 0
    assert sparsify.found(holes, Removal(0.6)) is None
    kept = sparsify.found(holes, Removal(0.5))
    assert kept is not None
    assert np.array_equal(kept, holes != 0)
    assert sparsify.found(holes, grouped(Pattern(2, 4), 16)) is not None
    assert sparsify.found(holes, grouped(Pattern(1, 4), 16)) is None
