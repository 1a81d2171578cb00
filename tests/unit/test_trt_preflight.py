"""What is found in an ONNX file before TensorRT sees it, and the optimization profile. No TensorRT needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from edgeopt.errors import CompileFailed
from edgeopt.passes import CastFp16, FoldBatchNorm, QuantizeStatic, QuantizeWeights, Tidy
from edgeopt.policy import InputHint, Span
from edgeopt.records import TensorSpec
from edgeopt.runtimes.trt import preflight
from edgeopt.runtimes.trt.order import Range
from edgeopt.runtimes.trt.profiles import profile

CODES = np.arange(16, dtype=np.int8).reshape(4, 4)


def saved(model: ir.Model, folder: Path) -> Path:
    file = folder / "model.onnx"
    ir.save(model, file)
    return file


def refusal(model: ir.Model, folder: Path, **wishes: Any) -> str:
    with pytest.raises(CompileFailed) as failure:
        preflight.prepare(saved(model, folder), **wishes)
    assert failure.value.hint.endswith(".")
    return failure.value.message


def dequantized(codes: np.ndarray, scale: Any, zero: np.ndarray) -> ir.Model:
    net = builders.Net(seed=1)
    weight = net.op("DequantizeLinear", net.const(codes), net.const(np.asarray(scale, np.float32)), net.const(zero))
    net.op("MatMul", "x", weight, output="y")
    return net.build({"x": ["N", 4]}, {"y": ["N", 4]})


def one_node(kind: str, *, domain: str = "", types: dict[str, int] | None = None, **attributes: Any) -> ir.Model:
    net = builders.Net(seed=1)
    net.op(kind, "x", output="y", domain=domain, **attributes)
    return net.build({"x": ["N", 4]}, {"y": ["N", 4]}, **(types or {}))


def test_plain_model_is_parsed_from_its_own_file(tmp_path: Path) -> None:
    file = saved(builders.conv_net(), tmp_path)
    assert preflight.prepare(file, capabilities=(8.6,)) == file
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("content", [b"", b"garbage garbage", b"\x08"])
def test_file_that_is_no_model_is_refused_before_the_parser_takes_it_for_one(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(CompileFailed, match=r"model\.onnx"):
        preflight.prepare(file)


def test_double_inputs_are_refused_since_they_would_silently_become_float(tmp_path: Path) -> None:
    double = one_node("Relu", types={"x": TensorProto.DOUBLE, "y": TensorProto.DOUBLE})
    assert "'x' is double" in refusal(double, tmp_path)


def test_operator_of_another_domain_is_named_with_its_node(tmp_path: Path) -> None:
    said = refusal(one_node("Magic", domain="com.example"), tmp_path)
    assert "Magic at node 'Magic_1'" in said
    assert "com.example" in said


def test_integer_kernels_of_onnx_runtime_are_refused(tmp_path: Path) -> None:
    net = builders.Net(seed=1)
    net.op("DynamicQuantizeLinear", "x", output="y", outputs=1)
    net.nodes[-1].output.extend(["s", "z"])
    model = net.build({"x": ["N", 4]}, {"y": ["N", 4]}, y=TensorProto.UINT8)
    assert "DynamicQuantizeLinear" in refusal(model, tmp_path)


@pytest.mark.parametrize(
    ("codes", "scale", "zero", "said"),
    [
        (CODES, 0.5, np.int8(3), "zero point that is not zero"),
        (CODES, -0.5, np.int8(0), "scale that is not above zero"),
        (CODES, 0.0, np.int8(0), "scale that is not above zero"),
        (CODES.astype(np.int32), 0.5, np.int32(0), "int32 codes"),
        (CODES.astype(ml_dtypes.uint4), 0.5, np.zeros((), ml_dtypes.uint4), "uint4 codes"),
        (CODES.view(np.uint8), 0.5, np.uint8(128), "zero point that is not zero"),
    ],
)
def test_pair_that_tensorrt_does_not_take_is_refused_by_node(
    tmp_path: Path, codes: np.ndarray, scale: float, zero: np.ndarray, said: str
) -> None:
    message = refusal(dequantized(codes, scale, np.asarray(zero)), tmp_path)
    assert "DequantizeLinear at node 'DequantizeLinear" in message
    assert said in message


def test_symmetric_pair_is_taken(tmp_path: Path) -> None:
    file = saved(dequantized(CODES, 0.5, np.asarray(np.int8(0))), tmp_path)
    assert preflight.prepare(file, capabilities=(7.5,)) == file


def test_codes_that_something_else_reads_are_refused(tmp_path: Path) -> None:
    net = builders.Net(seed=1)
    net.op("MatMul", "x", net.op("Cast", net.const(CODES), to=TensorProto.FLOAT), output="y")
    assert "8-bit constant" in refusal(net.build({"x": ["N", 4]}, {"y": ["N", 4]}), tmp_path)


@pytest.mark.parametrize(
    ("capabilities", "is_taken"), [((8.6,), True), ((7.5,), False), ((8.9, 7.5), False), ((), True)]
)
def test_float32_products_are_refused_for_turing_only(
    tmp_path: Path, capabilities: tuple[float, ...], is_taken: bool
) -> None:
    if is_taken:
        assert preflight.prepare(saved(builders.mlp(), tmp_path), capabilities=capabilities)
    else:
        assert "MatMul" in refusal(builders.mlp(), tmp_path, capabilities=capabilities)


def test_int4_weights_are_refused_for_turing(tmp_path: Path) -> None:
    model = Tidy().apply(builders.bert_block(), {}, builders.FakeEvidence(builders.bert_block(), samples=0))
    packed = QuantizeWeights().apply(
        model, {"form": "portable", "bits": 4, "small": 0.0}, builders.FakeEvidence(model, samples=0)
    )
    assert "int4, which compute capability 7.5 does not have" in refusal(packed, tmp_path, capabilities=(8.6, 7.5))


def test_missing_weights_are_named_by_their_file(tmp_path: Path) -> None:
    model = builders.with_external_data(builders.mlp(), tmp_path)
    file = saved(model, tmp_path)
    for data in tmp_path.glob("*.bin"):
        data.unlink()
    for data in tmp_path.glob("*.data"):
        data.unlink()
    proto = onnx.load(file, load_external_data=False)
    places = {
        entry.value for tensor in proto.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    if not places:
        pytest.fail("the builder kept no weights outside")
    with pytest.raises(CompileFailed, match="not beside"):
        preflight.prepare(file)


def two_sided(name: str) -> ir.Model:
    net = builders.Net(seed=2)
    net.op("Relu", "x", output="y")
    return net.build({"x": [1, 3, name, name]}, {"y": [1, 3, name, name]})


def test_dimensions_of_different_lengths_under_one_name_get_names_of_their_own(tmp_path: Path) -> None:
    file = saved(two_sided("side"), tmp_path)
    shape = Range(input="x", least=(1, 3, 48, 96), typical=(1, 3, 48, 192), most=(1, 3, 48, 320))
    prepared = preflight.prepare(file, profiles=((shape,),))
    assert prepared != file
    dims = onnx.load(prepared).graph.input[0].type.tensor_type.shape.dim
    assert dims[2].dim_param != dims[3].dim_param
    assert prepared.parent == file.parent, "external data is looked for beside the model"


def test_dimensions_that_are_equal_keep_their_common_name(tmp_path: Path) -> None:
    file = saved(two_sided("side"), tmp_path)
    shape = Range(input="x", least=(1, 3, 48, 48), typical=(1, 3, 64, 64), most=(1, 3, 96, 96))
    assert preflight.prepare(file, profiles=((shape,),)) == file


PORTABLE = {"activation": "int8", "symmetric": True, "depthwise": False, "bias_correction": True}


@pytest.mark.parametrize("build", [builders.conv_net, builders.depthwise_residual, builders.mlp, builders.bert_block])
@pytest.mark.parametrize(
    ("technique", "settings"),
    [
        (QuantizeStatic(), PORTABLE),
        (QuantizeWeights(), {"form": "portable", "bits": 8, "small": 0.0}),
        (QuantizeWeights(), {"form": "portable", "bits": 4, "block": 16, "small": 0.0}),
        (CastFp16(), {"mode": "full"}),
    ],
    ids=["static", "int8-weights", "int4-weights", "fp16"],
)
def test_our_own_portable_forms_pass(tmp_path: Path, build: Any, technique: Any, settings: dict[str, Any]) -> None:
    import dataclasses

    from edgeopt.errors import PassFailed

    model = build()
    evidence = builders.FakeEvidence(model, target=dataclasses.replace(builders.TARGET, name="tensorrt-rtx"))
    clean = FoldBatchNorm().apply(Tidy().apply(model, {}, evidence), {}, evidence)
    try:
        made = technique.apply(clean, settings, evidence)
    except PassFailed as failure:
        assert "no float32 weight" in failure.message or "none of" in failure.message  # too small to pack
        return
    file = saved(made, tmp_path)
    assert preflight.prepare(file, capabilities=(8.6, 8.9, 12.0)) == file


def test_products_that_the_file_quantizes_are_counted(tmp_path: Path) -> None:
    model = builders.conv_net()
    evidence = builders.FakeEvidence(model)
    clean = FoldBatchNorm().apply(Tidy().apply(model, {}, evidence), {}, evidence)
    products = sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in clean.graph)
    assert products
    for step, count in (
        (None, 0),
        ((QuantizeStatic(), PORTABLE), products),
        ((QuantizeWeights(), {"form": "portable"}), 0),
    ):
        made = clean if step is None else step[0].apply(clean, step[1], evidence)
        assert preflight.kept(saved(made, tmp_path)).quantized_products == count


SPEC = TensorSpec(name="x", dtype="float32", shape=("N", 3, "H"))


def test_profile_spans_the_lengths_seen_and_is_made_for_the_middle_sample() -> None:
    fixed = TensorSpec(name="z", dtype="float32", shape=(1, 2))
    (found,) = profile((SPEC, fixed), [{"x": (1, 3, 8)}, {"x": (1, 3, 32)}, {"x": (2, 3, 8)}])
    assert (found.least, found.typical, found.most) == ((1, 3, 8), (2, 3, 8), (2, 3, 32))


def test_model_without_open_dimensions_needs_no_profile() -> None:
    assert profile((TensorSpec(name="z", dtype="float32", shape=(1, 2)),), []) == ()


TOKENS = TensorSpec(name="tokens", dtype="int64", shape=("batch", "length"))
MASK = TensorSpec(name="mask", dtype="int64", shape=("batch", "past + length"))
PAST = TensorSpec(name="past", dtype="float32", shape=("batch", 2, "past"))


def seen_at(batch: int, length: int, past: int) -> dict[str, tuple[int, ...]]:
    return {"tokens": (batch, length), "mask": (batch, past + length), "past": (batch, 2, past)}


def test_typical_shapes_of_all_inputs_come_from_one_sample(tmp_path: Path) -> None:
    first = TensorSpec(name="first", dtype="float32", shape=("N", 4, "side"))
    second = TensorSpec(name="second", dtype="float32", shape=("N", "side"))
    # by itself each input's median would be another sample's: (3, 4, 1) and (1, 9)
    sizes = [(1, 9, 2), (3, 1, 3), (2, 5, 2)]
    shapes = [{"first": (n, 4, side), "second": (n, side)} for n, side, _ in sizes]
    one, other = profile((first, second), shapes)
    assert {"first": one.typical, "second": other.typical} in shapes
    net = builders.Net(seed=2)
    net.op("Relu", "first", output="y")
    net.op("Relu", "second", output="z")
    model = net.build({"first": ["N", 4, "side"], "second": ["N", "side"]}, {"y": ["N", 4, "side"], "z": ["N", "side"]})
    file = saved(model, tmp_path)
    assert preflight.prepare(file, profiles=((one, other),)) == file, "a dimension keeps its name"


def test_stated_lengths_hold_for_every_dimension_of_the_name_and_for_sums_with_it() -> None:
    stated = [
        ("tokens", InputHint(shape=(Span(least=1, most=8), Span(least=1, typical=1, most=128)))),
        ("past", InputHint(shape=("batch", 2, Span(least=1, typical=64, most=512)))),
    ]
    tokens, mask, past = profile((TOKENS, MASK, PAST), [seen_at(2, 16, 16), seen_at(2, 1, 32)], stated=stated)
    assert (tokens.least, tokens.typical, tokens.most) == ((1, 1), (2, 1), (8, 128))
    assert (past.least, past.typical, past.most) == ((1, 2, 1), (2, 2, 64), (8, 2, 512))
    assert (mask.least, mask.typical, mask.most) == ((1, 2), (2, 65), (8, 640))


def test_what_is_not_stated_still_spans_the_samples() -> None:
    stated = [("x", InputHint(shape=(Span(least=1, typical=4, most=32), 3, "H")))]
    (found,) = profile((SPEC,), [{"x": (1, 3, 8)}, {"x": (1, 3, 32)}, {"x": (2, 3, 8)}], stated=stated)
    assert (found.least, found.typical, found.most) == ((1, 3, 8), (4, 3, 8), (32, 3, 32))


def test_dimension_without_a_name_takes_what_is_stated_in_its_place_only() -> None:
    sides = TensorSpec(name="x", dtype="float32", shape=("?", 3, "?"))
    stated = [("x", InputHint(shape=(1, 3, Span(least=32, most=640))))]
    (found,) = profile((sides,), [{"x": (1, 3, 48)}], stated=stated)
    assert (found.least, found.typical, found.most) == ((1, 3, 32), (1, 3, 48), (1, 3, 640))


def test_sample_beyond_what_is_stated_is_named_with_both_numbers() -> None:
    stated = [("x", InputHint(shape=(Span(least=1, most=4), 3, "H")))]
    with pytest.raises(CompileFailed, match=r"length 9 in dimension N, and the job file states 1\.\.4"):
        profile((SPEC,), [{"x": (9, 3, 8)}], stated=stated)


@pytest.mark.parametrize("seen", [[], [{"other": (1,)}], [{"x": (1, 3)}]])
def test_open_dimension_that_no_sample_tells_is_refused(seen: list[dict[str, tuple[int, ...]]]) -> None:
    with pytest.raises(CompileFailed, match="'x'"):
        profile((SPEC,), seen)
