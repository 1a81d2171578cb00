from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeopt.graph import detections
from edgeopt.stages import judges

LOGITS = arrays.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(2, 12)), elements=st.floats(-20, 20))


@given(LOGITS)
def test_softmax_rows_are_probabilities(logits) -> None:
    rows = judges.class_probabilities(logits, "logits")
    assert np.allclose(rows.sum(axis=1), 1.0)
    assert (rows >= 0).all()


@given(LOGITS)
def test_original_against_itself_loses_nothing(logits) -> None:
    rows = judges.class_probabilities(logits, "logits")
    change = judges.class_change(rows, rows)
    assert (change.drop, change.same_top1, change.margin_change) == (0.0, 1.0, 0.0)
    assert abs(change.divergence) < 1e-12


@given(LOGITS, st.integers(0, 1000))
def test_expected_drop_is_between_nothing_and_everything(logits, seed) -> None:
    first = judges.class_probabilities(logits, "logits")
    second = judges.class_probabilities(logits + np.random.default_rng(seed).normal(size=logits.shape), "logits")
    assert 0.0 <= judges.class_change(first, second).drop <= 1.0


def test_flip_between_two_likely_classes_costs_little_and_a_confident_one_much() -> None:
    candidate = np.array([[0.1, 0.9]])
    unsure = judges.class_change(np.array([[0.51, 0.49]]), candidate).drop
    sure = judges.class_change(np.array([[0.95, 0.05]]), candidate).drop
    assert unsure == pytest.approx(0.02)
    assert sure == pytest.approx(0.9)


def test_no_change_of_margins_means_no_risk_of_flips() -> None:
    assert judges.flip_risk(np.array([0.1, 3.0]), np.zeros(2)).tolist() == [0.0, 0.0]


@given(st.floats(0.1, 5), st.floats(0.1, 5))
def test_flips_are_likelier_where_the_margin_is_smaller(margin, spread) -> None:
    near, far = judges.flip_risk(np.array([margin, 2 * margin]), np.array([spread, spread]))
    assert near >= far


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 8)), elements=st.floats(-9, 9, width=32)))
def test_cosine_does_not_see_scale(vectors) -> None:
    drop = judges.cosine_drop(vectors, vectors * np.float32(2))
    assert abs(drop) < 1e-6


def test_zero_vector_against_another_is_a_full_drop() -> None:
    assert judges.cosine_drop(np.zeros((1, 3)), np.ones((1, 3))) == 1.0


def test_noise_of_a_tenth_is_one_percent_of_the_power() -> None:
    original = np.ones((2, 5))
    noise, signal = judges.noise_and_signal(original, original + 0.1)
    assert noise / signal == pytest.approx(0.01)


def test_masks_overlap_by_intersection_over_union() -> None:
    first, second = np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.0, 1.0, 1.0, 0.0])
    assert judges.mask_overlap(first, second) == pytest.approx(1 / 3)
    assert judges.mask_overlap(first * 0, second * 0) == 1.0


def _detector_output() -> np.ndarray:
    random = np.random.default_rng(0)
    rows = np.concatenate([random.uniform(0, 400, (100, 4)), random.uniform(0, 0.01, (100, 2))], axis=1)
    rows[3, 4:] = 0.9
    return rows[None]


def test_detector_table_is_recognised_in_both_layouts() -> None:
    table = _detector_output()
    assert detections.detection_layout(table) == detections.DetectionLayout(transposed=False)
    assert detections.detection_layout(table.transpose(0, 2, 1)) == detections.DetectionLayout(transposed=True)
    assert detections.detection_layout(np.zeros((1, 100, 6))) is None


def test_lost_score_is_seen_although_the_coordinates_drown_it() -> None:
    original = _detector_output()
    candidate = original.copy()
    candidate[0, 3, 4:] = 0.0
    parts = judges.detection_noise(detections.DetectionLayout(transposed=False), original, candidate)
    assert parts["boxes"][0] == 0.0
    assert parts["scores"][0] / parts["scores"][1] > 0.5
    plain = judges.noise_and_signal(original, candidate)
    assert plain[0] / plain[1] < 1e-4


def test_second_class_below_the_resolution_of_a_quantized_softmax_is_no_change_of_the_margin() -> None:
    sharp = judges.class_change(np.array([[0.9999, 0.0001]]), np.array([[1.0, 0.0]]))
    assert np.isnan(sharp.margin_change)
    flipped = judges.class_change(np.array([[0.9, 0.1]]), np.array([[0.0, 1.0]]))
    assert flipped.margin_change > 50.0


def test_unseen_changes_are_like_the_seen_ones_unless_those_are_too_few() -> None:
    margins, changes = np.full(20, 4.0), np.full(20, 0.1)
    changes[10:] = np.nan
    assert judges.flip_risk(margins, changes).max() < 0.001
    changes[4:] = np.nan
    assert judges.flip_risk(margins, changes).min() > 0.1
