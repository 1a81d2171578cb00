"""What the student is shown: views that repeat, batches of one shape, the teacher asked once."""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'edgeopt[train]'")

from edgeopt.calibrate.regression import is_held_out  # noqa: E402 - torch may be missing
from edgeopt.errors import PassFailed  # noqa: E402
from edgeopt.training import inputs  # noqa: E402
from edgeopt.training.course import Course  # noqa: E402
from edgeopt.training.lesson import Lesson  # noqa: E402
from edgeopt.training.replay import Replay  # noqa: E402
from edgeopt.training.shelf import Shelf  # noqa: E402
from edgeopt.training.teacher import engage  # noqa: E402

RANDOM = np.random.default_rng(3)


def shelf_of(rows) -> Shelf:
    shelf = Shelf(None)
    for row in rows:
        shelf.add(row)
    return shelf


def pictures(count: int, *, side: int = 16):
    return [{"image": RANDOM.standard_normal((1, 3, side, side)).astype(np.float32) + 2.0} for _ in range(count)]


def tokens(count: int):
    rows = []
    for index in range(count):
        ids = RANDOM.integers(5, 50, (1, 12)).astype(np.int64)
        mask = np.ones((1, 12), np.int64)
        ids[0, 12 - index % 4 :], mask[0, 12 - index % 4 :] = 0, 0
        rows.append({"tokens": ids, "mask": mask})
    return rows


def test_shelf_gives_back_what_it_was_given_from_memory_and_from_disk(tmp_path: Path) -> None:
    rows = [*pictures(4), {"scalar": np.array(3, np.int64), "empty": np.zeros((0, 2), np.float32)}]
    with Shelf(tmp_path / "rows", memory_bytes=rows[0]["image"].nbytes) as shelf:
        for row in rows:
            shelf.add(row)
        assert (tmp_path / "rows").stat().st_size >= 3 * rows[0]["image"].nbytes
        for index in (4, 0, 3, 1, 2):
            assert set(shelf[index]) == set(rows[index])
            for name, array in shelf[index].items():
                np.testing.assert_array_equal(array, rows[index][name])
                assert array.dtype == rows[index][name].dtype and array.shape == rows[index][name].shape
        digest = shelf.digest()
    assert not (tmp_path / "rows").exists()
    assert digest == shelf_of(rows).digest()


def test_calibration_shows_the_samples_as_they_are() -> None:
    rows = pictures(4)
    views = inputs.Views(shelf_of(rows), [1, 3], kind="calibration", pools=8, seed=0)
    assert views.pools == 1 and len(views) == 2
    np.testing.assert_array_equal(views.feeds(0, 1)["image"], rows[3]["image"])


@pytest.mark.parametrize("kind", ["mixed", "noise"])
@pytest.mark.parametrize("make", [pictures, tokens])
def test_view_is_the_same_whenever_it_is_asked_for_and_another_in_every_pool(kind: str, make) -> None:
    rows = make(6)
    views = inputs.Views(shelf_of(rows), range(6), kind=kind, pools=4, seed=0)
    again = inputs.Views(shelf_of(rows), range(6), kind=kind, pools=4, seed=0)
    name = next(iter(rows[0]))
    changed = 0
    for pool in range(4):
        for position in range(6):
            view = views.feeds(pool, position)
            for key, array in view.items():
                np.testing.assert_array_equal(array, again.feeds(pool, position)[key])
                assert array.shape == rows[position][key].shape and array.dtype == rows[position][key].dtype
            changed += not np.array_equal(view[name], rows[position][name])
    assert changed >= (14 if kind == "mixed" else 22)  # of 18 and 24: a mixed pool 0 holds the samples themselves
    if kind == "mixed":
        np.testing.assert_array_equal(views.feeds(0, 2)[name], rows[2][name])


def test_another_seed_gives_other_views() -> None:
    rows = pictures(3)
    one, other = (inputs.Views(shelf_of(rows), range(3), kind="noise", pools=2, seed=seed) for seed in (0, 1))
    assert not np.array_equal(one.feeds(0, 0)["image"], other.feeds(0, 0)["image"])


