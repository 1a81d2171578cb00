"""Arithmetic of reconstruction and of second-order saliency, held against their definitions."""

from __future__ import annotations

import builders
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.calibrate import importance, regression, saliency
from edgeopt.calibrate.activity import Activity
from edgeopt.calibrate.consumers import consumers
from edgeopt.calibrate.regression import Sums, best
from edgeopt.calibrate.saliency import Reader, greedy

SEEDS = st.integers(0, 10_000)


def correlated(random: np.random.Generator, rows: int, width: int) -> np.ndarray:
    mixing = random.standard_normal((width, width)) * random.uniform(0.1, 2.0, (1, width))
    return (random.standard_normal((rows, width)) @ mixing + random.standard_normal(width)).astype(np.float32)


def sums(inputs: np.ndarray, targets: np.ndarray, *, constant: bool = True) -> Sums:
    made = Sums.empty(inputs.shape[1], targets.shape[1], constant=constant)
    for start in range(0, len(inputs), 7):
        made.add(inputs[start : start + 7], targets[start : start + 7])
    return made


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=SEEDS, width=st.integers(1, 9), outputs=st.integers(1, 5), constant=st.booleans())
def test_error_of_the_sums_is_the_error_of_the_rows(seed: int, width: int, outputs: int, constant: bool) -> None:
    random = np.random.default_rng(seed)
    inputs, targets = correlated(random, 40, width), correlated(random, 40, outputs)
    weights = random.standard_normal((width + constant, outputs))
    given = inputs @ weights[:width] + (weights[-1] if constant else 0.0)
    expected = np.square(given - targets).sum()
    assert np.isclose(sums(inputs, targets, constant=constant).error(weights), expected, rtol=1e-4, atol=1e-3)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=SEEDS, width=st.integers(2, 9), outputs=st.integers(1, 4))
def test_small_ridge_finds_what_least_squares_finds(seed: int, width: int, outputs: int) -> None:
    random = np.random.default_rng(seed)
    inputs, targets = correlated(random, 200, width), correlated(random, 200, outputs)
    seen = sums(inputs, targets)
    start = random.standard_normal((width + 1, outputs))
    augmented = np.concatenate([inputs, np.ones((200, 1))], axis=1)
    solution, *_ = np.linalg.lstsq(augmented, targets.astype(np.float64), rcond=None)
    assert seen.error(seen.fitted(start, 1e-9)) <= np.square(augmented @ solution - targets).sum() * 1.001 + 1e-2


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=SEEDS, width=st.integers(1, 8), ridge=st.sampled_from((1e-4, 1e-2, 1.0)))
def test_refitting_never_errs_more_on_its_own_rows(seed: int, width: int, ridge: float) -> None:
    random = np.random.default_rng(seed)
    seen = sums(correlated(random, 30, width), correlated(random, 30, 3))
    start = random.standard_normal((width + 1, 3))
    level = seen.error(seen.levelled(start))
    assert level <= seen.error(start) * 1.0001 + 1e-3
    assert seen.error(seen.fitted(start, ridge)) <= level * 1.0001 + 1e-3


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=SEEDS, width=st.integers(1, 8))
def test_large_ridge_keeps_the_weights_and_only_levels_the_mean(seed: int, width: int) -> None:
    random = np.random.default_rng(seed)
    seen = sums(correlated(random, 50, width), correlated(random, 50, 2))
    start = random.standard_normal((width + 1, 2))
    np.testing.assert_allclose(seen.fitted(start, 1e9), seen.levelled(start), atol=1e-4, rtol=1e-3)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=SEEDS, width=st.integers(1, 12), rows=st.integers(1, 12))
def test_what_is_chosen_never_errs_more_on_the_held_out_rows_than_plain_removal(
    seed: int, width: int, rows: int
) -> None:
    random = np.random.default_rng(seed)
    fit, held = (sums(correlated(random, rows, width), correlated(random, rows, 2)) for _ in range(2))
    found = best(fit, held, random.standard_normal((width + 1, 2)))
    assert found.gain <= 1.0
    assert (found.how == "plain") == (found.gain == 1.0)


