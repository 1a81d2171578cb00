"""Which loss an output gets, and that each is zero at the teacher, positive elsewhere, and what its paper says."""

from __future__ import annotations

import builders
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'edgeopt[train]'")

from edgeopt.errors import PassFailed  # noqa: E402 - torch may be missing
from edgeopt.graph import detections  # noqa: E402
from edgeopt.stages import judges  # noqa: E402
from edgeopt.training import losses  # noqa: E402

RANDOM = np.random.default_rng(0)
SCORES = RANDOM.standard_normal((6, 5)).astype(np.float32)


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def answers_of(model, count: int = 3):
    names = [str(value.name) for value in model.graph.outputs]
    return [
        dict(zip(names, builders.run(model, builders.feeds(model, seed=seed)), strict=True)) for seed in range(count)
    ]


@pytest.mark.parametrize(
    ("build", "kinds"),
    [
        (builders.conv_net, ["logits"]),
        (builders.mlp, ["probabilities"]),
        (builders.depthwise_residual, ["mse"]),
        (builders.bert_block, ["mse"]),
        (builders.lstm, ["mse", "mse"]),
    ],
)
def test_auto_takes_the_loss_that_fits_the_graphs_end(build, kinds) -> None:
    model = build()
    assert [term.kind for term in losses.terms(model, "auto", answers_of(model))] == kinds


@pytest.mark.parametrize(("rows", "outputs", "kind"), [([], 1, "binary"), ([4], 8, "mse")])
def test_sigmoids_are_taught_as_they_are_judged_one_as_classes_a_map_by_its_noise(rows, outputs, kind) -> None:
    net = builders.Net()
    net.op("Sigmoid", net.op("MatMul", "rows", net.weight(6, outputs)), output="share")
    model = net.build({"rows": ["N", *rows, 6]}, {"share": ["N", *rows, outputs]})
    assert [term.kind for term in losses.terms(model, "auto", answers_of(model))] == [kind]


