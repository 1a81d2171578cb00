"""Importance: every criterion finds the unit it is meant to find, and says what it lacks."""

from __future__ import annotations

import dataclasses

import builders
import numpy as np
import onnx_ir as ir
import pytest
from builders import FakeEvidence, Net

from edgeopt.calibrate import readers, removal
from edgeopt.calibrate.importance import CRITERIA, WITHOUT_SAMPLES, Ranking, scores
from edgeopt.calibrate.removal import PruneScheme
from edgeopt.calibrate.shapes import observed_shapes
from edgeopt.errors import PassFailed
from edgeopt.graph import groups
from edgeopt.graph.groups import Family


class NoSamples(FakeEvidence):
    """Evidence of a drop without calibration data."""

    def __init__(self, model: ir.Model) -> None:
        super().__init__(model, samples=0)


def families(model: ir.Model) -> tuple[Family, ...]:
    return groups.find(model, observed_shapes(model, FakeEvidence(model))).families


def judged(model: ir.Model, criterion: str, *, samples: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    ranking = Ranking(criterion=criterion, depths={}, seed=seed)
    return scores(model, families(model), ranking, FakeEvidence(model, samples=samples))


def two_layers(first: np.ndarray, second: np.ndarray, *, offset: np.ndarray | None = None) -> ir.Model:
    """Rows through ``first``, a bias, ReLU and ``second``."""
    net = Net(seed=3)
    bias = net.const((np.zeros(first.shape[1]) if offset is None else offset).astype(np.float32))
    hidden = net.op("Relu", net.op("Gemm", "rows", net.const(first.astype(np.float32)), bias))
    net.op("Gemm", hidden, net.const(second.astype(np.float32)), net.weight(second.shape[1]), output="out")
    return net.build({"rows": ["N", first.shape[0]]}, {"out": ["N", second.shape[1]]})


def random_layers(seed: int = 0, *, units: int = 6) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.standard_normal((5, units)), random.standard_normal((units, 3))


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_norms_rank_the_unit_with_the_smallest_weights_lowest(criterion: str) -> None:
    first, second = random_layers()
    first[:, 2] *= 0.01
    found = judged(two_layers(first, second), criterion)
    (values,) = found.values()
    order = 1 if criterion == "l1" else 2
    np.testing.assert_allclose(values, np.linalg.norm(first, ord=order, axis=0), rtol=1e-5)
    assert values.argmin() == 2


def test_norm_of_the_group_counts_what_reads_the_unit_and_no_bias() -> None:
    first, second = random_layers()
    found = judged(two_layers(first, second, offset=np.arange(6.0) * 100), "group_l2")
    (values,) = found.values()
    whole = np.sqrt(np.square(first).sum(axis=0) + np.square(second).sum(axis=1))
    np.testing.assert_allclose(values, whole, rtol=1e-5)


@pytest.mark.parametrize("criterion", ["entropy", "apoz", "variance", "obs"])
def test_unit_that_is_never_active_scores_lowest(criterion: str) -> None:
    first, second = random_layers()
    model = two_layers(first, second, offset=np.asarray([0.0, 0.0, 0.0, 0.0, -100.0, 0.0]))
    (values,) = judged(model, criterion).values()
    assert values.argmin() == 4


@pytest.mark.parametrize("criterion", ["variance", "obs"])
def test_unit_that_never_changes_scores_lowest_since_a_bias_replaces_it(criterion: str) -> None:
    first, second = random_layers()
    first[:, 1] = 0.0
    model = two_layers(first, second * np.asarray([[1], [50], [1], [1], [1], [1]]), offset=np.full(6, 3.0))
    (values,) = judged(model, criterion).values()
    assert values.argmin() == 1


def test_second_order_removes_one_of_two_equal_units_and_keeps_the_other() -> None:
    first, second = random_layers(2)
    first[:, 5] = first[:, 0]
    second[[0, 5]] *= 5.0
    (values,) = judged(two_layers(first, second), "obs").values()
    twins, order = {0, 5}, np.argsort(values)
    assert order[0] in twins, "what the other one can stand in for costs nothing"
    assert order[-1] in twins, "with its twin gone, it is the most important"


def test_variance_alone_does_not_see_that_two_units_are_equal() -> None:
    first, second = random_layers(2)
    first[:, 5] = first[:, 0]
    second[[0, 5]] *= 5.0
    (values,) = judged(two_layers(first, second), "variance").values()
    assert set(np.argsort(values)[-2:]) == {0, 5}


def test_batch_norm_criterion_reads_the_scale_and_asks_to_stand_before_folding() -> None:
    model = builders.depthwise_residual()
    found = judged(model, "batch_norm")
    assert found
    for family in families(model):
        scales = [np.abs(slot_scale(model, slot.constant)) for slot in family.slots if is_scale(model, slot.constant)]
        np.testing.assert_allclose(found[family.name], np.sum(scales, axis=0), rtol=1e-6)
    first, second = random_layers()
    with pytest.raises(PassFailed, match="folded") as failure:
        judged(two_layers(first, second), "batch_norm")
    assert "before fold_batch_norm" in failure.value.hint


def is_scale(model: ir.Model, name: str) -> bool:
    return any(node.op_type == "BatchNormalization" and node.inputs[1].name == name for node in model.graph)


def slot_scale(model: ir.Model, name: str) -> np.ndarray:
    return model.graph.initializers[name].const_value.numpy()


def test_random_control_is_seeded_and_differs_between_families_and_seeds() -> None:
    model = builders.bert_block()
    first, again, other = (judged(model, "random", seed=seed) for seed in (1, 1, 2))
    assert len(first) > 1
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
        assert (values != other[name]).all()
    one, two = list(first.values())[:2]
    assert one[0] != two[0]


@pytest.mark.parametrize("criterion", [each for each in CRITERIA if each not in ("taylor", "batch_norm")])
def test_heads_and_neurons_get_one_finite_score_a_unit(criterion: str) -> None:
    model = builders.bert_block()
    found = judged(model, criterion)
    assert set(found) == {family.name for family in families(model)}
    for family in families(model):
        assert found[family.name].shape == (family.units,)
        assert np.isfinite(found[family.name]).all()


@pytest.mark.parametrize("criterion", [each for each in CRITERIA if each not in WITHOUT_SAMPLES])
def test_criterion_that_needs_what_is_not_there_says_so(criterion: str) -> None:
    model = builders.mlp()
    ranking = Ranking(criterion=criterion, depths={})
    with pytest.raises(
        PassFailed, match="torch is not installed" if criterion == "taylor" else "calibration samples"
    ) as failure:
        scores(model, families(model), ranking, NoSamples(model))
    assert failure.value.hint


def cell_and_layers() -> ir.Model:
    """An LSTM whose units a MatMul reads, and so does its own recurrence; behind it a layer that only a MatMul reads."""
    net = Net(seed=20)
    weights = (net.weight(1, 32, 5), net.weight(1, 32, 8), net.weight(1, 64))
    cells = net.op("Squeeze", net.op("LSTM", "frames", *weights, hidden_size=8), net.ints(1))
    hidden = net.op("Relu", net.op("MatMul", cells, net.weight(8, 12)))
    net.op("MatMul", hidden, net.weight(12, 3), output="out")
    return net.build({"frames": ["T", 1, 5]}, {"out": ["T", 1, 3]})


@pytest.mark.parametrize("criterion", ["obs", "variance"])
def test_what_readers_lose_is_not_added_up_where_one_of_them_is_not_understood(criterion: str) -> None:
    model = cell_and_layers()
    cell, dense = families(model)
    assert (cell.kind, dense.kind) == ("hidden", "neurons")
    assert set(judged(model, criterion)) == {dense.name}
    why = readers.unjudged(model, cell, criterion)
    assert "w_2 (LSTM) reads it" in why and f"{criterion} judges only" in why
    assert readers.unjudged(model, dense, criterion) == ""


@pytest.mark.parametrize("criterion", ["entropy", "apoz", "l1"])
def test_what_the_unit_itself_shows_is_seen_at_any_reader(criterion: str) -> None:
    model = cell_and_layers()
    assert set(judged(model, criterion)) == {family.name for family in families(model)}
    assert all(readers.unjudged(model, family, criterion) == "" for family in families(model))


def test_transposed_and_grouped_readers_are_judged_like_any_other() -> None:
    net = Net(seed=21)
    wide = net.op("Relu", net.op("Conv", "image", net.weight(16, 3, 1, 1), net.weight(16)))
    deep = net.op("Relu", net.op("Conv", wide, net.weight(20, 8, 3, 3), net.weight(20), group=2))
    net.op("ConvTranspose", deep, net.weight(20, 2, 2, 2), output="out", strides=[2, 2])
    model = net.build({"image": ["N", 3, 8, 8]}, {"out": ["N", 2, 12, 12]})
    for criterion in ("obs", "variance", "entropy", "apoz"):
        found = judged(model, criterion, samples=16)
        # a channel of one group goes with the same one of the other
        assert sorted(len(values) for values in found.values()) == [8, 10], criterion
        assert all(np.isfinite(values).all() and (values > 0).any() for values in found.values())


def test_group_that_gives_next_to_nothing_does_not_decide_for_all() -> None:
    """Damage counts relative to what the whole convolution gives."""
    random = np.random.default_rng(22)
    rows = random.standard_normal((6, 3, 1, 1)).astype(np.float32)
    rows[3:] *= 1e-3

    def found(weight: np.ndarray) -> np.ndarray:
        net = Net(seed=23)
        wide = net.op("Conv", "image", net.weight(6, 5, 1, 1, scale=1.0), net.weight(6))
        net.op("Conv", wide, net.const(weight), output="out", group=2)
        model = net.build({"image": ["N", 5, 6, 6]}, {"out": ["N", len(weight), 6, 6]})
        return next(iter(judged(model, "obs").values()))

    loud = np.concatenate([rows[:3], np.zeros_like(rows[:3])])
    np.testing.assert_allclose(found(rows), found(loud), rtol=1e-3)


@pytest.mark.parametrize("criterion", ["obs", "taylor", "variance", "entropy", "apoz"])
def test_made_up_samples_are_no_samples_to_choose_by(criterion: str) -> None:
    model = builders.mlp()
    evidence = FakeEvidence(model, samples=16)
    evidence.synthetic = True
    evidence.gradients = lambda *_: iter(())
    with pytest.raises(PassFailed, match="needs real calibration samples"):
        scores(model, families(model), Ranking(criterion=criterion, depths={}), evidence)


def test_tensor_that_is_not_finite_is_named() -> None:
    first, second = random_layers()
    model = two_layers(first * 1e38, second)
    for criterion in ("variance", "obs"):
        with pytest.raises(PassFailed, match="not finite"):
            judged(model, criterion)


# ---------------------------------------------------------------- how many
def of_units(units: int, kind: str = "channels") -> Family:
    return Family(f"{kind}{units}", kind, units, ())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("units", "ratio", "left"),
    [(96, 0.1, 88), (144, 0.1, 128), (1152, 0.2, 920), (24, 0.1, 20), (12, 0.1, 11), (64, 0.99, 8), (3, 0.9, 1)],
)
def test_counts_left_are_multiples_that_kernels_like_and_never_zero(units: int, ratio: float, left: int) -> None:
    family = of_units(units)
    assert units - removal.depths([family], PruneScheme(ratio=ratio))[family.name] == left


