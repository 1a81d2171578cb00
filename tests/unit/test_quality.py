from __future__ import annotations

import numpy as np
import pytest

from edgeopt.errors import BadData, MeasureFailed
from edgeopt.policy import Goal
from edgeopt.records import DataOrigin, Signature, StatePair, TensorSpec
from edgeopt.stages import forms, quality, reference
from edgeopt.stages.frames import write_frame


class Inputs:
    """Samples made of arrays, for models that are plain functions."""

    def __init__(self, arrays: np.ndarray, labels=None, origin: str = "drop") -> None:
        self.arrays, self.labels = arrays, labels
        self.origin = DataOrigin(sha256="0", samples=len(arrays), origin=origin)

    def __len__(self) -> int:
        return len(self.arrays)

    def feeds(self, index: int) -> dict[str, np.ndarray]:
        return {"x": self.arrays[index : index + 1], **({"h": np.zeros((1, 1), np.float32)} if self.stateful else {})}

    stateful = False


def _signature(outputs: dict[str, tuple[int, ...]], states=()) -> Signature:
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 4))
    return Signature(
        format="onnx",
        opset=17,
        inputs=(spec,),
        outputs=tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in outputs.items()),
        operators=(),
        states=states,
    )


def _reference(tmp_path, model, samples, signature, ends=None):
    class Original:
        run = staticmethod(model)

    return reference.make(Original(), samples, signature, ends or {}, tmp_path)


WEIGHTS = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)


def _classifier(feeds):
    return [feeds["x"] @ WEIGHTS]


def _noisy(scale: float):
    def run(feeds):
        noise = np.random.default_rng(int(abs(feeds["x"].sum()) * 1e4)).normal(size=(1, 5))
        return [feeds["x"] @ WEIGHTS + np.float32(scale) * noise.astype(np.float32)]

    return run


def _inputs(count: int = 200, labels=None, origin: str = "drop") -> Inputs:
    return Inputs(np.random.default_rng(1).normal(size=(count, 4)).astype(np.float32) * 3, labels, origin)


LOGITS = _signature({"logits": (1, 5)})


def test_unlabelled_classes_are_judged_by_expected_drop_and_called_agreement(tmp_path) -> None:
    found = quality.judge(_reference(tmp_path, _classifier, _inputs(), LOGITS), _noisy(0.05), Goal(), seed=0)
    assert (found.kind, found.metric, found.samples) == ("agreement", "expected_drop", 200)
    assert 0 <= found.drop < 0.01
    assert found.ci95[1] > 0
    assert dict(found.details)["top1_agreement"] > 0.9


def test_agreement_where_the_original_is_confident_is_reported_with_how_often_that_was(tmp_path) -> None:
    inputs = _inputs()
    logits = inputs.arrays @ WEIGHTS
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    confident = int((odds.max(axis=1) / odds.sum(axis=1) > 0.5).sum())
    found = quality.judge(_reference(tmp_path, _classifier, inputs, LOGITS), _noisy(0.5), Goal(), seed=0)
    details = dict(found.details)
    assert 0 < confident < 200
    assert details["confident_samples"] == confident
    assert details["top1_agreement"] < details["confident_agreement"] <= 1.0


def test_enough_labels_turn_the_metric_into_accuracy(tmp_path) -> None:
    inputs = _inputs(400)
    inputs.labels = (inputs.arrays @ WEIGHTS).argmax(axis=1)
    found = quality.judge(_reference(tmp_path, _classifier, inputs, LOGITS), _noisy(3.0), Goal(), seed=0)
    assert (found.kind, found.metric) == ("accuracy", "accuracy")
    assert found.value == pytest.approx(1.0 - found.drop)
    assert found.drop > 0.05


@pytest.mark.parametrize("wrong", [-1, 5])
def test_labels_that_name_no_class_of_the_output_are_refused(tmp_path, wrong) -> None:
    inputs = _inputs()
    inputs.labels = (inputs.arrays @ WEIGHTS).argmax(axis=1)
    inputs.labels[7] = wrong
    with pytest.raises(BadData, match=r"the labels go from .* has 5 classes") as refusal:
        _reference(tmp_path, _classifier, inputs, LOGITS)
    assert "counted from 0" in refusal.value.hint


