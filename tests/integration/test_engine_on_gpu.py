"""On a real GPU: an engine built there gives ONNX Runtime's answers, is timed by the GPU's clock, and a job publishes it measured. Skipped without one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import builders
import numpy as np
import onnx_ir as ir
import pytest

import edgeopt
from edgeopt import catalogue, device
from edgeopt.errors import CompileFailed, MeasureFailed
from edgeopt.passes import FoldBatchNorm, QuantizeStatic, Tidy
from edgeopt.policy import TargetRequest
from edgeopt.protocols import GpuSession
from edgeopt.records import Artifact, Recipe
from edgeopt.runtimes.ort import OnnxRuntime
from edgeopt.runtimes.trt import flavours
from edgeopt.stages.runners import Runner

pytestmark = pytest.mark.gpu
SHAPES = [(1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16)]
PORTABLE = {"activation": "int8", "symmetric": True, "depthwise": False, "bias_correction": True}


@pytest.fixture(scope="module", params=sorted(flavours.FLAVOURS))
def name(request: pytest.FixtureRequest) -> str:
    flavour = flavours.FLAVOURS[request.param]
    if flavours.module_of(flavour) is None:
        pytest.skip(f"{flavour.name} is not installed: {flavour.install}")
    pytest.importorskip("cuda.bindings.runtime", reason=f"needs cuda-bindings: {flavours.CUDA_INSTALL}")
    return flavour.name


@pytest.fixture(scope="module")
def model() -> ir.Model:
    model = builders.conv_net()
    evidence = builders.FakeEvidence(model, samples=0)
    return FoldBatchNorm().apply(Tidy().apply(model, {}, evidence), {}, evidence)


def built(model: ir.Model, name: str, folder: Path) -> Artifact:
    file = folder / "model.onnx"
    ir.save(model, file)
    engines = catalogue.find_engines(name)
    assert engines is not None
    target = device.detect(TargetRequest(name=name))  # type: ignore[arg-type]  # a flavour's name is a target's
    signature = builders.signature(model)
    assert engines.refuse(signature, target) is None
    (spec,) = signature.inputs
    return engines.taking(signature.inputs, [{spec.name: shape} for shape in SHAPES]).compile(file, Recipe(), target)


@pytest.fixture(scope="module")
def artifact(model: ir.Model, name: str, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return built(model, name, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def session(artifact: Artifact) -> Iterator[GpuSession]:
    with catalogue.find_runtime(artifact.runtime).open(artifact) as opened:
        assert isinstance(opened, GpuSession)
        yield opened


def inputs(shape: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(seed).normal(size=shape).astype(np.float32)}


def right(model: ir.Model, folder: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    file = folder / "right.onnx"
    ir.save(model, file)
    names = [str(value.name) for value in model.graph.outputs]
    (found,) = OnnxRuntime().observe(file, [feeds], names, threads=1)
    return [np.asarray(found[name]) for name in names]


@pytest.mark.parametrize("shape", SHAPES)
def test_engine_gives_the_answers_of_onnx_runtime(
    session: GpuSession, model: ir.Model, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    feeds = inputs(shape, seed=shape[0])
    for ours, theirs in zip(session.run(feeds), right(model, tmp_path, feeds), strict=True):
        # TensorRT may multiply in TF32, which has ten bits of mantissa
        np.testing.assert_allclose(ours, theirs, rtol=2e-2, atol=2e-2)


def test_int8_engine_stays_close_to_its_own_onnx_file(model: ir.Model, name: str, tmp_path: Path) -> None:
    quantized = QuantizeStatic().apply(model, PORTABLE, builders.FakeEvidence(model))
    artifact = built(quantized, name, tmp_path)
    feeds = inputs(SHAPES[1])
    with catalogue.find_runtime(artifact.runtime).open(artifact) as opened:
        found = opened.run(feeds)
    for ours, theirs in zip(found, right(quantized, tmp_path, feeds), strict=True):
        noise = float(np.square(ours - theirs).sum() / np.square(theirs).sum())
        assert noise < 0.01


def test_timing_is_positive_steady_and_told_with_its_conditions(session: GpuSession) -> None:
    durations = session.durations_ns(inputs(SHAPES[0]), 200)
    assert len(durations) == 200
    assert min(durations) > 0
    assert np.percentile(durations[50:], 90) < 5 * np.median(durations[50:])
    told = session.conditions()
    assert told["work_ms"] > 0
    assert told["work_ms"] + told["copies_in_ms"] + told["copies_out_ms"] < 10 * np.median(durations) / 1e6
    assert session.device_bytes() > 0


def test_shape_outside_of_the_profile_is_refused(session: GpuSession) -> None:
    with pytest.raises(MeasureFailed, match="was not built for input"):
        session.run(inputs((5, 3, 16, 16)))


def test_runner_serves_an_engine_like_any_artifact(artifact: Artifact, session: GpuSession) -> None:
    feeds = inputs(SHAPES[0])
    with Runner(artifact) as runner:
        for ours, theirs in zip(runner.run(feeds), session.run(feeds), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        runner.hold(feeds)
        assert all(seconds > 0 for seconds in runner.durations_s(20))
        assert runner.peak_memory_bytes() > 0
        assert dict(runner.conditions())["work_ms"] > 0


def test_damaged_engine_is_a_clean_refusal(artifact: Artifact, tmp_path: Path) -> None:
    broken = tmp_path / "model.engine"
    broken.write_bytes(b"\0" * 4096)
    damaged = Artifact(
        path=str(broken),
        format=artifact.format,
        sha256=artifact.sha256,
        bytes=4096,
        runtime=artifact.runtime,
        runtime_version=artifact.runtime_version,
        session=artifact.session,
    )
    with pytest.raises(CompileFailed, match="does not take"), catalogue.find_runtime(artifact.runtime).open(damaged):
        pass


@pytest.mark.slow
def test_job_on_its_gpu_publishes_a_measured_engine(name: str, tmp_path: Path) -> None:
    shipped = Path(edgeopt.__file__).parent / "demo"
    words = [sys.executable, "-m", "edgeopt", "optimize", str(shipped / "digits.onnx"), "--target", name, "--json"]
    words += ["--calibration", str(shipped / "digits.calibration.npz"), "--eval", str(shipped / "digits.eval.npz")]
    words += ["--budget", "30s", "--out", str(tmp_path / "out")]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stderr
    manifest = json.loads(ran.stdout)["manifest"]
    assert "status" not in manifest
    assert manifest["artifact"]["format"] == "tensorrt-engine"
    assert manifest["result"]["latency_ms"]["p50"] > 0
    assert manifest["result"]["quality"]["kind"] == "accuracy"