@pytest.mark.parametrize(
    ("name", "features", "blocks"),
    [
        ("cpu", ("avx2",), {12: 1, 16: 4, 64: 8, 1152: 8}),
        ("cpu", ("avx2", "avx512f", "avx512_vnni"), {12: 1, 63: 4, 64: 8, 127: 8, 128: 16, 1152: 16}),
        ("arm", ("asimd", "asimddp"), {16: 4, 64: 8, 1152: 8}),
        ("tensorrt", (), {16: 4, 64: 8, 128: 16, 255: 16, 256: 32, 1152: 32}),
    ],
)
def test_multiples_are_what_the_targets_kernels_compute_at_once(
    name: str, features: tuple[str, ...], blocks: dict[int, int]
) -> None:
    target = dataclasses.replace(builders.TARGET, name=name, features=features)
    scheme = PruneScheme().fitted(target)
    assert {units: removal.block(of_units(units), scheme) for units in blocks} == blocks
    assert removal.block(of_units(1152), PruneScheme(largest=8).fitted(target)) == 8
    assert removal.block(of_units(1152), PruneScheme(multiple=5).fitted(target)) == 5


def test_heads_go_one_by_one() -> None:
    family = of_units(64, "heads")
    assert removal.depths([family], PruneScheme(ratio=0.1)) == {"heads64": 6}