def test_few_labels_leave_the_decision_to_the_expected_drop(tmp_path) -> None:
    inputs = _inputs(100)
    inputs.labels = (inputs.arrays @ WEIGHTS).argmax(axis=1)
    found = quality.judge(_reference(tmp_path, _classifier, inputs, LOGITS), _noisy(0.01), Goal(), seed=0)
    assert (found.kind, found.metric) == ("agreement", "expected_drop")
    assert dict(found.details)["accuracy_original"] == 1.0


def test_few_labels_still_veto_by_a_drop_that_was_seen(tmp_path) -> None:
    inputs = _inputs(100)
    inputs.labels = (inputs.arrays @ WEIGHTS).argmax(axis=1)
    found = quality.judge(_reference(tmp_path, _classifier, inputs, LOGITS), _noisy(3.0), Goal(), seed=0)
    assert (found.kind, found.metric) == ("accuracy", "accuracy")


@pytest.mark.parametrize(("lost", "metric"), [(2, "expected_drop"), (3, "accuracy")])
def test_two_lost_answers_among_few_labels_are_chance_and_three_are_a_veto(tmp_path, lost: int, metric: str) -> None:
    inputs = _inputs(120)
    inputs.labels = (inputs.arrays @ WEIGHTS).argmax(axis=1)
    scores = inputs.arrays @ WEIGHTS
    margins = np.sort(scores, axis=1)[:, -1] - np.sort(scores, axis=1)[:, -2]
    turned = {inputs.arrays[index].tobytes() for index in np.argsort(margins)[:lost]}

    def candidate(feeds):
        (given,) = _classifier(feeds)
        changed = given.copy()
        if feeds["x"].tobytes() in turned:
            first, second = np.argsort(-given[0])[:2]
            changed[0, [first, second]] = given[0, [second, first]]
        return [changed]

    found = quality.judge(_reference(tmp_path, _classifier, inputs, LOGITS), candidate, Goal(), seed=0)
    assert found.metric == metric
    assert dict(found.details)["accuracy"] == pytest.approx(1.0 - lost / 120)


def test_zero_flips_on_few_samples_still_leave_a_bound_where_margins_were_eaten(tmp_path) -> None:
    inputs = _inputs(12)
    held = _reference(tmp_path, _classifier, inputs, LOGITS)
    found = quality.judge(held, _noisy(0.3), Goal(), seed=0)
    assert found.ci95[1] > 1e-4


def test_identical_candidate_has_no_drop_and_no_bound(tmp_path) -> None:
    found = quality.judge(_reference(tmp_path, _classifier, _inputs(), LOGITS), _classifier, Goal(), seed=0)
    assert (found.drop, found.ci95) == (0.0, (0.0, 0.0))


def test_made_up_samples_are_called_synthetic_whatever_the_metric(tmp_path) -> None:
    held = _reference(tmp_path, _classifier, _inputs(origin="synthetic"), LOGITS)
    assert quality.judge(held, _classifier, Goal(), seed=0).kind == "synthetic"


def test_output_that_is_not_finite_is_refused(tmp_path) -> None:
    held = _reference(tmp_path, _classifier, _inputs(), LOGITS)
    with pytest.raises(MeasureFailed, match="not finite"):
        quality.judge(held, lambda feeds: [feeds["x"] @ WEIGHTS * np.float32(np.nan)], Goal(), seed=0)


def test_accuracy_without_labels_cannot_be_measured(tmp_path) -> None:
    held = _reference(tmp_path, _classifier, _inputs(), LOGITS)
    with pytest.raises(BadData, match="accuracy"):
        quality.judge(held, _classifier, Goal(metric="accuracy"), seed=0)


def test_worst_output_decides(tmp_path) -> None:
    signature = _signature({"good": (1, 2, 2), "bad": (1, 2, 2)})

    def model(feeds, error=0.0):
        grid = feeds["x"].reshape(1, 2, 2)
        return [grid, grid * np.float32(1 + error)]

    held = _reference(tmp_path, model, _inputs(), signature)
    found = quality.judge(held, lambda feeds: model(feeds, 0.2), Goal(), seed=0)
    assert found.metric == "nsr"
    assert found.drop == pytest.approx(0.04, rel=0.05)
    assert dict(found.details)["nsr[good]"] == 0.0


