"""What TensorRT says, as edgeopt passes it on; the layer table; the engine's key and header. No TensorRT needed."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import pytest

from edgeopt.errors import CompileFailed
from edgeopt.records import EngineFacts
from edgeopt.runtimes.trt import coverage, faults, header
from edgeopt.runtimes.trt import key as key_module
from edgeopt.runtimes.trt.key import engine_key
from edgeopt.runtimes.trt.order import OPTIONS, Answer, Order, ParseFault, Range

NO_DRIVER = "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (CUDA driver version is insufficient; cudaError 35)"
SCOPE = (
    "[graphScope.cpp::analyze::463] Error Code 2: Internal Error (Assertion mScopedOp2Scopes.contains(childScopedOp) "
    "failed.  In analyze at /_src/optimizer/common/graphScope.cpp:463)"
)
TURING = (
    "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check_turing_op_compatibility] Cannot compile "
    "operation '/_fc/Gemm' for Turing (SM75): FP32 GEMM is not supported. In compileGraph at /_src/optimizer/x.cpp:2012)"
)
CONV = (
    "Name: node_Conv_0_myl0_2, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [1,4,8,8], Strides: [256,1,32,4], "
    "StrideOrder: [3,0,2,1], Datatype: {data}, Format: (NHWC) Channel major format }], Constants: [ { Name: w, Dimensions: "
    "[16,4,3,3], Strides: [36,1,12,4], StrideOrder: [3,0,2,1], Datatype: {weight}, Format: (NHWC) Channel major format }], "
    "Outputs: [ { Name: b, Dimensions: [1,16,8,8], Strides: [1,1,1,1], StrideOrder: [3,0,2,1], Datatype: Float, Format: x }], "
    "TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: node_Conv_0][ONNX Layer: x_dequantized]"
)
KERNEL = (
    "Name: __myl_Mul, LayerType: kgen, Inputs: [], Outputs: [ { Name: c, Dimensions: [1,-1], Strides: [1,1], StrideOrder: [1,0], "
    "Datatype: Half, Format: x }], TacticName: __myl_Mul_0x1, StreamId: 0, Metadata: "
)


def conv(data: str, weight: str) -> str:
    return CONV.replace("{data}", data).replace("{weight}", weight)


def refused(*log: str, stage: str = "build") -> CompileFailed:
    return faults.translate(Answer(stage=stage, version="1.7.1", log=log), gpus=("SM86",))


def test_reason_is_the_line_that_is_not_about_a_missing_driver() -> None:
    error = refused(NO_DRIVER, SCOPE, NO_DRIVER)
    assert error.message == (
        "TensorRT 1.7.1 does not build the engine for SM86: "
        "Internal Error (Assertion mScopedOp2Scopes.contains(childScopedOp) failed)"
    )
    assert "inside of TensorRT" in error.hint


def test_refusal_of_a_gpu_names_the_node_and_says_which_gpu_to_leave_out() -> None:
    error = refused(TURING)
    assert "'/_fc/Gemm' for Turing (SM75): FP32 GEMM is not supported" in error.message
    assert "/_src" not in error.message
    assert error.hint == "Leave compute capability 7.5 out."


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (ParseFault(code="INVALID_NODE", node="n1", operator="Magic", text='creator && "Plugin not found, are the"'), "Magic at node 'n1' is no operator of TensorRT"),
        (ParseFault(code="UNSUPPORTED_NODE", node="n2", operator="Unique", text="false"), "Unique at node 'n2' is not supported"),
        (
            ParseFault(code="INVALID_NODE", node="n3", operator="DequantizeLinear", text="Assertion failed: (scaleAllPositive || allowNegativeScale): Scale coefficients must all be positive"),
            "DequantizeLinear at node 'n3' has a scale that is not above zero",
        ),
        (
            ParseFault(code="INVALID_NODE", node="n4", operator="DequantizeLinear", text=f"Invalid Node - n4\nITensor::getDimensions: Error Code 4: API Usage Error (The blocking dimension must be the last In x at /_src/y.cpp:444)\n{NO_DRIVER}"),
            "is refused: API Usage Error (The blocking dimension must be the last)",
        ),
    ],
)  # fmt: skip
def test_parser_fault_is_one_sentence_with_operator_and_node(fault: ParseFault, said: str) -> None:
    error = faults.translate(Answer(stage="parse", version="1.7.1", faults=(fault,)))
    assert said in error.message
    assert "\n" not in error.message
    assert error.hint.endswith(".")


def test_build_without_a_word_still_gives_a_sentence() -> None:
    assert refused(NO_DRIVER).message.endswith("CUDA finds no GPU or no driver, which this build needs")
    assert refused().message.endswith("it gave no reason")
    assert refused().hint


@pytest.mark.parametrize("stage", ["import", "parse", "profile", "cancelled", "build"])
def test_every_way_to_end_has_a_fact_and_a_hint(stage: str) -> None:
    error = refused("[x.cpp::y::1] Error Code 4: something", stage=stage)
    assert error.message
    assert error.hint.endswith(".")


def test_table_tells_int8_from_packed_from_half_layers() -> None:
    table = "\n".join(
        ["Layers:", conv("Int8", "Int8"), conv("Float", "Int4"), conv("Half", "Half"), conv("Float", "Float"), KERNEL]
    )
    found = coverage.summary(coverage.read(table))
    assert found is not None
    assert (found.layers, found.products, found.int8, found.packed, found.half) == (5, 4, 1, 1, 1)


def test_traffic_counts_every_tensor_by_its_type_and_open_sides_as_one() -> None:
    (layer, kernel) = coverage.read("\n".join([conv("Int8", "Int8"), KERNEL]))
    assert layer.bytes == 1 * 4 * 8 * 8 + 16 * 4 * 3 * 3 + 4 * 16 * 8 * 8
    assert layer.nodes == ("node_Conv_0", "x_dequantized")
    assert kernel.bytes == 2


@pytest.mark.parametrize("table", ["", "Layers:\n", "Layers:\nA: new, Format: that, Nobody: knows"])
def test_table_in_an_unknown_format_gives_no_coverage_instead_of_a_wrong_one(table: str) -> None:
    assert coverage.summary(coverage.read(table)) is None


def test_of_several_tables_the_one_with_the_fewest_int8_layers_counts() -> None:
    tables = [conv("Int8", "Int8"), conv("Float", "Float"), "Layers:\nwhat is this"]
    found = coverage.of_build(["Layers:\n" + table for table in tables])
    assert found is not None
    assert (found.products, found.int8) == (1, 0)
    assert coverage.of_build([]) is None


FACTS = EngineFacts(
    key="k", gpus=("SM75",), build_s=1.0, layers=70, products=64, int8_products=0, quantized_products=64
)


@pytest.mark.parametrize(
    ("facts", "coverage", "undone"),
    [
        (FACTS, "0 of 64 layers multiply in int8 on SM75", "0 of 64 layers run in int8 on SM75: TensorRT undid the quantization of 64, since this GPU has no kernels for it"),
        (dataclasses.replace(FACTS, gpus=("SM75", "SM86")), "0 of 64 layers multiply in int8 on SM75, SM86", "0 of 64 layers run in int8 on SM75, SM86: TensorRT undid the quantization of 64, since one of these GPUs has no kernels for it, and one engine serves them all"),
        (dataclasses.replace(FACTS, int8_products=48, half_products=16), "48 of 64 layers multiply in int8 on SM75, 16 in float16", ""),
        (dataclasses.replace(FACTS, quantized_products=0, packed_products=64), "0 of 64 layers multiply in int8 on SM75, 64 by packed weights", ""),
        (dataclasses.replace(FACTS, products=None, int8_products=None), "", ""),
        (dataclasses.replace(FACTS, gpus=(), quantized_products=None), "0 of 64 layers multiply in int8", ""),
    ],
)  # fmt: skip
def test_engine_says_how_much_of_it_is_int8_and_when_quantization_was_undone(
    facts: EngineFacts, coverage: str, undone: str
) -> None:
    assert (facts.coverage, facts.undone) == (coverage, undone)


ORDER = Order(module="m", model="/a/model.onnx", engine="/a/model.engine", gpus=("SM86", "SM89"))
RANGE = Range(input="x", least=(1, 3), typical=(2, 3), most=(4, 3))


def test_key_changes_with_everything_that_shapes_the_engine_and_with_nothing_else(tmp_path: Path) -> None:
    model, data = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    model.write_bytes(b"graph")
    data.write_bytes(b"weights")

    def key(order: Order = ORDER, **facts: str) -> str:
        return engine_key((model, data), order, **{"flavour": "tensorrt-rtx", "version": "1.7.1", **facts})

    first = key()
    assert key(dataclasses.replace(ORDER, engine="/b/other.engine", gpus=("SM89", "SM86"))) == first
    others = [
        key(dataclasses.replace(ORDER, gpus=("SM86",))),
        key(dataclasses.replace(ORDER, profiles=((RANGE,),))),
        key(dataclasses.replace(ORDER, workspace_bytes=1 << 20)),
        key(version="1.7.2"),
        key(flavour="tensorrt"),
        key(device="another GPU"),
    ]
    data.write_bytes(b"weightz")
    others.append(key())
    assert len({first, *others}) == len(others) + 1


def test_key_changes_with_how_engines_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    before = engine_key([tmp_path / "model.onnx"], ORDER, flavour="f", version="v")
    monkeypatch.setitem(OPTIONS, "sparse_weights", False)
    other_options = engine_key([tmp_path / "model.onnx"], ORDER, flavour="f", version="v")
    monkeypatch.setattr(key_module, "_PLATFORM", "linux-aarch64")
    other_platform = engine_key([tmp_path / "model.onnx"], ORDER, flavour="f", version="v")
    assert len({before, other_options, other_platform}) == 3


def test_key_does_not_run_neighbouring_files_together(tmp_path: Path) -> None:
    one, two = tmp_path / "a", tmp_path / "b"
    keys = []
    for contents in ((b"ab", b"c"), (b"a", b"bc")):
        one.write_bytes(contents[0])
        two.write_bytes(contents[1])
        keys.append(engine_key((one, two), ORDER, flavour="f", version="v"))
    assert keys[0] != keys[1]


def head(length: int, mask: int = 4 | 8) -> bytes:
    return (
        b"vtrt".ljust(16, b"\0")
        + struct.pack("<Q", length)
        + bytes([1, 7, 1, 116])
        + b"\0" * 4
        + struct.pack("<I", mask)
    )


def test_header_tells_release_and_gpus(tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(head(100).ljust(100, b"\0"))
    assert header.read(engine) == header.Header(version="1.7.1.116", gpus=("SM86", "SM89"), bytes=100)


@pytest.mark.parametrize(
    "content", [b"", b"vtrt", head(99).ljust(100, b"\0"), b"ftrt" + head(100)[4:].ljust(96, b"\0")]
)
def test_header_of_anything_else_is_none(tmp_path: Path, content: bytes) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(content)
    assert header.read(engine) is None
