from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgeopt.policy import Goal, Policy, Search, Techniques
from edgeopt.records import Signature, Step, Target, TensorSpec
from edgeopt.stages import asked, planner

TARGET = Target(name="cpu", device="x", arch="x86_64", features=("avx2",), threads=2, memory_bytes=1 << 30)
SPEC = TensorSpec(name="x", dtype="float32", shape=(1, 3, 8, 8))
CNN = Signature(
    format="onnx", opset=17, inputs=(SPEC,), outputs=(SPEC,), operators=(("BatchNormalization", 2), ("Conv", 3))
)


class OpenPass:
    """A pass that refuses nothing."""

    def __init__(self, name: str, *, lossless: bool = False) -> None:
        self.name, self.lossless, self.needs_data = name, lossless, False

    def refuse(self, signature, target):
        return "nothing is float16" if self.name == "cast_fp32" and not signature.half else None

    def apply(self, model, settings, evidence):
        raise AssertionError("planning applies nothing")


PASSES = {
    name: OpenPass(name, lossless=name in ("tidy", "fold_batch_norm", "fuse_transformer", "migrate_outliers"))
    for name in (
        "tidy",
        "fold_batch_norm",
        "fuse_transformer",
        "migrate_outliers",
        "cast_fp16",
        "cast_fp32",
        "quantize_dynamic",
        "quantize_static",
        "quantize_weights",
        "equalize_layers",
        "round_weights",
    )
}


def _plan(signature=CNN, target=TARGET, policy=Policy(), *, has_samples=True, passes=PASSES):  # noqa: B008
    return planner.plan(signature, target, policy, passes=passes, has_samples=has_samples)


def _techniques(plan) -> set[str]:
    return {step.technique for recipe in plan.recipes for step in recipe.steps}


def test_every_recipe_starts_with_the_clean_up() -> None:
    assert all(recipe.steps[0].technique == "tidy" for recipe in _plan().recipes)


def test_without_samples_only_lossless_and_fp16_candidates_are_made() -> None:
    plan = _plan(has_samples=False, target=replace(TARGET, features=("asimdhp",)))
    assert _techniques(plan) <= {"tidy", "fold_batch_norm", "fuse_transformer", "cast_fp16"}
    assert any("no real samples" in str(trial.refused) for trial in plan.left_out)


def test_cpu_with_saturating_kernels_tries_seven_bit_weights_first() -> None:
    static = [
        dict(recipe.steps[-1].settings) for recipe in _plan().recipes if recipe.steps[-1].technique == "quantize_static"
    ]
    assert static[0]["reduced_range"] is True
    assert any(settings["reduced_range"] is False for settings in static)


def test_cpu_with_dot_products_keeps_eight_bits() -> None:
    plan = _plan(target=replace(TARGET, features=("avx512_vnni",)))
    assert not any(dict(step.settings).get("reduced_range") for recipe in plan.recipes for step in recipe.steps)


def test_arm_gets_signed_activations() -> None:
    plan = _plan(target=replace(TARGET, name="arm", arch="aarch64", features=("asimddp",)))
    static = [step for recipe in plan.recipes for step in recipe.steps if step.technique == "quantize_static"]
    assert {dict(step.settings)["activation"] for step in static} == {"int8"}


def _settings(plan, name: str) -> list[object]:
    steps = [step for recipe in plan.recipes for step in recipe.steps if step.technique == "quantize_static"]
    return list(dict.fromkeys(dict(step.settings)[name] for step in steps))


def test_arm_without_dot_products_keeps_eight_bits_since_its_kernels_are_exact() -> None:
    plan = _plan(target=replace(TARGET, name="arm", arch="aarch64", features=("asimd",)))
    assert _settings(plan, "reduced_range") == [False]
    assert "round_weights" not in _techniques(plan)


def test_arm_with_matrix_instructions_also_tries_unsigned_codes_where_there_are_convolutions() -> None:
    target = replace(TARGET, name="arm", arch="aarch64", features=("asimd", "asimddp", "i8mm"))
    assert _settings(_plan(target=target), "activation") == ["uint8", "int8"]
    matrices = replace(CNN, operators=(("MatMul", 3),))
    assert _settings(_plan(matrices, target=target), "activation") == ["int8"]