def test_high_direction_takes_the_most_important_units() -> None:
    family = of_units(8)
    values = {family.name: np.asarray([3.0, 1, 4, 1, 5, 9, 2, 6])}
    assert removal.choose([family], values, PruneScheme(ratio=0.25)) == {family.name: (1, 3)}
    assert removal.choose([family], values, PruneScheme(ratio=0.25, direction="high")) == {family.name: (5, 7)}


def test_global_ranking_compares_families_by_their_own_mean() -> None:
    weak, strong = of_units(10), of_units(11)
    spread = np.concatenate([np.full(5, 0.1), np.full(5, 2.0)])
    values = {weak.name: spread * 1000, strong.name: np.linspace(0.9, 1.1, 11)}
    found = removal.choose([weak, strong], values, PruneScheme(ratio=5 / 21, scope="global"))
    assert found == {weak.name: (0, 1, 2, 3, 4)}


def test_global_ranking_leaves_every_family_a_unit() -> None:
    small, large = of_units(4), of_units(60)
    values = {small.name: np.full(4, 1.0), large.name: np.linspace(0.1, 1.9, 60)}
    found = removal.choose([small, large], values, PruneScheme(ratio=0.99, scope="global"))
    assert len(found[small.name]) == 3
    assert len(found[large.name]) == 56


