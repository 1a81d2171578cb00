"""What a signature says of a model, and which inputs are taken for recurrent states."""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import UnsupportedModel
from edgeopt.records import StatePair, TensorSpec
from edgeopt.stages.signature import signature_of
from edgeopt.stages.states import find_states


def model_with(*, inputs: Any, outputs: Any, nodes: Any, weights: Any = ()) -> ir.Model:
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(weights))
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def info(name: str, shape: Any, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def test_initializer_that_is_also_an_input_is_a_default_and_no_input() -> None:
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    model = model_with(
        inputs=[info("x", ["n", 4]), info("w", [4, 4])],
        outputs=[info("y", ["n", 4])],
        nodes=[helper.make_node("MatMul", ["x", "w"], ["y"])],
        weights=[weight],
    )
    signature = signature_of(model)
    assert signature.inputs == (TensorSpec(name="x", dtype="float32", shape=("n", 4)),)
    assert (signature.opset, signature.operators, signature.parameter_bytes) == (17, (("MatMul", 1),), 64)


def test_zeros_of_a_model_that_comes_pruned_are_counted() -> None:
    data = np.ones((32, 64), np.float32)
    data[:, ::4] = 0
    model = model_with(
        inputs=[info("x", ["n", 32])],
        outputs=[info("y", ["n", 64])],
        nodes=[helper.make_node("MatMul", ["x", "w"], ["y"])],
        weights=[numpy_helper.from_array(data, "w")],
    )
    assert signature_of(model).zeros == 0.25


def test_dimensions_without_a_length_or_name_are_unknown() -> None:
    model = model_with(
        inputs=[info("x", [None, 0, "n", 3])],
        outputs=[info("y", None)],
        nodes=[helper.make_node("Relu", ["x"], ["y"])],
    )
    assert signature_of(model).inputs[0].shape == ("?", "?", "n", 3)


def test_operators_of_subgraphs_and_other_domains_are_counted() -> None:
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "b", [], [info("z", None)])
    model = model_with(
        inputs=[info("x", ["n"]), info("c", [], TensorProto.BOOL)],
        outputs=[info("y", None)],
        nodes=[
            helper.make_node("If", ["c"], ["i"], then_branch=branch, else_branch=branch),
            helper.make_node("Gelu", ["i"], ["y"], domain="com.microsoft"),
        ],
    )
    signature = signature_of(model)
    assert signature.operators == (("If", 1), ("Relu", 2), ("com.microsoft::Gelu", 1))
    assert not signature.quantized


@pytest.mark.parametrize(
    ("operator", "domain"),
    [("QuantizeLinear", ""), ("QLinearConv", ""), ("QLinearAdd", "com.microsoft"), ("MatMulNBits", "com.microsoft")],
)
def test_integer_operators_make_a_model_quantized(operator: str, domain: str) -> None:
    model = model_with(
        inputs=[info("x", ["n"])],
        outputs=[info("y", None)],
        nodes=[helper.make_node(operator, ["x"], ["y"], domain=domain)],
    )
    assert signature_of(model).quantized


def test_inputs_that_no_array_can_be_made_for_are_refused() -> None:
    relu = [helper.make_node("Identity", ["x"], ["y"])]
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1])
    for given in (sequence, info("x", [1], TensorProto.STRING), info("x", None)):
        with pytest.raises(UnsupportedModel, match="the input 'x'"):
            signature_of(model_with(inputs=[given], outputs=[info("y", None)], nodes=relu))


def test_outputs_that_are_no_tensors_are_refused() -> None:
    sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [1])
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    with pytest.raises(UnsupportedModel, match="the output 'y'"):
        signature_of(model_with(inputs=[info("x", [1])], outputs=[sequence], nodes=[node]))


# ---------------------------------------------------------------- states
def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


DATA = spec("input", "n", "t")


@pytest.mark.parametrize(
    ("given", "result"),
    [
        *(("state", "stateN"), ("h", "hn"), ("h0", "hn"), ("c_0", "c_n"), ("h_in", "h_out"), ("state", "new_state")),
        *(
            ("cache_in_0", "cache_out_0"),
            ("past_key_values.0.key", "present.0.key"),
            ("past.1.value", "present.1.value"),
        ),
        *(("prev_frame", "next_frame"), ("hidden", "hidden_out"), ("conv_cache", "conv_cache_out"), ("hx", "hx_next")),
    ],
)
def test_names_that_speak_of_a_state_make_a_pair(given: str, result: str) -> None:
    pairs = find_states((DATA, spec(given, 2, "n", 64)), (spec("output", "n", 1), spec(result, "?", "?", "?")))
    assert pairs == (StatePair(input=given, output=result),)


@pytest.mark.parametrize(
    ("given", "result"),
    [
        *(("sample", "out_sample"), ("image", "image_out"), ("encoder_hidden_states", "last_hidden_state")),
        *(("past_key_values.0.key", "present.1.key"), ("past.0.key", "present.0.value"), ("mask", "masked")),
    ],
)
def test_names_that_only_resemble_each_other_make_none(given: str, result: str) -> None:
    assert find_states((DATA, spec(given, 2, "n", 64)), (spec(result, 2, "n", 64),)) == ()


def test_main_data_input_is_never_a_state() -> None:
    assert find_states((spec("state_in", "n", 8),), (spec("state_out", "n", 8),)) == ()
    scalar = spec("rate", dtype="int64")
    assert find_states((spec("state_in", "n", 8), scalar), (spec("state_out", "n", 8),)) == ()


def test_types_and_lengths_must_fit() -> None:
    assert find_states((DATA, spec("state", 2, 64)), (spec("stateN", 2, 32),)) == ()
    assert find_states((DATA, spec("state", 2, 64)), (spec("stateN", 2, 64, dtype="float16"),)) == ()
    assert find_states((DATA, spec("state", 2, 64, dtype="int64")), (spec("stateN", 2, 64, dtype="int64"),)) == ()
    assert find_states((DATA, spec("state", 2, 64)), (spec("stateN", 2),)) == ()


def test_every_layer_of_a_cache_finds_its_own_output() -> None:
    inputs = [
        DATA,
        *(spec(f"past_key_values.{i}.{kind}", 1, 4, "past", 8) for i in range(12) for kind in ("key", "value")),
    ]
    outputs = [spec(f"present.{i}.{kind}", 1, 4, "total", 8) for i in range(12) for kind in ("key", "value")]
    pairs = find_states(inputs, outputs)
    assert len(pairs) == 24
    assert all(pair.input.removeprefix("past_key_values") == pair.output.removeprefix("present") for pair in pairs)


def test_constants_are_counted_wherever_they_stand() -> None:
    assert signature_of(builders.constants_anywhere()).zeros == 0.0