def test_states_carry_their_errors_through_a_sequence(tmp_path) -> None:
    signature = _signature({"y": (1, 1, 1), "hn": (1, 1)}, states=(StatePair(input="h", output="hn"),))

    def model(feeds, drift=0.0):
        state = feeds["h"] + np.float32(1.0 + drift)
        return [state.reshape(1, 1, 1), state]

    inputs = _inputs(32)
    inputs.stateful = True
    held = _reference(tmp_path, model, inputs, signature)
    carried = [float(outputs[0].item()) for outputs in held.outputs()]
    assert carried[:3] == [1.0, 2.0, 3.0]
    assert [form.kind for form in held.forms] == ["dense", "state"]
    found = quality.judge(held, lambda feeds: model(feeds, 0.1), Goal(), seed=0)
    assert found.drop == pytest.approx(0.01, rel=0.05)


def test_changed_output_shape_of_a_classifier_is_refused(tmp_path) -> None:
    held = _reference(tmp_path, _classifier, _inputs(), LOGITS)
    with pytest.raises(MeasureFailed, match="shape"):
        quality.judge(held, lambda feeds: [np.zeros((1, 4), np.float32)], Goal(), seed=0)


@pytest.mark.parametrize(
    ("name", "end", "rows", "kind"),
    [
        ("y", (), [[0.2, 0.8]], "classes"),
        ("logits", (), [[2.0, -1.0, 4.0]], "classes"),
        ("y", ("Gemm",), [[2.0, -1.0, 4.0]], "classes"),
        ("y", ("ReduceMean", "Conv"), [[2.0, -1.0, 4.0]], "classes"),
        ("y", ("ReduceMean", "Add"), [[2.0, -1.0, 4.0]], "embedding"),
        ("y", ("Gemm",), [[0.6, 0.8]], "embedding"),
        ("y", ("Sigmoid",), [[0.3]], "classes"),
        ("y", ("Mul",), [[0.3]], "dense"),
    ],
)
def test_form_of_an_output_follows_the_written_rules(name, end, rows, kind) -> None:
    found = forms.recognise(_signature({name: (1, 2)}), {name: end}, [[np.array(rows, np.float32)]], labelled=False)
    assert found[0].kind == kind


def test_map_whose_width_varies_from_sample_to_sample_is_dense() -> None:
    outputs = [[np.ones((1, 4, width), np.float32)] for width in (3, 5)]
    assert forms.recognise(_signature({"y": (1, 4, 3)}), {"y": ("Conv",)}, outputs, labelled=False)[0].kind == "dense"


def test_integer_output_is_compared_element_by_element(tmp_path) -> None:
    signature = _signature({"label": (1,)})
    held = _reference(tmp_path, lambda feeds: [np.array([1])], _inputs(100), signature)
    found = quality.judge(held, lambda feeds: [np.array([int(feeds["x"][0, 0] > 0)])], Goal(), seed=0)
    assert found.metric == "agreement"
    assert found.ci95[0] < found.drop < found.ci95[1]


def test_samples_beyond_the_cap_are_spread_evenly() -> None:
    indices = reference.spread(2000, 512, ordered=False)
    assert (len(indices), indices[0], indices[-1]) == (512, 0, 1999)
    assert reference.spread(2000, 512, ordered=True) == tuple(range(512))


def test_frames_keep_arrays_exactly(tmp_path) -> None:
    from edgeopt.stages.frames import read_frame

    arrays = [
        np.arange(6, dtype=np.float16).reshape(2, 3),
        np.array(3, np.int64),
        np.zeros((0, 4)),
        np.array(["a", "bc"]),
    ]
    with (tmp_path / "frames").open("wb") as stream:
        write_frame(stream, {"kind": "x"}, arrays)
    with (tmp_path / "frames").open("rb") as stream:
        header, back = read_frame(stream)
    assert header == {"kind": "x"}
    assert all(np.array_equal(one, two) and one.dtype == two.dtype for one, two in zip(arrays, back, strict=True))