def two_structures() -> tuple[Family, ...]:
    """Two plain convolutions in front of others, and one whose channels pass through a depthwise layer."""
    net = Net(seed=4)
    first = net.op("Relu", net.op("Conv", "image", net.weight(8, 3, 1, 1), net.weight(8)))
    second = net.op("Relu", net.op("Conv", first, net.weight(12, 8, 1, 1), net.weight(12)))
    wide = net.op("Conv", second, net.weight(10, 12, 1, 1), net.weight(10))
    deep = net.op("Conv", wide, net.weight(10, 1, 3, 3), net.weight(10), group=10, pads=[1] * 4)
    net.op("Conv", deep, net.weight(2, 10, 1, 1), output="out")
    return families(net.build({"image": ["N", 3, 6, 6]}, {"out": ["N", 2, 6, 6]}))


def test_families_are_isomorphic_where_the_same_operators_make_and_read_their_units() -> None:
    first, second, deep = two_structures()
    assert removal.structure(first) == removal.structure(second)
    assert removal.structure(deep) != removal.structure(first)
    assert {slot.operator for slot in deep.slots} == {"Conv", "Conv in groups"}


def test_global_ranking_compares_only_isomorphic_families_and_kind_compares_all() -> None:
    plain, other, deep = found = two_structures()
    even = {plain.name: np.full(8, 1.0), other.name: np.full(12, 1.0)}
    values = even | {deep.name: np.repeat([0.2, 1.8], 5)}
    of_kind = removal.choose(found, values, PruneScheme(ratio=0.2, scope="kind", multiple=1))
    assert {name: len(units) for name, units in of_kind.items()} == {deep.name: 5, plain.name: 1}
    isomorphic = removal.choose(found, values, PruneScheme(ratio=0.2, scope="global", multiple=1))
    assert isomorphic[deep.name] == (0, 1)
    assert sum(len(isomorphic.get(family.name, ())) for family in (plain, other)) == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"criterion": "magic"},
        {"scope": "everywhere"},
        {"direction": "sideways"},
        {"families": "cousins"},
        {"ratio": 1.0},
        {"ratio": -0.1},
        {"multiple": -8},
    ],
)
def test_setting_that_means_nothing_is_refused_with_its_value(settings: dict[str, str | float]) -> None:
    with pytest.raises(PassFailed) as failure:
        PruneScheme(**settings).check()  # type: ignore[arg-type]
    assert str(next(iter(settings.values()))).rstrip("0").rstrip(".") in failure.value.message
    assert failure.value.hint
