"""What holds for every pass in the catalogue, on every model that shows a trait of real exports."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import builders
import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.catalogue import PASSES, find_pass
from edgeopt.errors import PassFailed
from edgeopt.graph import check
from edgeopt.records import Scalar

HALF = dataclasses.replace(builders.TARGET, features=("asimdhp", "fphp"))
MODELS = builders.TRAITS


@dataclasses.dataclass(frozen=True)
class Law:
    """A pass with settings, the models it must succeed on, and what it promises."""

    technique: str
    settings: dict[str, Scalar]
    works_on: tuple[str, ...]
    noise: float
    """Largest power of the outputs' difference over the outputs' own."""
    idempotent: bool = False

    def __str__(self) -> str:
        return "-".join([self.technique, *map(str, self.settings.values())])


CONVOLUTIONS = ("depthwise_residual", "shared_initializers")
"""Nothing there for dynamic quantization."""
PRUNABLE = ("conv_net", "depthwise_residual", "scaled_head", "mlp", "bert_block")
"""The others' channels all reach an output, a state or a body."""
PACKED = ("conv_net", "mlp", "bert_block", "lstm", "constants_anywhere")
"""The others have no weight of 256 elements."""
UNROUNDED = ("branches", "loop", "shared_initializers", "constants_anywhere")
"""No layer that reads all channels has a weight of its own."""
LOSSLESS = 1e-11
NARROW = {"reduced_range": True}
"""So that no kernel saturates, on whatever CPU this runs."""
LAWS = (
    Law("tidy", {}, MODELS, LOSSLESS, idempotent=True),
    Law("fold_batch_norm", {}, MODELS, LOSSLESS, idempotent=True),
    Law("fuse_transformer", {}, ("bert_block",), LOSSLESS),
    Law("cast_fp16", {"mode": "weights"}, PACKED, 1e-5),
    Law("cast_fp16", {"mode": "full"}, tuple(name for name in MODELS if name != "loop"), 1e-5),
    Law("cast_fp32", {}, ("half_precision",), 1e-5),
    Law("quantize_dynamic", NARROW, tuple(name for name in MODELS if name not in CONVOLUTIONS), 2e-2),
    Law("quantize_static", NARROW, tuple(name for name in MODELS if name not in ("loop", "old_softmax")), 2e-2),
    Law(
        "quantize_static",
        {"bias_correction": "empirical", "reduced_range": True},
        tuple(name for name in MODELS if name not in ("loop", "old_softmax")),
        2e-2,
    ),
    Law(
        "round_weights",
        {},
        tuple(name for name in MODELS if name not in UNROUNDED),
        2e-3,
    ),
    Law(
        "learn_rounding",
        {"steps": 40},
        tuple(name for name in MODELS if name not in UNROUNDED),
        2e-3,
    ),
    Law(
        "distill",
        {"steps": 40, "batch": 4, "learning_rate": 1e-3, "patience": 20},
        MODELS,
        2e-2,
    ),
    Law("prune_channels", {"ratio": 0.3}, PRUNABLE, 5e-2),
    Law("prune_channels", {"ratio": 0.3, "criterion": "l1", "refit": False}, (*PRUNABLE, "constants_anywhere"), 0.3),
    Law("prune_weights", {"small": 0.0}, ("bert_block",), 3e-2),
    Law("prune_weights", {"pattern": "2:4", "bits": 5, "small": 0.0}, ("bert_block",), 3e-2),
    Law("prune_weights", {"ratio": 0.2, "method": "magnitude", "form": "dense", "small": 0.0}, ("bert_block",), 3e-2),
    Law("equalize_layers", {}, ("relu_chain",), LOSSLESS),
    Law("equalize_layers", {"bounds": True}, ("relu_chain",), LOSSLESS),
    Law(
        "migrate_outliers",
        {"min_gain": 1.0},
        tuple(name for name in MODELS if name not in ("depthwise_residual", "loop", "shared_initializers")),
        LOSSLESS,
    ),
    Law("quantize_weights", {}, PACKED, 1e-3),
    Law("quantize_weights", {"bits": 6, "levels": "palette", "small": 0.0}, PACKED, 1e-2),
    Law("quantize_weights", {"bits": 5, "levels": "affine", "block": 16, "compensation": "gptq"}, PACKED, 1e-2),
    Law("quantize_weights", {"bits": 3, "levels": "palette", "mean_bits": 5.0, "small": 0.0}, PACKED, 2e-2),
    Law("quantize_weights", {"bits": 4, "form": "kernel", "block": 16, "compensation": "gptq"}, PACKED, 3e-2),
)
TRAINED = ("distill", "learn_rounding")
WITHOUT_TORCH = pytest.mark.skipif(find_spec("torch") is None, reason="needs torch: pip install 'edgeopt[train]'")
HERE = [law for law in LAWS if law.technique not in TRAINED or find_spec("torch") is not None]


