"""Real engines from the real builder of TensorRT for RTX, which needs no GPU; with the extra ``tensorrt-rtx`` only."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import builders
import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from special import wide

from edgeopt.errors import CompileFailed
from edgeopt.integrity import sha256_of
from edgeopt.passes import CastFp16, FoldBatchNorm, PruneChannels, PruneWeights, QuantizeStatic, QuantizeWeights, Tidy
from edgeopt.policy import InputHint, Span
from edgeopt.records import Artifact, EngineFacts, Recipe, TensorSpec
from edgeopt.runtimes.trt import header
from edgeopt.runtimes.trt.runtime import TensorRt, rtx

pytestmark = pytest.mark.trt_rtx
PORTABLE = {"activation": "int8", "symmetric": True, "depthwise": False, "bias_correction": True}
NETS = {
    "conv_net": {"image": (1, 3, 16, 16)},
    "depthwise_residual": {"image": (1, 4, 8, 8)},
    "wide": {"image": (1, 16, 16, 16)},
}


def model_of(name: str) -> ir.Model:
    model = wide() if name == "wide" else getattr(builders, name)()
    evidence = builders.FakeEvidence(model, samples=0)
    return FoldBatchNorm().apply(Tidy().apply(model, {}, evidence), {}, evidence)


def apply(technique: Any, model: ir.Model, **settings: Any) -> ir.Model:
    target = dataclasses.replace(builders.TARGET, name="tensorrt-rtx")
    made = technique.apply(model, settings, builders.FakeEvidence(model, target=target))
    assert isinstance(made, ir.Model)
    return made


def runtime_for(name: str) -> TensorRt:
    inputs = [TensorSpec(name=each, dtype="float32", shape=("N",) * len(shape)) for each, shape in NETS[name].items()]
    return rtx().taking(inputs, [NETS[name]])


def compiled(model: ir.Model, name: str, folder: Path, *capabilities: float) -> Artifact:
    file = folder / "model.onnx"
    ir.save(model, file)
    target = dataclasses.replace(builders.TARGET, name="tensorrt-rtx", compute_capability=capabilities or (8.6,))
    return runtime_for(name).compile(file, Recipe(), target)


def facts(artifact: Artifact) -> EngineFacts:
    assert artifact.engine is not None
    return artifact.engine


@pytest.mark.parametrize("name", ["conv_net", "depthwise_residual"])
@pytest.mark.parametrize(
    "step",
    [
        None,
        (QuantizeStatic(), PORTABLE),
        (CastFp16(), {"mode": "full"}),
    ],
    ids=["fp32", "int8", "fp16"],
)
def test_portable_forms_become_engines_for_three_generations_at_once(tmp_path: Path, name: str, step: Any) -> None:
    model = model_of(name)
    made = model if step is None else apply(step[0], model, **step[1])
    artifact = compiled(made, name, tmp_path, 8.6, 8.9, 12.0)
    engine = Path(artifact.path)
    told = header.read(engine)
    assert told is not None
    assert told.gpus == ("SM86", "SM89", "SM120") == facts(artifact).gpus
    assert told.version == artifact.runtime_version
    assert artifact.sha256 == sha256_of(engine)
    assert artifact.bytes == engine.stat().st_size
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.engine", "model.onnx"]


def test_int8_really_runs_in_int8_and_its_weights_are_small(tmp_path: Path) -> None:
    model = model_of("wide")
    before = facts(compiled(model, "wide", tmp_path))
    after = facts(compiled(apply(QuantizeStatic(), model, **PORTABLE), "wide", tmp_path))
    assert before.int8_products == 0
    assert after.products is not None
    assert after.products >= 3
    assert after.int8_products == after.products
    assert before.weights_bytes is not None
    assert after.weights_bytes is not None
    assert after.weights_bytes < 0.4 * before.weights_bytes


def test_zeros_in_two_of_four_build_and_never_cost_bytes(tmp_path: Path) -> None:
    model = model_of("wide")
    sparse = apply(PruneWeights(), model, pattern="2:4", form="dense", method="magnitude")
    dense_facts, sparse_facts = (
        facts(compiled(apply(CastFp16(), each, mode="full"), "wide", tmp_path)) for each in (model, sparse)
    )
    assert dense_facts.weights_bytes is not None
    assert sparse_facts.weights_bytes is not None
    assert sparse_facts.weights_bytes <= dense_facts.weights_bytes


def test_depthwise_layers_left_float_cost_fewer_bytes_than_padded_int8_ones(tmp_path: Path) -> None:
    model = model_of("depthwise_residual")
    ours = facts(compiled(apply(QuantizeStatic(), model, **PORTABLE), "depthwise_residual", tmp_path))
    padded = facts(
        compiled(apply(QuantizeStatic(), model, **{**PORTABLE, "depthwise": True}), "depthwise_residual", tmp_path)
    )
    assert ours.weights_bytes is not None
    assert padded.weights_bytes is not None
    assert ours.weights_bytes < padded.weights_bytes


def test_pruned_channels_are_gone_from_the_engine(tmp_path: Path) -> None:
    model = model_of("wide")
    pruned = apply(PruneChannels(), model, ratio=0.3)
    whole, less = (facts(compiled(each, "wide", tmp_path)) for each in (model, pruned))
    assert whole.weights_bytes is not None
    assert less.weights_bytes is not None
    assert less.weights_bytes < 0.8 * whole.weights_bytes


@pytest.mark.parametrize(("bits", "block"), [(8, 0), (4, 0), (4, 32)])
def test_portable_weights_stay_packed_in_the_engine(tmp_path: Path, bits: int, block: int) -> None:
    model = model_of("wide")
    packed = apply(QuantizeWeights(), model, form="portable", bits=bits, block=block)
    plain, small = facts(compiled(model, "wide", tmp_path)), facts(compiled(packed, "wide", tmp_path))
    assert plain.weights_bytes is not None
    assert small.weights_bytes is not None
    assert small.weights_bytes < (0.3 if bits == 8 else 0.2) * plain.weights_bytes


def test_turing_undoes_int8_and_the_coverage_says_so(tmp_path: Path) -> None:
    net = builders.Net(seed=3)
    first = net.op("Relu", net.op("Conv", "image", net.weight(32, 16, 3, 3), net.weight(32), pads=[1, 1, 1, 1]))
    net.op("Relu", net.op("Conv", first, net.weight(32, 32, 3, 3), net.weight(32)), output="features")
    model = net.build({"image": ["N", 16, 16, 16]}, {"features": ["N", 32, 14, 14]})
    made = apply(QuantizeStatic(), model, **PORTABLE)
    turing, ampere, both = (facts(compiled(made, "wide", tmp_path, *aim)) for aim in ((7.5,), (8.6,), (8.6, 7.5)))
    assert (turing.int8_products, turing.quantized_products) == (0, 1)
    assert turing.undone.startswith("0 of 2 layers run in int8 on SM75")
    assert ampere.int8_products
    assert not ampere.undone
    # one engine holds one form for all of its GPUs, so that the least able one takes int8 from the others
    assert (both.int8_products, both.traffic_bytes) == (0, turing.traffic_bytes)
    assert both.undone.startswith("0 of 2 layers run in int8 on SM86, SM75")


def test_same_model_gives_the_same_engine_and_key(tmp_path: Path) -> None:
    model = apply(QuantizeStatic(), model_of("conv_net"), **PORTABLE)
    artifacts = [compiled(model, "conv_net", tmp_path) for _ in range(2)]
    assert artifacts[0].sha256 == artifacts[1].sha256
    assert facts(artifacts[0]).key == facts(artifacts[1]).key


def test_real_engine_is_taken_from_the_cache_as_it_was_built(tmp_path: Path) -> None:
    told: list[str] = []
    file = tmp_path / "model.onnx"
    ir.save(model_of("conv_net"), file)
    target = dataclasses.replace(builders.TARGET, name="tensorrt-rtx", compute_capability=(8.6,))
    runtime = runtime_for("conv_net").under(
        limit_s=60.0, tell=lambda _share, words: told.append(words), cache=tmp_path / "engines"
    )
    built = runtime.compile(file, Recipe(), target)
    Path(built.path).unlink()
    told.clear()
    assert runtime.compile(file, Recipe(), target) == built
    assert told == ["engine: Taking it from the cache, 1 of 1"]
    assert sha256_of(Path(built.path)) == built.sha256


def in_codes(kind: Any, *, activations: bool = False) -> ir.Model:
    """A matrix product by weights in codes of ``kind``, and with ``activations`` of such codes too."""
    net = builders.Net(seed=1)
    zero = net.const(np.zeros((), kind))
    codes = net.const(np.random.default_rng(0).integers(0, 7, (64, 32)).astype(np.float32).astype(kind))
    value = "image"
    if activations:
        scale = net.const(np.float32(0.1))
        value = net.op("DequantizeLinear", net.op("QuantizeLinear", value, scale, zero), scale, zero)
    net.op("MatMul", value, net.op("DequantizeLinear", codes, net.const(np.float32(0.5)), zero), output="y")
    return net.build({"image": [4, 64]}, {"y": [4, 32]})


def engine_of(model: ir.Model, folder: Path, capability: float) -> EngineFacts:
    ir.save(model, folder / "model.onnx")
    target = dataclasses.replace(builders.TARGET, name="tensorrt-rtx", compute_capability=(capability,))
    return facts(rtx().compile(folder / "model.onnx", Recipe(), target))


@pytest.mark.parametrize("activations", [False, True])
def test_fp8_builds_where_the_gpu_has_it_and_is_refused_where_not(tmp_path: Path, activations: bool) -> None:
    model = in_codes(ml_dtypes.float8_e4m3fn, activations=activations)
    for capability in (8.9, 12.0):
        built = engine_of(model, tmp_path, capability)
        assert (built.products, built.packed_products, built.undone) == (1, 1, "")
    (tmp_path / "model.engine").unlink()
    error = refused(model, tmp_path, capability=8.6)
    assert "is float8e4m3fn, which compute capability 8.6 does not have" in error.message
    assert error.hint.startswith("Leave out the compute capabilities below 8.9")


@pytest.mark.parametrize("capability", [8.6, 8.9, 12.0])
def test_int4_builds_and_uint4_is_refused_everywhere(tmp_path: Path, capability: float) -> None:
    assert engine_of(in_codes(ml_dtypes.int4), tmp_path, capability).weights_bytes
    (tmp_path / "model.engine").unlink()
    error = refused(in_codes(ml_dtypes.uint4), tmp_path, capability=capability)
    assert "DequantizeLinear at node 'DequantizeLinear_" in error.message
    assert "has uint4 codes; TensorRT takes int8, int4 and fp8" in error.message


def refused(model: ir.Model, folder: Path, *, name: str = "conv_net", capability: float = 8.6) -> CompileFailed:
    with pytest.raises(CompileFailed) as failure:
        compiled(model, name, folder, capability)
    assert "\n" not in failure.value.message
    assert failure.value.hint.endswith(".")
    assert not (folder / "model.engine").exists()
    return failure.value


def test_operator_without_a_kernel_is_named(tmp_path: Path) -> None:
    net = builders.Net(seed=1)
    net.op("Unique", "image", output="y")
    model = net.build({"image": [1, 3, 16, 16]}, {"y": ["K"]})
    assert "Unique at node 'Unique_1' is not supported" in refused(model, tmp_path).message


def test_asymmetric_uint8_is_refused_before_the_build(tmp_path: Path) -> None:
    model = apply(QuantizeStatic(), model_of("conv_net"))
    assert "has a zero point that is not zero" in refused(model, tmp_path).message


@pytest.mark.skipif(Path("/proc/driver/nvidia/gpus").is_dir(), reason="there is a GPU")
def test_engine_without_a_gpu_is_a_clean_refusal(tmp_path: Path) -> None:
    artifact = compiled(model_of("conv_net"), "conv_net", tmp_path)
    with pytest.raises(CompileFailed, match="NVIDIA GPU"), rtx().open(artifact):
        pass


def test_shared_dimension_name_of_unequal_sides_builds(tmp_path: Path) -> None:
    net = builders.Net(seed=2)
    net.op("Relu", net.op("Conv", "x", net.weight(4, 3, 3, 3), pads=[1, 1, 1, 1]), output="y")
    model = net.build({"x": [1, 3, "?", "?"]}, {"y": [1, 4, "a", "b"]})
    file = tmp_path / "model.onnx"
    ir.save(model, file)
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 3, "?", "?"))
    target = dataclasses.replace(builders.TARGET, name="tensorrt-rtx", compute_capability=(8.6,))
    assert rtx().taking([spec], [{"x": (1, 3, 48, 192)}]).compile(file, Recipe(), target).bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_lite0", "ppocr_v4_det", "magika_v3_3"])
@pytest.mark.corpus
def test_real_model_in_portable_int8_is_smaller_and_multiplies_in_int8(tmp_path: Path, name: str) -> None:
    folder = Path(os.environ["EDGEOPT_CORPUS"]) / name
    model = ir.load(folder / "model.onnx")
    evidence = builders.FakeEvidence(model, samples=0)
    clean = FoldBatchNorm().apply(Tidy().apply(model, {}, evidence), {}, evidence)
    with np.load(folder / "calib.npz") as arrays:
        stacked = json.loads((folder / "meta.json").read_text())["npz_layout"] == "stacked"
        feeds = {
            key: np.asarray(arrays[key][0] if stacked else arrays[key][:1]) for key in arrays.files if key != "labels"
        }
    names = [str(value.name) for value in clean.graph.inputs]
    feeds = {key: feeds[key] for key in names}

    class OneSample(builders.FakeEvidence):
        def samples(self) -> Any:
            return iter([feeds])

    int8 = QuantizeStatic().apply(clean, {**PORTABLE, "bias_correction": False}, OneSample(clean, samples=1))
    inputs = [
        TensorSpec(name=str(value.name), dtype="float32", shape=("N",) * len(feeds[str(value.name)].shape))
        for value in clean.graph.inputs
    ]
    builder = rtx().taking(inputs, [{key: value.shape for key, value in feeds.items()}])
    target = dataclasses.replace(builders.TARGET, name="tensorrt-rtx", compute_capability=(8.6,))
    found = []
    for number, made in enumerate((clean, int8)):
        file = tmp_path / f"{number}.onnx"
        ir.save(made, file)
        found.append(facts(builder.compile(file, Recipe(), target)))
    before, after = found
    assert before.weights_bytes is not None
    assert after.weights_bytes is not None
    assert after.weights_bytes < 0.4 * before.weights_bytes
    assert after.int8_products
    assert after.int8_products >= 2


@pytest.mark.slow
def test_optimize_publishes_an_unverified_engine_beside_its_model(tmp_path: Path) -> None:
    import edgeopt

    shipped = Path(edgeopt.__file__).parent / "demo"
    job = tmp_path / "job.yaml"
    job.write_text("target: {name: tensorrt-rtx, compute_capability: [8.6, 8.9]}\n")
    recipe = [{"technique": "tidy"}, {"technique": "quantize_static", **PORTABLE}]
    words = [
        "optimize",
        str(shipped / "digits.onnx"),
        "--calibration",
        str(shipped / "digits.calibration.npz"),
        "--job",
        str(job),
    ]
    words += [
        "--eval",
        str(shipped / "digits.eval.npz"),
        "--recipe",
        json.dumps(recipe),
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "edgeopt", *words], capture_output=True, text=True, timeout=110, check=False
    )
    assert ran.returncode == 0, ran.stderr
    manifest = json.loads(ran.stdout)["manifest"]
    folder = Path(json.loads(ran.stdout)["folder"])
    assert manifest["status"] == "unverified"
    assert manifest["verification"]["latency"]["measured"] is False
    assert manifest["artifact"]["format"] == "tensorrt-engine"
    assert manifest["artifact"]["runtime"] == "tensorrt-rtx"
    assert manifest["target"]["compute_capability"] == [8.6, 8.9]
    assert manifest["result"]["quality"]["kind"] == "accuracy"
    assert "latency_ms" not in manifest["result"]
    assert sha256_of(folder / manifest["artifact"]["file"]) == manifest["artifact"]["sha256"]
    assert (folder / "model.onnx").exists()
    # what was judged may stand in for the engine, opened as it was judged
    stand_in = manifest["artifact"]["fallback"]
    assert (stand_in["runtime"], stand_in["session"]["float_codes"]) == ("onnxruntime", True)
    if not Path("/proc/driver/nvidia/gpus").is_dir():
        with edgeopt.load(folder) as model:
            assert model.run({"image": np.zeros((1, 1, 8, 8), np.float32)})[0].shape == (1, 10)
    assert (
        "unverified" in (folder / "report.html").read_text()
        or "waits for such a device" in (folder / "report.html").read_text()
    )
    verified = subprocess.run(
        [sys.executable, "-m", "edgeopt", "verify", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if not Path("/proc/driver/nvidia/gpus").is_dir():
        assert verified.returncode == 1
        assert "model.engine runs on an NVIDIA GPU" in verified.stderr


# ---------------------------------------------------------------- shapes from the data
@pytest.mark.parametrize(
    ("lengths", "spans"),
    [((20, 33, 64), (20, 33, 64)), ((48,), (48, 48, 48)), ((64, 16, 16, 16), (16, 16, 64))],
    ids=["three lengths", "one length", "mostly short"],
)
def test_engine_spans_the_lengths_of_the_samples(
    tmp_path: Path, lengths: tuple[int, ...], spans: tuple[int, int, int]
) -> None:
    net = builders.Net(seed=4)
    hidden = net.op("Relu", net.op("MatMul", "tokens", net.weight(32, 64)))
    net.op("MatMul", hidden, net.weight(64, 8), output="logits")
    file = tmp_path / "model.onnx"
    ir.save(net.build({"tokens": [1, "length", 32]}, {"logits": [1, "length", 8]}), file)
    spec = TensorSpec(name="tokens", dtype="float32", shape=(1, "length", 32))
    target = dataclasses.replace(builders.TARGET, name="tensorrt-rtx", compute_capability=(8.6,))
    artifact = rtx().taking([spec], [{"tokens": (1, length, 32)} for length in lengths]).compile(file, Recipe(), target)
    (ranges,) = json.loads(str(dict(artifact.session)["profiles"]))
    assert [ranges[0][part] for part in ("least", "typical", "most")] == [[1, side, 32] for side in spans]
    assert dict(artifact.session)["outputs"] == '["logits"]'
    assert Path(artifact.path).stat().st_size == artifact.bytes


def two_inputs() -> ir.Model:
    net = builders.Net(seed=4)
    joined = net.op("Concat", net.op("MatMul", "past", net.weight(32, 32)), "tokens", axis=1)
    net.op("Add", net.op("MatMul", joined, net.weight(32, 8)), "mask", output="logits")
    inputs = {"tokens": ["batch", "length", 32], "past": ["batch", "past", 32], "mask": ["batch", "past + length", 1]}
    return net.build(inputs, {"logits": ["batch", "past + length", 8]})


def test_stated_lengths_become_a_real_engine_also_where_one_sample_is_all_there_is(tmp_path: Path) -> None:
    model = two_inputs()
    file = tmp_path / "model.onnx"
    ir.save(model, file)
    stated = [
        ("tokens", InputHint(shape=(Span(least=1, most=4), Span(least=1, typical=1, most=128), 32))),
        ("past", InputHint(shape=("batch", Span(least=1, typical=64, most=512), 32))),
    ]
    one = {"tokens": (1, 16, 32), "past": (1, 16, 32), "mask": (1, 32, 1)}
    target = dataclasses.replace(builders.TARGET, name="tensorrt-rtx", compute_capability=(8.6,))
    runtime = rtx().taking(builders.signature(model).inputs, [one], stated=stated)
    artifact = runtime.compile(file, Recipe(), target)
    (ranges,) = json.loads(str(dict(artifact.session)["profiles"]))
    assert {each["input"]: (each["least"], each["typical"], each["most"]) for each in ranges} == {
        "tokens": ([1, 1, 32], [1, 1, 32], [4, 128, 32]),
        "past": ([1, 1, 32], [1, 64, 32], [4, 512, 32]),
        "mask": ([1, 2, 1], [1, 65, 1], [4, 640, 1]),
    }
    assert header.read(Path(artifact.path)) is not None