def test_quantization_can_be_switched_off_or_narrowed() -> None:
    off = _plan(policy=Policy(techniques=Techniques(quantize="off")))
    assert not any(name.startswith("quantize") for name in _techniques(off))
    narrow = _plan(policy=Policy(techniques=Techniques(quantize=("dynamic",))))
    assert "quantize_dynamic" in _techniques(narrow)
    assert "quantize_static" not in _techniques(narrow)


def test_transformer_sheds_its_outliers_before_it_is_quantized_and_a_classifier_does_not() -> None:
    encoder = replace(CNN, operators=(("MatMul", 8), ("Softmax", 1)))
    recipes = [[step.technique for step in recipe.steps] for recipe in _plan(encoder).recipes]
    migrated = [number for number, steps in enumerate(recipes) if "migrate_outliers" in steps]
    assert {recipes[number][-1] for number in migrated} == {"quantize_dynamic", "quantize_static"}
    plain = [
        number for number, steps in enumerate(recipes) if steps[-1] == "quantize_dynamic" and number not in migrated
    ]
    assert max(migrated) < min(plain)
    classifier = replace(CNN, operators=(("Conv", 8), ("Gemm", 1), ("Softmax", 1)))
    assert "migrate_outliers" not in _techniques(_plan(classifier))


def test_weights_are_rounded_with_care_where_they_have_seven_bits() -> None:
    careful = [recipe for recipe in _plan().recipes if "round_weights" in {step.technique for step in recipe.steps}]
    assert {dict(step.settings)["reduced_range"] for recipe in careful for step in recipe.steps[-2:]} == {True}
    methods = [dict(recipe.steps[-1].settings)["method"] for recipe in careful]
    assert len(methods) == len({recipe.steps[-1] for recipe in careful})
    assert {"mse", "percentile", "min_max"} <= set(methods)
    assert "round_weights" not in _techniques(_plan(target=replace(TARGET, features=("avx512_vnni",))))


def test_packed_weights_are_for_size_except_for_kernels_on_matrices() -> None:
    def forms(signature: Signature, objective: str) -> list[object]:
        plan = _plan(signature, policy=Policy(goal=Goal(objective=objective)))
        steps = [recipe.steps[-1] for recipe in plan.recipes]
        return [dict(step.settings).get("form", "unpacked") for step in steps if step.technique == "quantize_weights"]

    matrices = replace(CNN, operators=(("MatMul", 12),))
    assert set(forms(CNN, "size")) == set(forms(matrices, "size")) == {"unpacked"}
    assert forms(CNN, "latency") == []
    assert set(forms(matrices, "latency")) == set(forms(matrices, "memory")) == {"kernel"}


def test_packed_weights_start_with_eight_bits() -> None:
    plan = _plan(policy=Policy(goal=Goal(objective="size")))
    steps = [dict(recipe.steps[-1].settings) for recipe in plan.recipes if "quantize_weights" in recipe.label]
    assert steps[0] == {"bits": 8}
    assert all(settings["compensation"] == "gptq" for settings in steps[1:])


def test_what_a_pass_refuses_is_left_out_with_its_reason() -> None:
    class Shy(OpenPass):
        def refuse(self, signature, target):
            return "there is no attention in this model"

    plan = _plan(passes={**PASSES, "fuse_transformer": Shy("fuse_transformer", lossless=True)})
    assert "fuse_transformer" not in _techniques(plan)
    assert "there is no attention in this model" in {trial.refused for trial in plan.left_out}


def test_number_of_trials_is_capped_and_the_rest_is_named() -> None:
    plan = _plan(policy=Policy(search=Search(trials=2)))
    assert len(plan.recipes) == 2
    assert any(trial.refused == "beyond search.trials" for trial in plan.left_out)