def test_noise_has_each_channels_mean_and_deviation() -> None:
    rows = [
        {"image": row["image"] * np.array([1, 5, 0.1], np.float32).reshape(1, 3, 1, 1)} for row in pictures(8, side=32)
    ]
    views = inputs.Views(shelf_of(rows), range(8), kind="noise", pools=1, seed=0)
    real = np.concatenate([row["image"] for row in rows])
    made = np.concatenate([views.feeds(0, position)["image"] for position in range(8)])
    np.testing.assert_allclose(made.mean(axis=(0, 2, 3)), real.mean(axis=(0, 2, 3)), rtol=0.05)
    np.testing.assert_allclose(made.std(axis=(0, 2, 3)), real.std(axis=(0, 2, 3)), rtol=0.05)


def test_views_of_text_keep_the_padding_and_the_mask() -> None:
    rows = tokens(8)
    views = inputs.Views(shelf_of(rows), range(8), kind="mixed", pools=6, seed=0)
    seen = {int(token) for row in rows for token in row["tokens"].ravel()}
    for pool in range(6):
        for position, row in enumerate(rows):
            view = views.feeds(pool, position)
            np.testing.assert_array_equal(view["mask"], row["mask"])
            np.testing.assert_array_equal(view["tokens"] == 0, row["tokens"] == 0)
            assert {int(token) for token in view["tokens"].ravel()} <= seen


def test_views_of_pictures_stay_within_the_values_of_the_samples() -> None:
    rows = pictures(6)
    views = inputs.Views(shelf_of(rows), range(6), kind="mixed", pools=6, seed=0)
    low, high = (extreme([row["image"] for row in rows]) for extreme in (np.min, np.max))
    for pool in range(1, 6):
        for position in range(6):
            view = views.feeds(pool, position)["image"]
            assert low <= view.min() and view.max() <= high


def test_channels_last_pictures_are_flipped_along_their_columns() -> None:
    row = {"image": np.arange(2 * 12 * 10 * 3, dtype=np.float32).reshape(2, 12, 10, 3)}
    views = inputs.Views(shelf_of([row, row]), range(2), kind="mixed", pools=20, seed=0)
    colours = {tuple(pixel) for pixel in row["image"].reshape(-1, 3)}
    made = [views.feeds(pool, 0)["image"] for pool in range(1, 20)]
    # views that moved whole pixels keep each pixel's three values together
    moved = [view for view in made if {tuple(pixel) for pixel in view.reshape(-1, 3)} <= colours]
    assert len(moved) > 5


def test_unknown_inputs_are_refused() -> None:
    with pytest.raises(PassFailed, match="'dreams' are no inputs"):
        inputs.Views(shelf_of(pictures(1)), [0], kind="dreams", pools=1, seed=0)


def test_scalars_part_groups_and_stay_scalars_in_a_batch() -> None:
    rows = [{"x": np.ones((1, 2), np.float32), "rate": np.array(rate, np.int64)} for rate in (8, 16, 8)]
    assert inputs.groups(rows) == ((0, 2), (1,))
    batch = inputs.stack([rows[0], rows[2]])
    assert batch["x"].shape == (2, 2) and batch["rate"].shape == ()


class CountingEvidence(builders.FakeEvidence):
    """Counts how often the teacher is asked."""

    asked = 0

    def run(self, model, inputs, names):
        def counted():
            for feeds in inputs:
                self.asked += 1
                yield feeds

        return super().run(model, counted(), names)


def lesson_of(evidence: builders.FakeEvidence, folder: Path | None = None, **settings) -> Lesson:
    model = evidence.teacher
    return Lesson(model, Replay(model), engage(model, evidence), Course(**settings), folder=folder)