def test_what_stays_apart_chooses_the_refit_but_is_not_fitted() -> None:
    random = np.random.default_rng(3)
    inputs = correlated(random, 400, 6)
    targets = inputs @ random.standard_normal((6, 2)).astype(np.float32)
    fit, held = sums(inputs[:300], targets[:300]), sums(inputs[300:], targets[300:] + 1.0)
    weights = np.zeros((7, 2))
    apart, whole = best(fit, held, weights, apart=True), best(fit, held, weights)
    assert apart.how == whole.how == "least squares"
    assert held.error(whole.weights) < held.error(apart.weights)
    assert fit.error(apart.weights) < fit.error(whole.weights)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=SEEDS, units=st.integers(2, 6), size=st.integers(1, 3))
def test_cost_of_one_removal_is_what_refitting_all_others_leaves(seed: int, units: int, size: int) -> None:
    random = np.random.default_rng(seed)
    width = units * size
    inputs = correlated(random, 400, width).astype(np.float64)
    covariance = np.cov(inputs.T, bias=True).reshape(width, width)
    rows = random.standard_normal((3, width)).astype(np.float32)
    columns = [np.arange(unit * size, (unit + 1) * size) for unit in range(units)]
    reader = Reader.of(rows, covariance, columns)
    damped = saliency.damped(covariance)
    power = np.einsum("oi,oi->", rows @ covariance, rows)
    for unit, cost in enumerate(reader.costs(range(units))):
        kept = np.setdiff1d(np.arange(width), columns[unit])
        gone = columns[unit]
        # what no weights on the kept inputs can explain of the columns that go
        rest = damped[np.ix_(gone, gone)]
        if kept.size:
            rest = rest - damped[np.ix_(gone, kept)] @ np.linalg.solve(
                damped[np.ix_(kept, kept)], damped[np.ix_(kept, gone)]
            )
        expected = np.einsum("oi,oi->", rows[:, gone] @ rest, rows[:, gone]) / power
        assert np.isclose(cost, expected, rtol=1e-4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=SEEDS, units=st.integers(2, 10))
def test_deeper_ranking_begins_with_the_shallower_one(seed: int, units: int) -> None:
    random = np.random.default_rng(seed)
    covariance = np.cov(correlated(random, 60, units).T, bias=True).reshape(units, units)
    rows = random.standard_normal((4, units)).astype(np.float32)
    columns = [np.asarray([unit]) for unit in range(units)]

    def order(depth: int) -> list[int]:
        return np.argsort(greedy([Reader.of(rows, covariance, columns)], units, depth), kind="stable").tolist()

    deep = order(units - 1)
    for depth in range(1, units):
        assert order(depth)[:depth] == deep[:depth]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=SEEDS, size=st.integers(1, 3), lazy=st.sampled_from([1, 4, 48]))
