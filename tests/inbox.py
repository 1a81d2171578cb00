"""Files to drop in tests: small real models, models with external data wherever ONNX allows a tensor, arrays."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgeopt.daemon import drops
from edgeopt.daemon.drops import Drop
from edgeopt.daemon.intake import Patience, Staged, stage
from edgeopt.daemon.scan import scan
from edgeopt.policy import Policy, WorkerLimits

Prepare = Callable[[Path], object]
"""Puts something into the inbox."""


def model_bytes(seed: int = 0, weights: int = 64) -> bytes:
    """An ONNX model that adds ``weights`` numbers of its own to its input."""
    data = np.random.default_rng(seed).standard_normal(weights).astype(np.float32)
    return _model([helper.make_node("Add", ["x", "w"], ["y"])], [onnx.numpy_helper.from_array(data, "w")])


def external_tensor(name: str, *, size: int = 4, **entries: str) -> TensorProto:
    """A float32 tensor whose bytes lie elsewhere; ``entries`` are its external_data as written."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[size], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def external_model(location: str = "w.data", **entries: str) -> bytes:
    """A model with one external initializer of 4 floats."""
    tensor = external_tensor("w", **{"location": location, **entries})
    return _model([helper.make_node("Add", ["x", "w"], ["y"])], [tensor])


def external_everywhere() -> tuple[bytes, set[str]]:
    """A model with an external tensor in each place ONNX has for one, and their locations."""
    graph = helper.make_graph([], "body", [], [], [external_tensor("i", location="subgraph")])
    body = helper.make_graph(
        [
            helper.make_node("Constant", [], ["c"], value=external_tensor("c", location="attribute")),
            helper.make_node("If", ["b"], ["d"], then_branch=graph, else_branch=graph),
            helper.make_node("Odd", [], ["e"], ts=[external_tensor("t", location="attribute-list")]),
            helper.make_node(
                "Odd", [], ["f"], gs=[helper.make_graph([], "g", [], [], [external_tensor("h", location="graph-list")])]
            ),
        ],
        "main",
        [],
        [],
        [external_tensor("w", location="initializer")],
    )
    sparse = body.sparse_initializer.add(dims=[8])
    sparse.values.CopyFrom(external_tensor("v", location="sparse-values"))
    sparse.indices.CopyFrom(external_tensor("k", location="sparse-indices"))
    attribute = body.node.add(op_type="Odd", output=["s"]).attribute.add(
        name="sp", type=onnx.AttributeProto.SPARSE_TENSOR
    )
    attribute.sparse_tensor.values.CopyFrom(external_tensor("v", location="sparse-attribute"))
    model = helper.make_model(body)
    function = model.functions.add(name="f", domain="d")
    function.node.add(op_type="Constant", output=["z"]).attribute.append(
        helper.make_attribute("value", external_tensor("z", location="function"))
    )
    function.attribute_proto.append(helper.make_attribute("default", external_tensor("q", location="function-default")))
    model.training_info.add().initialization.initializer.append(external_tensor("n", location="training"))
    model.training_info.add().algorithm.initializer.append(external_tensor("m", location="algorithm"))
    places = {
        "initializer", "attribute", "attribute-list", "subgraph", "graph-list", "sparse-values", "sparse-indices",
        "sparse-attribute", "function", "function-default", "training", "algorithm",
    }  # fmt: skip
    return model.SerializeToString(), places


def npz_bytes(**arrays: np.ndarray) -> bytes:
    """An .npz archive as numpy.savez writes it."""
    buffer = io.BytesIO()
    np.savez(buffer, **(arrays or {"x": np.zeros((4, 8), np.float32)}))
    return buffer.getvalue()


def written(data: bytes, name: str = "a.onnx") -> Prepare:
    return lambda inbox: (inbox / name).write_bytes(data)


def all_of(*steps: Prepare) -> Prepare:
    return lambda inbox: [step(inbox) for step in steps]


def with_teacher(teacher: bytes, job: bytes = b"teacher: big.onnx\n", name: str = "a/big.onnx") -> Prepare:
    """A folder with a model, a job file and what it may learn from."""
    return all_of(
        lambda inbox: (inbox / "a").mkdir(),
        written(model_bytes(), "a/model.onnx"),
        written(job, "a/job.yaml"),
        written(teacher, name),
    )


def only_drop(inbox: Path) -> Drop:
    """The inbox's one drop."""
    (drop,) = drops.group(scan(inbox))
    return drop


def take(
    inbox: Path, *, patience: Patience | None = None, limits: WorkerLimits | None = None, policy: Policy | None = None
) -> Staged:
    """Stage the inbox's one drop into a folder beside it."""
    return stage(
        only_drop(inbox),
        staging_root=inbox.parent / "staging",
        policy=policy or Policy(),
        limits=limits or WorkerLimits(),
        patience=patience or Patience(),
    )


def _model(nodes: list[onnx.NodeProto], weights: list[TensorProto]) -> bytes:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [None])], [value("y", TensorProto.FLOAT, [None])], weights
    )
    return bytes(
        helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    )


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, sorted."""
    return sorted(entry.name for entry in folder.iterdir())
