"""Models for the worker's door as bytes on disk, odd ones too, and what the door says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import (
    InputError,
)
from edgeopt.graph.limits import GraphLimits
from edgeopt.graph.load import load_checked

LIMITS = GraphLimits()
WEIGHT = np.arange(16, dtype=np.float32).reshape(4, 4)


def tensor_info(name: str, *shape: int | str | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model_of(
    *nodes: onnx.NodeProto, weights: Any = (), functions: Any = (), opset: int = 17, **fields: Any
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", [tensor_info("x", 4, 4)], [tensor_info("y", None, None)], list(weights))
    imports = [
        helper.make_opsetid("", opset),
        *(helper.make_opsetid(domain, 1) for domain in fields.pop("domains", ())),
    ]
    return helper.make_model(
        graph, opset_imports=imports, functions=list(functions), ir_version=fields.pop("ir_version", 8)
    )


def matmul(weight: onnx.TensorProto | None = None, **fields: Any) -> onnx.ModelProto:
    tensor = numpy_helper.from_array(WEIGHT, "w") if weight is None else weight
    return model_of(helper.make_node("MatMul", ["x", "w"], ["y"], name="product"), weights=[tensor], **fields)


def saved(tmp_path: Path, model: onnx.ModelProto) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refusal(tmp_path: Path, model: onnx.ModelProto, kind: type[InputError], limits: GraphLimits = LIMITS) -> str:
    with pytest.raises(kind) as caught:
        load_checked(saved(tmp_path, model), limits=limits)
    assert type(caught.value) is kind
    assert caught.value.hint
    return caught.value.message


def external(location: str = "w.bin", **keys: str) -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **keys}.items():
        tensor.external_data.add(key=key, value=value)
    return matmul(tensor)


def with_data(tmp_path: Path, *, size: int = 64) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes()[:size].ljust(size, b"\0"))