def test_pruning_and_distillation_that_the_operator_spells_out_become_a_recipe_alone_and_with_int8() -> None:
    passes = {**PASSES, "prune_channels": OpenPass("prune_channels"), "distill": OpenPass("distill")}
    wish = Techniques(prune={"criterion": "l1", "removed": {"conv.weight": 8}}, distill={"steps": 200})
    plan = _plan(policy=Policy(techniques=wish), passes=passes)
    found = [recipe for recipe in plan.recipes if "prune_channels" in {step.technique for step in recipe.steps}]
    names = [tuple(step.technique for step in recipe.steps) for recipe in found]
    before = ("tidy", "fold_batch_norm", "prune_channels")
    assert names == [
        before,
        (*before, "distill"),
        (*before, "distill", "quantize_static"),
        (*before, "quantize_static"),
    ], "what a training loses must not be lost untaught"
    untaught = {"criterion": "l1", "removed": '{"conv.weight": 8}'}
    settings = [dict(recipe.steps[2].settings) for recipe in found]
    taught = {**untaught, "apart": True}
    assert settings == [untaught, taught, taught, untaught], "only what distillation judges by is kept from the refit"


@pytest.mark.parametrize(
    "wish",
    [
        {"criterion": "l1", "refit": False},
        {"criterion": "random", "refit": False, "ratio": 0.3},
        {"pattern": "2:4", "method": "magnitude"},
    ],
    ids=str,
)
def test_pruning_by_weights_alone_is_planned_without_samples_where_it_is_spelled_out(wish: dict[str, Any]) -> None:
    passes = {name: PASSES.get(name) or OpenPass(name) for name in (*PASSES, "prune_channels", "prune_weights")}
    plan = _plan(policy=Policy(techniques=Techniques(prune=wish)), passes=passes, has_samples=False)
    (pruned,) = (recipe for recipe in plan.recipes if any(s.technique.startswith("prune") for s in recipe.steps))
    assert len(pruned.steps) == 3, "int8 behind it needs samples all the same"
    assert all(asked.is_from_weights_alone(step) == (index == 2) for index, step in enumerate(pruned.steps))


@pytest.mark.parametrize(
    "wish", [{"criterion": "l1"}, {"refit": False}, {"criterion": "obs", "refit": False}, {"pattern": "2:4"}], ids=str
)
def test_pruning_that_looks_at_samples_is_left_out_where_there_are_none(wish: dict[str, Any]) -> None:
    passes = {name: PASSES.get(name) or OpenPass(name) for name in (*PASSES, "prune_channels", "prune_weights")}
    plan = _plan(policy=Policy(techniques=Techniques(prune=wish)), passes=passes, has_samples=False)
    assert not any(name.startswith("prune") for name in _techniques(plan))
    assert any("no real samples" in str(trial.refused) for trial in plan.left_out if "prune" in trial.recipe.label)


def test_pruning_left_to_the_search_is_not_planned() -> None:
    assert "prune_channels" not in _techniques(_plan())


def _asked(techniques: Techniques, target: Target = TARGET) -> list[list[tuple[str, dict[str, object]]]]:
    passes = {name: OpenPass(name) for name in (*PASSES, "prune_channels", "prune_weights", "distill")}
    plan = _plan(target=target, policy=Policy(techniques=techniques), passes=passes)
    return [
        [(step.technique, dict(step.settings)) for step in recipe.steps[2:]]
        for recipe in plan.recipes
        if "prune_weights" in {step.technique for step in recipe.steps}
    ]


def test_pruning_with_a_pattern_makes_single_weights_zero_and_stores_them_as_dense_ones_for_who_reads_them() -> None:
    alone, before_int8 = _asked(Techniques(prune={"pattern": "2:4", "bits": 6}))
    assert alone == [("prune_weights", {"pattern": "2:4", "bits": 6})]
    assert before_int8[0] == ("prune_weights", {"pattern": "2:4", "form": "dense"})
    assert before_int8[1][0] == "quantize_static"