def marks(law: Law) -> list[pytest.MarkDecorator]:
    return [WITHOUT_TORCH] if law.technique in TRAINED else []


CASES = [pytest.param(law, name, id=f"{law}-{name}", marks=marks(law)) for law in LAWS for name in law.works_on]
OTHERS = [pytest.param(law, name, id=f"{law}-{name}") for law in LAWS for name in MODELS if name not in law.works_on]


def build(name: str) -> ir.Model:
    model = getattr(builders, name)()
    assert isinstance(model, ir.Model)
    return model


def apply(law: Law, model: ir.Model) -> ir.Model:
    # whoever is his own teacher has nothing to learn
    teacher = builders.nearby(model) if law.technique in TRAINED else model
    evidence = builders.FakeEvidence(model, target=HALF, teacher=teacher)
    made = find_pass(law.technique).apply(model, law.settings, evidence)
    assert isinstance(made, ir.Model)
    return made


def noise(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Noise-to-signal power of the worst output."""
    pairs = [
        (np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)) for a, b in zip(ours, theirs, strict=True)
    ]
    return max(float(np.square(a - b).sum() / max(np.square(b).sum(), 1e-30)) for a, b in pairs)


def test_every_pass_of_the_catalogue_has_a_law() -> None:
    assert {law.technique for law in LAWS} == set(PASSES)


@pytest.mark.parametrize(("law", "name"), CASES)
def test_pass_keeps_its_promises(law: Law, name: str) -> None:
    model = build(name)
    before = builders.to_bytes(model)
    made = apply(law, model)
    assert builders.to_bytes(model) == before, "the input was changed"
    check.verify(made, like=model)
    feeds = builders.feeds(model, seed=11, symbols=3)
    expected = builders.run(model, feeds)
    assert noise(builders.run(made, feeds), expected) <= law.noise
    assert noise(builders.run(made, feeds, optimized=True), expected) <= law.noise
    assert builders.to_bytes(apply(law, build(name))) == builders.to_bytes(made), "the same model gave other bytes"
    if law.idempotent:
        assert builders.to_bytes(apply(law, made)) == builders.to_bytes(made), "a second round changed something"


@pytest.mark.parametrize(("law", "name"), OTHERS)
def test_pass_refuses_or_fails_with_a_hint_where_it_has_nothing_to_do(law: Law, name: str) -> None:
    model = build(name)
    refused = find_pass(law.technique).refuse(builders.signature(model), HALF)
    if refused is not None:
        assert refused.strip()
        return
    before = builders.to_bytes(model)
    with pytest.raises(PassFailed) as failure:
        apply(law, model)
    assert failure.value.hint
    assert builders.to_bytes(model) == before


@pytest.mark.parametrize("law", HERE, ids=str)
def test_pass_leaves_external_weights_alone_and_works_from_them(law: Law, tmp_path: Path) -> None:
    model = builders.with_external_data(build(law.works_on[0]), tmp_path)
    weights = (tmp_path / "weights.bin").read_bytes()
    made = apply(law, model)
    check.verify(made, like=model)
    feeds = builders.feeds(model, seed=5)
    assert noise(builders.run(made, feeds), builders.run(build(law.works_on[0]), feeds)) <= law.noise
    assert (tmp_path / "weights.bin").read_bytes() == weights


@pytest.mark.parametrize("law", [law for law in HERE if law.technique != "fuse_transformer"], ids=str)
def test_pass_runs_behind_clean_up_and_folding(law: Law) -> None:
    model = build(law.works_on[0])
    made = model
    for earlier in (LAWS[0], LAWS[1], law):
        made = apply(earlier, made)
    check.verify(made, like=model)
    feeds = builders.feeds(model, seed=3)
    assert noise(builders.run(made, feeds, optimized=True), builders.run(model, feeds)) <= law.noise + LOSSLESS


def hashes() -> str:
    """What ``python test_pass_laws.py`` prints: a hash of every law's first model after the pass."""
    lines = [
        f"{law} {hashlib.sha256(builders.to_bytes(apply(law, build(law.works_on[0])))).hexdigest()}" for law in LAWS
    ]
    return "\n".join(lines)


def test_bytes_do_not_depend_on_the_process_that_made_them() -> None:
    tests = Path(__file__).resolve().parents[1]
    made = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{tests}:{tests / 'unit'}"}
        command = [sys.executable, "-c", "import test_pass_laws; print(test_pass_laws.hashes())"]
        made.append(subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout)
    assert made[0] == made[1]
    assert made[0].strip() == hashes()