def test_lazy_removal_costs_what_removal_from_scratch_costs(seed: int, size: int, lazy: int) -> None:
    random = np.random.default_rng(seed)
    units = 12
    width = units * size
    covariance = np.cov(correlated(random, 4 * width, width).T, bias=True)
    rows = random.standard_normal((5, width)).astype(np.float32)
    columns = [np.sort(each) for each in random.permutation(width).reshape(units, size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saliency, "_LAZY", lazy)
        scores = greedy([Reader.of(rows, covariance, columns)], units, units - 1)
    damped, power = saliency.damped(covariance), np.einsum("oi,oi->", rows @ covariance, rows)
    alive, lost, highest = list(range(units)), 0.0, 0.0
    for unit in np.argsort(scores, kind="stable")[:-1]:
        alive.remove(int(unit))
        kept = np.concatenate([columns[each] for each in alive])
        # what the weights on the kept columns, refitted, cannot explain of all that the layer gave
        explained = damped[:, kept] @ np.linalg.solve(damped[np.ix_(kept, kept)], damped[kept])
        missed = float(np.einsum("oi,oi->", rows @ (damped - explained), rows) / power)
        highest = max(highest, missed - lost)  # a later removal never scores below an earlier one
        assert np.isclose(scores[unit], highest, rtol=1e-3, atol=1e-6)
        lost = missed


def test_large_means_do_not_drown_the_variance_that_a_ranking_goes_by() -> None:
    model = builders.mlp()
    known = consumers(model)
    evidence = builders.FakeEvidence(model, samples=16)
    shifted = [{name: array + np.float32(3e3) for name, array in each.items()} for each in evidence._samples]
    plain = importance._covariances(model, list(known.values())[:1], evidence)
    evidence._samples = shifted
    again = importance._covariances(model, list(known.values())[:1], evidence)
    for name, covariance in plain.items():
        np.testing.assert_allclose(again[name], covariance, rtol=0.02, atol=0.01 * np.abs(covariance).max())


@given(lowest=st.integers(0, len(regression.RIDGES) - 1), slope=st.floats(0.1, 10.0))
def test_walk_over_the_pulls_finds_the_lowest_and_tries_no_more_than_it_must(lowest: int, slope: float) -> None:
    tried = []

    def error(ridge: float) -> float:
        tried.append(ridge)
        return slope * abs(regression.RIDGES.index(ridge) - lowest)

    assert regression._best_ridge(error) == (regression.RIDGES[lowest], 0.0)
    assert len(tried) == len(set(tried)) <= 4


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=SEEDS, batches=st.integers(1, 4))
def test_activity_does_not_depend_on_how_the_rows_were_cut(seed: int, batches: int) -> None:
    random = np.random.default_rng(seed)
    rows = np.maximum(correlated(random, 48, 5), 0)
    whole, cut = Activity(), Activity()
    whole.add(rows)
    for part in np.array_split(rows, batches):
        cut.add(part)
    np.testing.assert_allclose(cut.variance, rows.astype(np.float64).var(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(cut.zeros, (rows <= 0).mean(axis=0))
    np.testing.assert_allclose(cut.entropy, whole.entropy, atol=1e-9)
    assert (cut.counts.sum(axis=1) == len(rows)).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=SEEDS, largest=st.floats(1.0, 1e6))
def test_no_row_counts_for_more_than_a_few_of_middling_power(seed: int, largest: float) -> None:
    random = np.random.default_rng(seed)
    targets = [correlated(random, 20, 4) for _ in range(3)]
    targets[1][3] *= largest
    shares = regression.shares_of(targets)
    powers = np.concatenate([np.square(each).sum(axis=1) for each in targets])
    counted = np.concatenate([share.ravel() for share in shares]) * powers
    assert counted.max() <= regression.OUTLYING * np.median(powers) * 1.001
    assert all(((share > 0) & (share <= 1)).all() for share in shares)
    ordinary = powers <= regression.OUTLYING * np.median(powers) * 0.999
    assert (np.concatenate([share.ravel() for share in shares])[ordinary] == 1).all()


def test_rows_that_count_half_are_rows_that_come_half_as_often() -> None:
    random = np.random.default_rng(0)
    inputs, targets = correlated(random, 30, 4), correlated(random, 30, 2)
    weighed, repeated = (Sums.empty(4, 2, constant=True) for _ in range(2))
    weighed.add(inputs, targets, np.where(np.arange(30)[:, None] < 10, 0.5, 1.0).astype(np.float32))
    repeated.add(inputs, targets)
    repeated.add(inputs[10:], targets[10:])
    start = random.standard_normal((5, 2))
    assert np.isclose(2 * weighed.error(start), repeated.error(start), rtol=1e-4)
    np.testing.assert_allclose(weighed.fitted(start, 1e-3), repeated.fitted(start, 1e-3), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(weighed.levelled(start), repeated.levelled(start), rtol=1e-3, atol=1e-4)


def test_a_massive_activation_does_not_cost_the_other_rows_their_fit() -> None:
    """One row in two hundred is three hundred times as large as the others, as a transformer's separator token is."""
    random = np.random.default_rng(1)
    inputs = random.standard_normal((200, 6)).astype(np.float32)
    targets = (inputs @ random.standard_normal((6, 3))).astype(np.float32)
    inputs[17], targets[17] = inputs[17] * 100, random.standard_normal(3) * 1000
    others = np.arange(200) != 17
    errors = []
    for shares in (None, regression.shares_of([targets])[0]):
        seen = Sums.empty(6, 3, constant=False)
        seen.add(inputs, targets, shares)
        fitted = seen.fitted(np.zeros((6, 3)), 1e-6)
        errors.append(np.square(inputs[others] @ fitted - targets[others]).mean() / np.square(targets[others]).mean())
    alike, weighed = errors
    assert weighed < 0.1 < alike
