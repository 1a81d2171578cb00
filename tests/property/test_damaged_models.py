"""Damaged models end in one of the named errors, whatever was damaged."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import InputError
from edgeopt.graph.limits import GraphLimits
from edgeopt.graph.load import load_checked
from edgeopt.stages.signature import signature_of


def _model() -> bytes:
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    far = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    far.external_data.add(key="location", value="v.bin")
    branch = helper.make_graph(
        [helper.make_node("Relu", ["h"], ["z"])], "b", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("If", ["c"], ["i"], then_branch=branch, else_branch=branch),
        helper.make_node("Add", ["i", "v"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight, far])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


WHOLE = _model()


def opens_or_is_refused(content: bytes) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(content)
        path.with_name("v.bin").write_bytes(np.ones(4, np.float32).tobytes())
        try:
            signature_of(load_checked(path, limits=GraphLimits(model_bytes=1 << 20)))
        except InputError as error:
            assert error.message
            assert error.hint
            return False
        return True


def test_whole_model_opens() -> None:
    assert opens_or_is_refused(WHOLE)


@given(st.integers(1, len(WHOLE) - 1))
def test_prefix_of_a_model_never_opens(length: int) -> None:
    assert not opens_or_is_refused(WHOLE[:length])


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_model_with_changed_bytes_opens_or_is_refused(changes: list[tuple[int, int]]) -> None:
    content = bytearray(WHOLE)
    for place, value in changes:
        content[place] = value
    opens_or_is_refused(bytes(content))


@given(st.binary(min_size=1, max_size=200))
def test_random_bytes_never_open(content: bytes) -> None:
    assert not opens_or_is_refused(content)


def test_the_model_really_is_one() -> None:
    assert onnx.ModelProto.FromString(WHOLE).graph.node[1].op_type == "If"
