from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.records import DataOrigin
from edgeopt.stages import data


class Numbered:
    def __init__(self, count: int, origin: str = "drop") -> None:
        self.count, self.labels = count, np.arange(count)
        self.origin = DataOrigin(sha256="0", samples=count, origin=origin)

    def __len__(self) -> int:
        return self.count

    def feeds(self, index: int) -> dict[str, np.ndarray]:
        return {"x": np.array([index])}


MADE_UP = Numbered(4, "synthetic")


def _indices(samples) -> list[int]:
    return [int(samples.feeds(index)["x"][0]) for index in range(len(samples))]


@given(st.integers(2, 300), st.booleans(), st.booleans())
def test_lone_set_is_divided_without_overlap_and_without_loss(count, is_calibration, ordered) -> None:
    given_set = Numbered(count)
    pair = (given_set, None) if is_calibration else (None, given_set)
    assigned = data.assign(*pair, MADE_UP, ordered=ordered)
    calibrating, judging = _indices(assigned.calibration), _indices(assigned.eval)
    if count >= 3:
        assert sorted(calibrating + judging) == list(range(count))
    assert not assigned.synthetic


def test_both_sets_serve_their_purpose() -> None:
    first, second = Numbered(3), Numbered(5)
    assigned = data.assign(first, second, MADE_UP, ordered=False)
    assert assigned.calibration is first
    assert assigned.eval is second


def test_nothing_given_is_synthetic() -> None:
    assert data.assign(None, None, MADE_UP, ordered=False).synthetic


def test_one_sample_serves_both_purposes() -> None:
    assigned = data.assign(Numbered(1), None, MADE_UP, ordered=False)
    assert (len(assigned.calibration), len(assigned.eval)) == (1, 1)


def test_labels_follow_their_samples() -> None:
    judging = data.assign(None, Numbered(30), MADE_UP, ordered=False).eval
    assert judging.labels is not None
    assert judging.labels.tolist() == _indices(judging)
