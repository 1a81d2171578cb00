"""Models made for ARM on this machine, run by a real aarch64 Python with ONNX Runtime under user-mode emulation.

Needs the folder that tools/make_aarch64_python.sh makes in EDGEOPT_AARCH64_ROOT. One emulated process a processor runs all models. What is held against this
machine's outputs is what is computed, never how fast. The corpus' winners go the same way by benchmarks/aarch64.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx_ir as ir
import pytest

import edgeopt
from edgeopt import oneshot, runtime
from edgeopt.passes import CastFp16, FoldBatchNorm, QuantizeDynamic, QuantizeStatic, QuantizeWeights, Tidy
from edgeopt.policy import Policy, TargetRequest
from edgeopt.records import Recipe, Step

pytestmark = [pytest.mark.aarch64, pytest.mark.timeout(900)]

ROOT = Path(edgeopt.__file__).resolve().parent.parent
DIGITS = ROOT / "edgeopt" / "demo" / "digits.onnx"
RUN_ONNX = ROOT / "tools" / "run_onnx.py"
FEATURES = {
    "cortex-a72": {"asimd"},
    "cortex-a76": {"asimd", "asimddp"},
    "max": {"asimd", "asimddp", "i8mm"},
}
SIGNED: dict[str, Any] = {"activation": "int8", "per_channel": True, "bias_correction": True}


def wide_mlp() -> ir.Model:
    return builders.mlp(width=64)


NETS: dict[str, tuple[Callable[[], ir.Model], Any, dict[str, Any], float]] = {
    # What is made, by which pass, with which settings; how many dB of noise the kernels may differ by. Dynamic codes come from one scale for a whole tensor,
    # but from one a row where the processor has SME, as "max" does.
    "conv, float": (builders.conv_net, Tidy(), {}, 100.0),
    "conv, signed codes": (builders.conv_net, QuantizeStatic(), SIGNED, 50.0),
    "conv, unsigned codes": (builders.conv_net, QuantizeStatic(), {**SIGNED, "activation": "uint8"}, 50.0),
    "depthwise, signed codes": (builders.depthwise_residual, QuantizeStatic(), SIGNED, 50.0),
    "matrices, signed codes": (wide_mlp, QuantizeStatic(), SIGNED, 50.0),
    "matrices, dynamic": (wide_mlp, QuantizeDynamic(), {}, 35.0),
    "attention, dynamic": (builders.bert_block, QuantizeDynamic(), {}, 30.0),
    "recurrent, dynamic": (builders.lstm, QuantizeDynamic(), {}, 45.0),
    "matrices, half weights": (wide_mlp, CastFp16(), {"mode": "weights"}, 100.0),
    "matrices, packed weights": (wide_mlp, QuantizeWeights(), {"bits": 8}, 100.0),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The version that a replayed recipe publishes for ``target: arm``."""
    recipe = Recipe(steps=(Step.of("tidy"), Step.of("fold_batch_norm"), Step.of("quantize_static", **SIGNED)))
    request = oneshot.Request(
        model=DIGITS,
        calibration=DIGITS.with_suffix(".calibration.npz"),
        eval=DIGITS.with_suffix(".eval.npz"),
        policy=Policy(target=TargetRequest(name="arm", threads=1)),
        recipe=recipe,
        out=tmp_path_factory.mktemp("published"),
    )
    return oneshot.run(request, on_event=lambda _event: None).folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, published: Path) -> dict[str, tuple[Path, Path]]:
    """Name to model and feeds."""
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for number, (name, (build, technique, settings, _)) in enumerate(NETS.items()):
        model = build()
        evidence = builders.FakeEvidence(model)
        model = FoldBatchNorm().apply(Tidy().apply(model, {}, evidence), {}, evidence)
        file = folder / f"{number}.onnx"
        ir.save(technique.apply(model, settings, builders.FakeEvidence(model)), file)
        made[name] = (
            file,
            feeds_file(file.with_suffix(".npz"), [builders.feeds(model, seed=seed) for seed in range(3)]),
        )
    with np.load(DIGITS.with_suffix(".eval.npz")) as archive:
        images = [{"image": image[None]} for image in archive["image"][:16]]
    made["published"] = (published / "model.onnx", feeds_file(folder / "digits.npz", images))
    return made


def feeds_file(file: Path, feeds: list[dict[str, np.ndarray]]) -> Path:
    arrays: dict[str, Any] = {
        f"{number}/{name}": array for number, each in enumerate(feeds) for name, array in each.items()
    }
    np.savez(file, **arrays)
    return file


def run(python: str, files: dict[str, tuple[Path, Path]], folder: Path, **environment: str) -> dict[str, Path]:
    """Outputs of all models, by one process."""
    outputs = {name: folder / f"{number}.npz" for number, name in enumerate(files)}
    triples = [str(path) for name, pair in files.items() for path in (*pair, outputs[name])]
    subprocess.run([python, str(RUN_ONNX), *triples], check=True, env={**os.environ, **environment}, timeout=800)
    return outputs


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, files: dict[str, tuple[Path, Path]]) -> dict[str, Path]:
    return run(sys.executable, files, tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="module", params=FEATURES)
def there(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, files: dict[str, tuple[Path, Path]]
) -> dict[str, Path]:
    return run(emulated(), files, tmp_path_factory.mktemp("there"), EDGEOPT_AARCH64_CPU=request.param)


def emulated() -> str:
    return str(Path(os.environ["EDGEOPT_AARCH64_ROOT"]) / "python")


@pytest.mark.parametrize("name", [*NETS, "published"])
def test_aarch64_computes_what_this_machine_computes(name: str, here: dict[str, Path], there: dict[str, Path]) -> None:
    least_db = NETS[name][3] if name in NETS else 50.0
    with np.load(here[name]) as ours, np.load(there[name]) as theirs:
        assert ours.files == theirs.files
        for key in ours.files:
            assert ours[key].shape == theirs[key].shape
            assert signal_to_noise_db(ours[key], theirs[key]) > least_db


def test_published_version_gives_the_same_classes_on_every_processor(
    here: dict[str, Path], there: dict[str, Path]
) -> None:
    with np.load(here["published"]) as ours, np.load(there["published"]) as theirs:
        assert [ours[key].argmax() for key in ours.files] == [theirs[key].argmax() for key in ours.files]


def test_published_version_waits_for_its_device_and_claims_no_latency(published: Path) -> None:
    manifest = runtime.read_version(published).manifest
    assert manifest["status"] == "unverified"
    assert (manifest["target"]["name"], manifest["target"]["arch"]) == ("arm", "aarch64")
    assert manifest["verification"]["latency"]["measured"] is False
    assert "speedup" not in manifest["result"]
    assert manifest["result"]["traffic_ratio"] > 2.0
    assert manifest["result"]["quality"]["drop"] < 0.01


@pytest.mark.parametrize("cpu", FEATURES)
def test_device_is_told_from_within_by_the_instruction_sets_that_change_kernels(cpu: str) -> None:
    code = "from edgeopt import device, policy; print(*device.detect(policy.TargetRequest()).features)"
    found = subprocess.run(
        [emulated(), "-c", code],
        env={**os.environ, "EDGEOPT_AARCH64_CPU": cpu, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(found.stdout.split()) & {"asimd", "asimddp", "i8mm"} == FEATURES[cpu]


def signal_to_noise_db(right: np.ndarray, got: np.ndarray) -> float:
    error = float(((right.astype(float) - got) ** 2).sum())
    return 10 * float(np.log10(max(float((right.astype(float) ** 2).sum()), 1e-30) / max(error, 1e-30)))
