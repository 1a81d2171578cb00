"""The worker's door for models: what is refused, as what, and that odd but valid models pass."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from doors import LIMITS, WEIGHT, external, matmul, model_of, refusal, saved, tensor_info, with_data
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import (
    BadWeights,
    EmptyFile,
    InputError,
    NotAModel,
    TooLarge,
    TruncatedModel,
    UnsafeFile,
    UnsupportedModel,
)
from edgeopt.graph import infer
from edgeopt.graph.limits import expanded_nodes
from edgeopt.graph.load import load, load_checked


# ---------------------------------------------------------------- files
def test_empty_file_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(EmptyFile):
        load(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "content", [b"<html>404</html>", b"\x80\x02}q\x00.", b"PK\x03\x04", b"\x00" * 64, b"hello world"]
)
def test_file_that_is_no_protobuf_is_not_a_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(NotAModel):
        load(tmp_path / "model.onnx")


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9, 0.99])
def test_model_that_was_cut_off_is_truncated(tmp_path: Path, share: float) -> None:
    content = matmul().SerializeToString()
    (tmp_path / "model.onnx").write_bytes(content[: max(2, int(len(content) * share))])
    with pytest.raises(TruncatedModel):
        load(tmp_path / "model.onnx")


def test_symlink_and_fifo_are_unsafe_files(tmp_path: Path) -> None:
    (tmp_path / "link.onnx").symlink_to(saved(tmp_path, matmul()))
    os.mkfifo(tmp_path / "fifo.onnx")
    for name in ("link.onnx", "fifo.onnx"):
        with pytest.raises(UnsafeFile):
            load(tmp_path / name)


def test_file_above_the_limit_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(8 << 40)
    with pytest.raises(TooLarge, match="8,796,093,022,208 bytes"):
        load(path)


def test_deeply_nested_messages_are_refused(tmp_path: Path) -> None:
    content = b""
    for _ in range(200):
        # graph, node, attribute, graph ...
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            content = tag + varint(len(content)) + content
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08\x3a" + varint(len(content)) + content)
    with pytest.raises(InputError):
        load(tmp_path / "model.onnx")


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


# ---------------------------------------------------------------- expansion
def doubling_functions(count: int) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    functions = [helper.make_function("f", "f0", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], imports)]
    for number in range(1, count):
        inner = f"f{number - 1}"
        body = [helper.make_node(inner, ["a"], ["c"], domain="f"), helper.make_node(inner, ["c"], ["b"], domain="f")]
        functions.append(helper.make_function("f", f"f{number}", ["a"], ["b"], body, imports))
    call = helper.make_node(f"f{count - 1}", ["x"], ["y"], domain="f")
    return model_of(call, functions=functions, domains=["f"])


def test_doubling_functions_are_counted_exactly_without_expanding_them() -> None:
    assert expanded_nodes(doubling_functions(10)) == 2**10 + 2**9 - 1
    assert expanded_nodes(doubling_functions(200)) == 2**200 + 2**199 - 1


@pytest.mark.parametrize("count", [25, 60, 400])
def test_doubling_functions_are_too_large(tmp_path: Path, count: int) -> None:
    assert "nodes" in refusal(tmp_path, doubling_functions(count), TooLarge)


def test_long_chain_of_functions_is_walked_without_recursion() -> None:
    model = doubling_functions(2)
    for number in range(2, 5000):
        function = model.functions.add()
        function.CopyFrom(model.functions[1])
        function.name = f"f{number}"
        function.node[0].op_type, function.node[1].op_type = f"f{number - 1}", "f0"
    model.graph.node[0].op_type = "f4999"
    # each function is two nodes, of which one is expanded
    assert expanded_nodes(model) == 1 + 4 + 4998 * 3


@pytest.mark.parametrize("partner", ["f0", "f1"])
def test_functions_that_call_each_other_in_a_circle_are_refused(tmp_path: Path, partner: str) -> None:
    model = doubling_functions(2)
    model.functions[0].node.append(helper.make_node(partner, ["a"], ["d"], domain="f"))
    assert "calls itself" in refusal(tmp_path, model, UnsupportedModel)


def test_chain_of_200000_nodes_is_too_large(tmp_path: Path) -> None:
    model = matmul()
    model.graph.node.extend([model.graph.node[0]] * 200_000)
    assert "200,001 nodes" in refusal(tmp_path, model, TooLarge)


def test_deep_control_flow_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "leaf", [], [tensor_info("z", None)])
    for depth in range(20):
        node = helper.make_node("If", ["c"], ["z"], then_branch=graph, else_branch=graph if depth == 0 else None)
        graph = helper.make_graph([node], f"g{depth}", [], [tensor_info("z", None)])
    model = model_of(*graph.node)
    assert "nested 20 deep" in refusal(tmp_path, model, UnsupportedModel)


def test_sparse_tensor_that_becomes_huge_is_too_large(tmp_path: Path) -> None:
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model = matmul()
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 30, 1 << 20]))
    assert "made dense" in refusal(tmp_path, model, TooLarge)


# ---------------------------------------------------------------- tensors against their own words
@pytest.mark.parametrize(
    ("dims", "held"), [([4], 4), ([2], 12), ([1 << 62, 1 << 62], 16), ([-1], 4), ([0], 4), ([1 << 40], 0)]
)
def test_tensor_that_holds_other_bytes_than_it_declares_is_refused(tmp_path: Path, dims: list[int], held: int) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=b"\0" * held)
    assert "'w'" in refusal(tmp_path, matmul(tensor), NotAModel)


def test_tensor_of_an_unknown_type_is_refused(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=999, dims=[1], raw_data=b"\0")
    assert "unknown type 999" in refusal(tmp_path, matmul(tensor), NotAModel)


def test_malformed_tensor_is_found_in_a_subgraph_s_constant(tmp_path: Path) -> None:
    bad = TensorProto(name="inner", data_type=TensorProto.FLOAT, dims=[8], raw_data=b"\0\0\0\0")
    branch = helper.make_graph([helper.make_node("Constant", [], ["z"], value=bad)], "b", [], [tensor_info("z", None)])
    true = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    assert "'z'" in refusal(tmp_path, model_of(node, weights=[true]), NotAModel)


# ---------------------------------------------------------------- values
def test_weights_that_are_not_finite_are_counted_and_named(tmp_path: Path) -> None:
    broken = WEIGHT.copy()
    broken[0, :3] = [np.nan, np.nan, np.inf]
    message = refusal(tmp_path, matmul(numpy_helper.from_array(broken, "w")), BadWeights)
    assert "'w' holds 2 NaN and 1 infinite of 16 values" in message


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT])
def test_nan_is_found_in_every_floating_type_and_field(tmp_path: Path, dtype: int) -> None:
    tensor = helper.make_tensor("c", dtype, [2], [1.0, float("nan")])
    nodes = [helper.make_node("Cast", ["c"], ["k"], to=TensorProto.FLOAT), helper.make_node("Mul", ["x", "k"], ["y"])]
    assert "1 NaN" in refusal(tmp_path, model_of(*nodes, weights=[tensor]), BadWeights)


def test_nan_is_found_in_external_data(tmp_path: Path) -> None:
    broken = WEIGHT.copy()
    broken[3, 3] = np.nan
    (tmp_path / "w.bin").write_bytes(broken.tobytes())
    assert "1 NaN" in refusal(tmp_path, external(), BadWeights)


def test_infinity_in_a_mask_is_not_a_broken_weight(tmp_path: Path) -> None:
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    model = model_of(helper.make_node("Add", ["x", "m"], ["y"]), weights=[numpy_helper.from_array(mask, "m")])
    assert load_checked(saved(tmp_path, model), limits=LIMITS).graph.num_nodes() == 1


# ---------------------------------------------------------------- operators and versions
def test_custom_operator_is_refused_with_node_operator_and_domain(tmp_path: Path) -> None:
    node = helper.make_node("Sorcery", ["x"], ["y"], name="spell", domain="com.acme")
    message = refusal(tmp_path, model_of(node, domains=["com.acme"]), UnsupportedModel)
    assert "'Sorcery' of domain 'com.acme' is a custom operator (node 'spell')" in message


@pytest.mark.parametrize(
    ("operator", "opset", "reason"),
    [
        ("Relru", 17, "is not in opset 17"),
        ("Gelu", 17, "is not in opset 17"),
        ("Upsample", 17, "was removed before opset 17"),
    ],
)
def test_standard_operator_that_the_opset_lacks_is_refused(
    tmp_path: Path, operator: str, opset: int, reason: str
) -> None:
    model = model_of(helper.make_node(operator, ["x"], ["y"]), opset=opset)
    assert reason in refusal(tmp_path, model, UnsupportedModel)


def test_domain_without_an_import_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Normalizer", ["x"], ["y"], domain="ai.onnx.ml")
    assert "without an opset import" in refusal(tmp_path, model_of(node), UnsupportedModel)


def test_operators_of_the_runtime_and_of_local_functions_pass(tmp_path: Path) -> None:
    node = helper.make_node("QuickGelu", ["x"], ["y"], domain="com.microsoft")
    load_checked(saved(tmp_path, model_of(node, domains=["com.microsoft"])), limits=LIMITS)
    load_checked(saved(tmp_path, doubling_functions(5)), limits=LIMITS)


@pytest.mark.parametrize("opset", [1, 6, 99])
def test_opset_out_of_range_is_refused(tmp_path: Path, opset: int) -> None:
    assert f"opset {opset} is" in refusal(tmp_path, matmul(opset=opset), UnsupportedModel)


def test_future_ir_version_is_refused(tmp_path: Path) -> None:
    assert "IR version 99" in refusal(tmp_path, matmul(ir_version=99), UnsupportedModel)


def test_graph_that_reads_what_nobody_makes_is_refused(tmp_path: Path) -> None:
    model = model_of(helper.make_node("Relu", ["nobody"], ["y"]))
    assert "not valid ONNX" in refusal(tmp_path, model, UnsupportedModel)


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    content = matmul().SerializeToString().replace(b"product", b"pro\x80uct")
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(NotAModel, match="not UTF-8"):
        load_checked(tmp_path / "model.onnx", limits=LIMITS)


def test_inputs_and_outputs_without_any_shape_pass_the_checker(tmp_path: Path) -> None:
    with_data(tmp_path)
    model = external()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    assert load_checked(saved(tmp_path, model), limits=LIMITS).graph.inputs[0].shape is None
    model.graph.node[0].input[0] = "nobody"
    assert "not valid ONNX" in refusal(tmp_path, model, UnsupportedModel)


# ---------------------------------------------------------------- shape inference
def test_shapes_of_inner_values_are_inferred(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    model = load(saved(tmp_path, model_of(*nodes, weights=[numpy_helper.from_array(WEIGHT, "w")])))
    inner = model.graph.node(0).outputs[0]
    assert (list(inner.shape or ()), inner.dtype) == ([4, 4], onnx.TensorProto.FLOAT)


def test_slow_shape_inference_is_given_up(tmp_path: Path) -> None:
    def never_ends(command: Any, *, timeout: float, **_: Any) -> Any:
        raise subprocess.TimeoutExpired(command, timeout)

    model = load_checked(saved(tmp_path, matmul()), limits=LIMITS)
    reason = infer.infer_shapes(model, timeout_s=7.0, start=never_ends)
    assert reason == "shape inference took longer than 7 s, so shapes inside the model are not known"


@pytest.mark.parametrize("answer", [(-11, b"", b""), (0, b"garbage", b""), (1, b"", b"no such thing\n")])
def test_crashed_shape_inference_leaves_the_model_as_it_is(tmp_path: Path, answer: tuple[int, bytes, bytes]) -> None:
    def crashes(command: Any, **_: Any) -> Any:
        return subprocess.CompletedProcess(command, *answer)

    model = load_checked(saved(tmp_path, matmul()), limits=LIMITS)
    assert "shape" in str(infer.infer_shapes(model, start=crashes))
    assert model.graph.num_nodes() == 1


def test_loop_without_end_loads_at_once(tmp_path: Path) -> None:
    scalars = [
        helper.make_tensor_value_info(name, kind, [])
        for name, kind in (("i", TensorProto.INT64), ("c", TensorProto.BOOL))
    ]
    same = [helper.make_node("Identity", [name], [f"{name}_next"]) for name in ("c", "v")]
    results = [helper.make_tensor_value_info("c_next", TensorProto.BOOL, []), tensor_info("v_next", None, None)]
    body = helper.make_graph(same, "body", [*scalars, tensor_info("v", None, None)], results)
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    model = load(
        saved(tmp_path, model_of(helper.make_node("Loop", ["", "true", "x"], ["y"], body=body), weights=[true]))
    )
    assert model.graph.num_nodes() == 1


def test_constant_of_terabytes_loads_at_once(tmp_path: Path) -> None:
    huge = helper.make_tensor("huge", TensorProto.INT64, [2], [1 << 20, 1 << 20])
    model = load(saved(tmp_path, model_of(helper.make_node("ConstantOfShape", ["huge"], ["y"]), weights=[huge])))
    assert model.graph.num_nodes() == 1


def test_sparse_initializer_is_refused_by_name_and_not_lost(tmp_path) -> None:
    values = helper.make_tensor("W", TensorProto.FLOAT, [2], [1.0, 2.0])
    places = helper.make_tensor("W_places", TensorProto.INT64, [2], [0, 3])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        sparse_initializer=[helper.make_sparse_tensor(values, places, [2, 2])],
    )
    file = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), file)
    with pytest.raises(UnsupportedModel, match="'W'"):
        load(file)