def test_zeros_are_found_again_behind_distillation() -> None:
    wish = Techniques(prune={"pattern": "unstructured", "ratio": 0.4, "bits": 6}, distill={"steps": 50})
    untaught, distilled = _asked(wish)[:2]
    assert untaught == [("prune_weights", {"pattern": "unstructured", "ratio": 0.4, "bits": 6})]
    assert [name for name, _ in distilled] == ["prune_weights", "distill", "prune_weights"]
    assert distilled[0][1] == {"pattern": "unstructured", "ratio": 0.4, "form": "dense"}
    assert distilled[2][1] == {"method": "found", "pattern": "unstructured", "bits": 6}


def test_sparse_weights_that_the_operator_wants_dense_stay_dense() -> None:
    wish = Techniques(prune={"pattern": "2:4", "form": "dense"}, distill={"steps": 50})
    assert [name for name, _ in _asked(wish)[1]] == ["prune_weights", "distill"]


def test_engines_get_sparse_weights_in_place_alone_and_in_half_precision() -> None:
    steps = _asked(Techniques(prune={"pattern": "2:4"}), replace(TARGET, name="tensorrt"))
    assert [[name for name, _ in each] for each in steps] == [["prune_weights"], ["prune_weights", "cast_fp16"]]
    assert all(each[0][1] == {"pattern": "2:4", "form": "dense"} for each in steps)


def test_engines_are_pruned_where_the_operator_spells_it_out_alone_and_in_half_precision() -> None:
    passes = {**PASSES, "prune_channels": OpenPass("prune_channels")}
    policy = Policy(techniques=Techniques(prune={"ratio": 0.3}))
    plan = _plan(target=replace(TARGET, name="tensorrt-rtx"), policy=policy, passes=passes)
    wished = [recipe.steps[2:] for recipe in plan.recipes if Step.of("prune_channels", ratio=0.3) in recipe.steps]
    assert [[step.technique for step in steps] for steps in wished] == [
        ["prune_channels"],
        ["prune_channels", "cast_fp16"],
    ]


def test_zeros_are_stored_as_a_mask_where_the_model_came_with_them_and_bytes_count() -> None:
    pruned = replace(CNN, zeros=0.6)
    passes = {**PASSES, "prune_weights": OpenPass("prune_weights")}

    def sparse(signature: Signature, objective: str) -> list[dict[str, object]]:
        plan = _plan(signature, policy=Policy(goal=Goal(objective=objective)), passes=passes)
        steps = [step for recipe in plan.recipes for step in recipe.steps]
        return [dict(step.settings) for step in steps if step.technique == "prune_weights"]

    assert [settings["bits"] for settings in sparse(pruned, "size")] == [8, 8, 6, 4]
    assert all(settings["method"] == "found" for settings in sparse(pruned, "size"))
    assert sparse(pruned, "latency") == sparse(pruned, "memory") == sparse(replace(CNN, zeros=0.1), "size") == []


def test_what_needs_no_repair_comes_before_learned_rounding_but_outliers_are_migrated_first() -> None:
    steps = [{step.technique for step in recipe.steps} for recipe in _plan().recipes]
    rounded = [index for index, techniques in enumerate(steps) if "round_weights" in techniques]
    plain = [index for index, techniques in enumerate(steps) if "quantize_static" in techniques - {"round_weights"}]
    assert rounded
    assert min(plain) < min(rounded)
    transformer = replace(CNN, operators=(("LayerNormalization", 12), ("MatMul", 36), ("Softmax", 6)))
    steps = [{step.technique for step in recipe.steps} for recipe in _plan(transformer).recipes]
    integers = [techniques for techniques in steps if techniques & {"quantize_static", "quantize_dynamic"}]
    assert "migrate_outliers" in integers[0]


def test_float16_models_become_float32_before_all_else_where_the_device_computes_in_that() -> None:
    half = replace(CNN, half=True)
    first, *others = _plan(half).recipes
    assert [step.technique for step in first.steps] == ["tidy"]
    assert others
    assert all([step.technique for step in recipe.steps[:2]] == ["tidy", "cast_fp32"] for recipe in others)
    assert "cast_fp32" not in _techniques(_plan())