def test_teacher_is_asked_once_for_each_input_of_each_pool_and_not_before_it_is_wanted(tmp_path: Path) -> None:
    evidence = CountingEvidence(builders.conv_net(), samples=20)
    with lesson_of(evidence, tmp_path, inputs="mixed", pools=2, batch=4) as lesson:
        judged = evidence.asked
        assert judged == 5 and lesson.batches_in_epoch == 4
        list(lesson.parts(0))
        assert evidence.asked == judged + 4
        for step in range(30):
            list(lesson.parts(step))
        assert evidence.asked == judged + 2 * 15


def test_batches_hold_every_sample_once_an_epoch_and_only_one_shape() -> None:
    model = builders.depthwise_residual()
    evidence = builders.FakeEvidence(model, samples=0)
    evidence._samples = [builders.feeds(model, seed=index, symbols=4 + index % 3) for index in range(20)]
    evidence.sample_count = 20
    with lesson_of(evidence, batch=3, inputs="calibration") as lesson:
        expected = sum(len(evidence._samples[index]["image"]) for index in range(20) if not is_held_out(index))
        for epoch in range(2):
            rows = 0
            for number in range(lesson.batches_in_epoch):
                parts = list(lesson.parts(epoch * lesson.batches_in_epoch + number))
                assert sum(part.share for part in parts) == pytest.approx(1.0)
                assert len({tuple(part.feeds["image"].shape[1:]) for part in parts}) == 1
                rows += sum(len(part.feeds["image"]) for part in parts)
            assert rows == expected


def test_students_are_judged_by_the_samples_that_no_refit_has_fitted() -> None:
    evidence = builders.FakeEvidence(builders.conv_net(), samples=20)
    held = np.concatenate([evidence._samples[index]["image"] for index in range(20) if is_held_out(index)])
    with lesson_of(evidence, inputs="mixed", batch=3) as lesson:
        parts = list(lesson.judging())
    assert sum(part.share for part in parts) == pytest.approx(1.0)
    np.testing.assert_array_equal(np.concatenate([part.feeds["image"].numpy() for part in parts]), held)


def test_auto_mixes_pictures_and_leaves_everything_else_as_it_is() -> None:
    assert inputs.resolved("auto", pictures(1)[0]) == "mixed"
    assert inputs.resolved("auto", tokens(1)[0]) == "calibration"
    assert inputs.resolved("auto", {"rows": np.zeros((1, 64), np.float32)}) == "calibration"
    assert inputs.resolved("noise", pictures(1)[0]) == "noise"


def test_samples_stay_half_of_what_a_mixed_training_sees() -> None:
    views = inputs.Views(shelf_of(pictures(4)), range(4), kind="mixed", pools=3, seed=0)
    assert [views.pool_of(epoch) for epoch in range(8)] == [0, 1, 0, 2, 0, 1, 0, 2]
    noise = inputs.Views(shelf_of(pictures(4)), range(4), kind="noise", pools=3, seed=0)
    assert [noise.pool_of(epoch) for epoch in range(4)] == [0, 1, 2, 0]


def test_samples_that_a_course_takes_are_drawn_by_its_seed_and_keep_their_part_in_judging() -> None:
    evidence = builders.FakeEvidence(builders.conv_net(), samples=40)

    def taken(seed: int) -> tuple[set[int], set[int]]:
        """Numbers of the samples that train, and of those that judge."""
        samples = enumerate(evidence._samples)
        numbers = {row.tobytes(): number for number, sample in samples for row in sample["image"]}
        with lesson_of(evidence, inputs="calibration", batch=1, samples=12, seed=seed) as lesson:
            trained = [part for step in range(lesson.batches_in_epoch) for part in lesson.parts(step)]
            return tuple(  # type: ignore[return-value]  # two of them
                {numbers[row.numpy().tobytes()] for part in parts for row in part.feeds["image"]}
                for parts in (trained, list(lesson.judging()))
            )

    trained, judged = taken(seed=1)
    assert (len(trained), len(judged)) == (9, 3)
    assert max(trained | judged) >= 12, "the first twelve are no draw"
    assert all(map(is_held_out, judged)) and not any(map(is_held_out, trained))
    assert taken(seed=1) == (trained, judged)
    assert taken(seed=2) != (trained, judged)