@pytest.mark.parametrize("transposed", [False, True])
def test_detectors_table_is_taught_by_what_it_is_judged_by(transposed: bool) -> None:
    random = np.random.default_rng(1)

    def turned(table: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(table.transpose(0, 2, 1)) if transposed else table

    tables = []
    for _ in range(3):
        boxes, scores = random.uniform(0, 400, (1, 100, 4)), random.uniform(0, 0.5, (1, 100, 3)) ** 4
        tables.append(np.concatenate([boxes, scores], axis=2).astype(np.float32))
    student = [table + random.standard_normal(table.shape).astype(np.float32) * 0.01 for table in tables]
    model = builders.depthwise_residual()
    terms = losses.terms(model, "auto", [{"features": turned(table)} for table in tables])
    assert [term.kind for term in terms] == ["scores", "boxes"]
    found = losses.loss_of(
        terms,
        {"features": torch.from_numpy(turned(np.concatenate(student)))},
        {"features": torch.from_numpy(turned(np.concatenate(tables)))},
        temperature=1.0,
    )
    layout = detections.DetectionLayout(transposed)
    pairs = [
        judges.detection_noise(layout, turned(table), turned(ours)) for table, ours in zip(tables, student, strict=True)
    ]
    expected = sum(
        float(np.mean([pair[part][0] for pair in pairs]) / np.mean([pair[part][1] for pair in pairs]))
        for part in ("scores", "boxes")
    )
    assert float(found) == pytest.approx(expected, rel=1e-3)


def test_embedding_is_taught_by_its_direction_and_its_length() -> None:
    net = builders.Net()
    hidden = net.op("Relu", net.op("MatMul", "rows", net.weight(6, 8)))
    net.op("Mul", hidden, net.weight(8), output="embedding")
    model = net.build({"rows": ["N", 6]}, {"embedding": ["N", 8]})
    assert [term.kind for term in losses.terms(model, "auto", answers_of(model))] == ["cosine", "mse"]


def test_kl_is_refused_where_nothing_holds_class_scores() -> None:
    model = builders.depthwise_residual()
    with pytest.raises(PassFailed, match="no output of the model holds class scores"):
        losses.terms(model, "kl", answers_of(model))


def test_unknown_loss_is_refused_with_the_known_ones() -> None:
    model = builders.mlp()
    with pytest.raises(PassFailed, match="is no loss") as failure:
        losses.terms(model, "hinge", answers_of(model))
    assert "kl" in failure.value.hint


def values_of(kind: str, scores: np.ndarray):
    made = {
        "probabilities": softmax(scores),
        "log_probabilities": np.log(softmax(scores)),
        "binary": 1 / (1 + np.exp(-scores)),
    }.get(kind, scores)
    return torch.from_numpy(made.astype(np.float32))


@pytest.mark.parametrize("kind", ["logits", "probabilities", "log_probabilities", "binary", "mse", "cosine"])
def test_loss_is_zero_at_the_teacher_and_positive_elsewhere(kind: str) -> None:
    terms = (losses.Term(name="y", kind=kind),)
    teacher = {"y": values_of(kind, SCORES)}
    other = {"y": values_of(kind, SCORES + RANDOM.standard_normal(SCORES.shape))}
    assert float(losses.loss_of(terms, teacher, teacher, temperature=3.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(losses.loss_of(terms, other, teacher, temperature=3.0)) > 0.01


@pytest.mark.parametrize("kind", ["logits", "probabilities", "log_probabilities"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_divergence_is_that_of_softened_scores_whatever_form_they_come_in(kind: str, temperature: float) -> None:
    student = SCORES + RANDOM.standard_normal(SCORES.shape).astype(np.float32) * 0.3
    p, q = softmax(SCORES / temperature), softmax(student / temperature)
    expected = float((p * np.log(p / q)).sum(axis=1).mean() * temperature**2)
    term = (losses.Term(name="y", kind=kind),)
    found = losses.loss_of(
        term, {"y": values_of(kind, student)}, {"y": values_of(kind, SCORES)}, temperature=temperature
    )
    assert float(found) == pytest.approx(expected, rel=1e-3)


def test_gradient_keeps_its_size_when_the_temperature_rises() -> None:
    teacher, sizes = {"y": torch.from_numpy(SCORES)}, []
    for temperature in (4.0, 16.0):
        student = torch.from_numpy(SCORES + 0.1 * RANDOM.standard_normal(SCORES.shape).astype(np.float32))
        student.requires_grad_(True)
        losses.loss_of(
            (losses.Term(name="y", kind="logits"),), {"y": student}, teacher, temperature=temperature
        ).backward()
        sizes.append(float(student.grad.norm()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.6)


def test_squared_error_is_in_units_of_the_teachers_variance() -> None:
    model = builders.depthwise_residual()
    answers = answers_of(model)
    scaled = [{"features": answer["features"] * 100} for answer in answers]
    for seen in (answers, scaled):
        terms = losses.terms(model, "mse", seen)
        teacher = {"features": torch.from_numpy(seen[0]["features"])}
        student = {"features": torch.from_numpy(seen[0]["features"] * 1.1)}
        loss = float(losses.loss_of(terms, student, teacher, temperature=1.0))
        assert 0.001 < loss < 0.1
        del teacher, student


def test_mean_of_a_batch_is_the_mean_of_its_samples() -> None:
    student, teacher = torch.from_numpy(SCORES + 0.5), torch.from_numpy(SCORES[::-1].copy())
    for kind in ("logits", "mse", "cosine"):
        term = (losses.Term(name="y", kind=kind),)
        whole = losses.loss_of(term, {"y": student}, {"y": teacher}, temperature=2.0)
        each = [
            losses.loss_of(term, {"y": student[i : i + 1]}, {"y": teacher[i : i + 1]}, temperature=2.0)
            for i in range(len(SCORES))
        ]
        assert float(whole) == pytest.approx(float(sum(each)) / len(each), rel=1e-5)


def test_features_share_one_weight() -> None:
    model = builders.conv_net()
    answers = [{**answer, "a": SCORES, "b": SCORES} for answer in answers_of(model)]
    terms = losses.terms(model, "features", answers, features=["a", "b"])
    assert [(term.name, term.kind, term.weight) for term in terms] == [
        ("logits", "logits", 1.0),
        ("a", "mse", 0.5),
        ("b", "mse", 0.5),
    ]
