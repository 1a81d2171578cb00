"""Candidates for a processor that is not here: what stands in for latency, which settings open them, what the report says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Self, cast

import builders
import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.calibrate.samples import synthetic
from edgeopt.passes import QuantizeStatic
from edgeopt.policy import Goal
from edgeopt.records import Artifact, Interval, Latency, Measurement, Quality, Recipe, Target, Trial
from edgeopt.runtimes.ort import OnnxRuntime
from edgeopt.stages import elsewhere, reference, report_page
from edgeopt.stages.attempt import Workbench

THERE = dataclasses.replace(builders.TARGET, name="arm", arch="elsewhere", features=("asimd",))
QUALITY = Quality(kind="agreement", metric="nsr", value=1.0, drop=0.0, ci95=(0.0, 0.0), samples=8)
SIGNED = {"activation": "int8", "per_channel": True}


def wide() -> ir.Model:
    """Convolutions whose weights and activations outweigh what stands around them."""
    net, value = builders.Net(seed=9), "image"
    for inputs in (8, 64, 64):
        weights = (net.weight(64, inputs, 3, 3, scale=0.1), net.weight(64))
        value = net.op("Relu", net.op("Conv", value, *weights, pads=[1, 1, 1, 1]))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", value))
    net.op("Gemm", pooled, net.weight(5, 64), net.weight(5), output="logits", transB=1)
    return net.build({"image": [1, 8, 12, 12]}, {"logits": [1, 5]})


def open_ended() -> ir.Model:
    """Two convolutions whose last output stays float: there x86 leaves signed codes to float arithmetic."""
    net = builders.Net(seed=3)
    value = net.op(
        "Relu", net.op("Conv", "image", net.weight(64, 64, 3, 3, scale=0.1), net.weight(64), pads=[1, 1, 1, 1])
    )
    net.op("Conv", value, net.weight(64, 64, 3, 3, scale=0.1), net.weight(64), pads=[1, 1, 1, 1], output="y")
    return net.build({"image": [1, 64, 12, 12]}, {"y": [1, 64, 12, 12]})


def compiled(model: ir.Model, file: Path, target: Target = THERE) -> Artifact:
    ir.save(model, file)
    return OnnxRuntime().compile(file, Recipe(), target)


def signed(model: ir.Model) -> ir.Model:
    return QuantizeStatic().apply(model, SIGNED, builders.FakeEvidence(model))


def test_signed_codes_move_a_fraction_of_the_bytes_once_they_are_fused(tmp_path: Path) -> None:
    model = open_ended()
    feeds = builders.feeds(model)
    runtime = OnnxRuntime()
    artifact = compiled(signed(model), tmp_path / "int8.onnx")
    fused = dataclasses.replace(artifact, session=(*artifact.session, ("fuse_int8_activations", True)))
    moved = [sum(runtime.node_bytes(each, feeds).values()) for each in (artifact, fused)]
    assert moved[0] > 1.2 * moved[1] > sum(array.nbytes for array in feeds.values())


def test_packed_constants_are_counted_too(tmp_path: Path) -> None:
    model = builders.mlp(width=64)
    moved = OnnxRuntime().node_bytes(compiled(model, tmp_path / "m.onnx"), builders.feeds(model))
    weights = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    assert sum(moved.values()) > weights


class Started:
    """A runner that answers at once, out of this process."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact, self.ran = artifact, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, feeds: Any) -> list[np.ndarray]:
        with OnnxRuntime().open(self.artifact) as session:
            return session.run(feeds)

    def hold(self, feeds: Any) -> None:
        self.run(feeds)

    def durations_s(self, count: int) -> list[float]:
        return [0.001] * count

    def peak_memory_bytes(self) -> int:
        return 1000


def bench_of(model: ir.Model, folder: Path) -> Workbench:
    original = compiled(model, folder / "original.onnx")
    signature = builders.signature(model)
    samples = synthetic(signature, (), seed=0, count=8)
    judged = reference.make(Started(original), samples, signature, {"logits": ("Gemm",)}, folder)  # type: ignore[arg-type]  # it runs
    measurement = Measurement(
        latency=Latency(p50_ms=3.0, p90_ms=3.0, p99_ms=3.0),
        speedup=Interval(value=1.0, low=1.0, high=1.0),
        bytes=original.bytes,
        bytes_ratio=1.0,
        peak_memory_bytes=4000,
        memory_ratio=1.0,
        quality=QUALITY,
    )
    return Workbench(
        model=model,
        signature=signature,
        ends={},
        evidence=cast("Any", None),
        passes={},
        runtime=OnnxRuntime(),
        target=THERE,
        goal=Goal(),
        reference=judged,
        original=cast("Any", None),
        baseline=Trial(recipe=Recipe(), artifact=original, measurement=measurement),
        timed=samples.feeds(0),
        folder=folder,
        emit=lambda _event: None,
        seed=0,
        look_s=1.0,
        start=cast("Any", Started),
    )


def test_candidate_elsewhere_is_judged_and_not_timed(tmp_path: Path) -> None:
    model = wide()
    bench = elsewhere.aimed(bench_of(model, tmp_path))
    assert bench.baseline.measurement is not None
    assert not bench.baseline.measurement.measured
    assert bench.baseline.measurement.latency.p50_ms == 3.0  # what a scan over layers may cost here
    candidate, found = bench.examine(compiled(signed(model), tmp_path / "int8.onnx"), bench)
    assert dict(candidate.session)["fuse_int8_activations"] is True
    assert not found.measured
    assert found.latency == Latency(p50_ms=0.0, p90_ms=0.0, p99_ms=0.0)
    assert found.speedup.low == found.speedup.value == found.speedup.high > 1.5
    assert found.memory_ratio == 4.0
    assert found.quality.samples == 8
    assert 0.0 < dict(found.quality.details)["nsr"] < 0.1


def test_same_model_gains_nothing_elsewhere(tmp_path: Path) -> None:
    model = wide()
    bench = elsewhere.aimed(bench_of(model, tmp_path))
    _, found = bench.examine(compiled(model, tmp_path / "same.onnx"), bench)
    assert found.speedup.value == pytest.approx(1.0)
    assert found.quality.drop == 0.0


def test_report_names_the_processor_that_the_version_waits_for() -> None:
    manifest = {
        "name": "digits",
        "status": "unverified",
        "artifact": {"format": "onnx"},
        "target": {"device": "an ARM processor with asimd"},
    }
    assert (
        report_page.headline(manifest) == "digits is built for an ARM processor with asimd and waits for such a device"
    )
    assert "another processor" in report_page.gain_sentence(manifest)
