"""A dropped pair from the caller's files to the published student: taught in the sandboxed worker, judged by its teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'edgeopt[train]'")

from edgeopt import oneshot
from edgeopt.policy import Goal, Policy, Search, TargetRequest, Techniques
from edgeopt.records import Quality, Recipe, Step
from edgeopt.stages import teachers

TAUGHT = Recipe(
    steps=(Step.of("tidy"), Step.of("distill", steps=200, batch=16, learning_rate=0.01, loss="kl", patience=20))
)


def samples(file: Path, *, count: int, seed: int) -> Path:
    rows = np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)
    np.savez(file, rows=rows)
    return file


def test_student_of_a_dropped_pair_is_published_closer_to_its_teacher(tmp_path: Path) -> None:
    ir.save(builders.mlp(seed=3, width=24), tmp_path / "student.onnx")
    ir.save(builders.mlp(seed=8, width=64), tmp_path / "teacher.onnx")
    request = oneshot.Request(
        model=tmp_path / "student.onnx",
        teacher=tmp_path / "teacher.onnx",
        calibration=samples(tmp_path / "calibration.npz", count=200, seed=0),
        eval=samples(tmp_path / "eval.npz", count=200, seed=1),
        policy=Policy(target=TargetRequest(threads=1), goal=Goal(min_speedup=0.5)),
        recipe=TAUGHT,
        out=tmp_path / "published",
    )
    told: list[str] = []
    result = oneshot.run(
        request,
        on_event=lambda event: told.append(str(event.fields.get("text", ""))) if event.kind == "progress" else None,
    )
    original, taught = result.manifest["candidates"]
    before, after = (candidate["result"]["quality"] for candidate in (original, taught))
    assert before["drop"] > 0.05, "the student as dropped is some way off"
    assert after["drop"] < 0.7 * before["drop"] and after["ci95"][1] < before["drop"]
    assert [step["technique"] for step in result.manifest["recipe"]] == ["tidy", "distill"]
    assert any("step 200/200, loss" in words for words in told)


def test_every_recipe_of_a_taught_job_but_the_clean_up_teaches_first() -> None:
    planned = tuple(
        Recipe(steps=tuple(Step.of(name) for name in names))
        for names in (("tidy", "fold_batch_norm"), ("tidy",), ("tidy", "fold_batch_norm", "quantize_static"))
    )
    policy = Policy(search=Search(budget_s=100.0))
    made = teachers.taught(planned, policy)
    assert [[step.technique for step in recipe.steps] for recipe in made] == [
        ["tidy", "fold_batch_norm"],
        ["tidy", "fold_batch_norm", "distill"],
        ["tidy", "distill"],
        ["tidy", "fold_batch_norm", "distill", "quantize_static"],
    ]
    assert dict(made[1].steps[-1].settings) == {"seconds": 50.0}
    asked = (Step.of("tidy"), Step.of("prune_channels"), Step.of("distill", steps=7))
    spelled_out = teachers.taught((planned[1], Recipe(steps=asked)), policy)
    assert [recipe.steps for recipe in spelled_out] == [planned[1].steps, (asked[0], asked[2]), asked]
    assert teachers.taught(planned, replace(policy, techniques=Techniques(distill="off"))) == planned
    assert len(teachers.taught(planned, replace(policy, search=Search(trials=2)))) == 2


def test_student_must_come_no_further_from_its_teacher_and_no_slower() -> None:
    far = Quality(kind="agreement", metric="agreement", value=0.8, drop=0.2, ci95=(0.1, 0.3), samples=50)
    assert teachers.lenient(Goal(max_drop=0.01), far).max_drop == 0.2
    assert teachers.lenient(Goal(max_drop=0.3, min_speedup=0.5), far) == Goal(max_drop=0.3, min_speedup=0.5)
    assert teachers.lenient(Goal(), far).min_speedup < 1.0
