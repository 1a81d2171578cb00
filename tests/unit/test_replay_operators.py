"""Every operator that training replays gives what ONNX Runtime gives, over its attributes, and lets gradients through."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import builders
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch", reason="needs torch, which the extra train brings")

from edgeopt.training.operators import CONTROLLERS, OPERATORS  # noqa: E402 - behind the check for torch
from edgeopt.training.replay import Replay  # noqa: E402 - as above

RANDOM = np.random.default_rng(0)


@dataclass
class Case:
    """One node: inputs are arrays (fed), or arrays wrapped in ``Fixed`` (constants), or None (left out)."""

    kind: str
    inputs: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1
    domain: str = ""

    def model(self) -> ir.Model:
        names = ["" if value is None else f"in_{index}" for index, value in enumerate(self.inputs)]
        results = [f"out_{index}" for index in range(self.outputs)]
        node = helper.make_node(self.kind, names, results, name="node", domain=self.domain, **self.attributes)
        fixed = [
            numpy_helper.from_array(value.data, name)
            for name, value in zip(names, self.inputs, strict=True)
            if isinstance(value, Fixed)
        ]
        fed = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in zip(names, self.inputs, strict=True)
            if isinstance(value, np.ndarray)
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in results]
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(self.domain, 1)] if self.domain else []
        graph = helper.make_graph([node], "main", fed, outputs, fixed)
        return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))

    def feeds(self) -> dict[str, np.ndarray]:
        return {f"in_{index}": value for index, value in enumerate(self.inputs) if isinstance(value, np.ndarray)}


@dataclass
class Fixed:
    data: np.ndarray


def floats(*shape: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.asarray(RANDOM.standard_normal(shape) * scale + shift, dtype=np.float32)


def positive(*shape: int) -> np.ndarray:
    return np.asarray(RANDOM.uniform(0.2, 2.0, shape), dtype=np.float32)


def ints(*values: Any) -> Fixed:
    return Fixed(np.asarray(values, dtype=np.int64))


def number(value: Any, dtype: Any = np.float32) -> Fixed:
    return Fixed(np.asarray(value, dtype=dtype))


def bools(*shape: int) -> np.ndarray:
    return np.asarray(RANDOM.standard_normal(shape) > 0)


def torch_feeds(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def check(case: Case, *, tolerance: float = 1e-5) -> None:
    model = case.model()
    expected = builders.run(model, case.feeds())
    with torch.no_grad():
        made = Replay(model)(torch_feeds(case.feeds()))
    for ours, theirs in zip(made.values(), expected, strict=True):
        array = ours.numpy()
        assert array.shape == theirs.shape
        if theirs.dtype.kind == "f":
            np.testing.assert_allclose(array, theirs, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(array, theirs)


# ---------------------------------------------------------------- convolutions and pooling
IMAGE, WEIGHT, BIAS = floats(2, 4, 9, 8), floats(6, 4, 3, 3), floats(6)
CONVOLUTIONS = [
    Case("Conv", (IMAGE, Fixed(WEIGHT))),
    Case("Conv", (IMAGE, Fixed(WEIGHT), Fixed(BIAS)), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    Case("Conv", (IMAGE, Fixed(WEIGHT), Fixed(BIAS)), {"pads": [2, 0, 1, 3], "kernel_shape": [3, 3]}),
    Case("Conv", (IMAGE, Fixed(WEIGHT)), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    Case("Conv", (IMAGE, Fixed(WEIGHT)), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    Case("Conv", (IMAGE, Fixed(WEIGHT)), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    Case("Conv", (IMAGE, Fixed(WEIGHT)), {"auto_pad": "SAME_UPPER"}),
    Case("Conv", (IMAGE, Fixed(WEIGHT)), {"auto_pad": "VALID", "strides": [2, 1]}),
    Case("Conv", (IMAGE, Fixed(floats(4, 1, 3, 3)), Fixed(floats(4))), {"group": 4, "pads": [1, 1, 1, 1]}),
    Case("Conv", (IMAGE, Fixed(floats(6, 2, 1, 1))), {"group": 2}),
    Case("Conv", (floats(2, 3, 11), Fixed(floats(5, 3, 4)), Fixed(floats(5))), {"pads": [1, 2], "strides": [2]}),
    Case("Conv", (floats(1, 2, 5, 6, 7), Fixed(floats(3, 2, 2, 3, 2))), {"pads": [0, 1, 1, 0, 1, 1]}),
    Case("ConvTranspose", (IMAGE, Fixed(floats(4, 3, 3, 3)), Fixed(floats(3))), {"strides": [2, 2]}),
    Case("ConvTranspose", (IMAGE, Fixed(floats(4, 3, 2, 2))), {"strides": [2, 2], "group": 2}),
    Case("ConvTranspose", (IMAGE, Fixed(floats(4, 3, 3, 3))), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    Case("ConvTranspose", (IMAGE, Fixed(floats(4, 3, 3, 3)), Fixed(floats(3))), {"strides": [2, 2], "pads": [0, 1, 2, 1]}),
    Case("ConvTranspose", (IMAGE, Fixed(floats(4, 3, 3, 3))), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("ConvTranspose", (IMAGE, Fixed(floats(4, 3, 3, 3))), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    Case("ConvTranspose", (IMAGE, Fixed(floats(4, 3, 3, 3))), {"strides": [2, 2], "output_shape": [18, 16]}),
    Case("ConvTranspose", (IMAGE, Fixed(floats(4, 3, 3, 3))), {"dilations": [2, 1], "strides": [1, 2]}),
    Case("ConvTranspose", (floats(2, 3, 7), Fixed(floats(3, 2, 4))), {"strides": [3], "pads": [1, 0]}),
    Case("MaxPool", (IMAGE,), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("MaxPool", (IMAGE,), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", (IMAGE,), {"kernel_shape": [3, 2], "strides": [2, 3], "ceil_mode": 1}),
    Case("MaxPool", (IMAGE,), {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [0, 0, 1, 1], "ceil_mode": 1}),
    Case("MaxPool", (IMAGE,), {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("MaxPool", (IMAGE,), {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"}),
    Case("MaxPool", (IMAGE,), {"kernel_shape": [2, 2], "dilations": [2, 2]}),
    Case("MaxPool", (floats(2, 3, 9),), {"kernel_shape": [5], "pads": [4, 4]}),
    Case("MaxPool", (floats(1, 2, 4, 5, 6),), {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}),
    Case("AveragePool", (IMAGE,), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("AveragePool", (IMAGE,), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", (IMAGE,), {"kernel_shape": [3, 3], "pads": [1, 0, 1, 2], "count_include_pad": 1}),
    Case("AveragePool", (IMAGE,), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    Case("AveragePool", (IMAGE,), {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("AveragePool", (floats(2, 3, 9),), {"kernel_shape": [4], "pads": [1, 2]}),
    Case("AveragePool", (floats(1, 2, 4, 5, 6),), {"kernel_shape": [2, 3, 2], "pads": [1, 0, 0, 0, 1, 1]}),
    Case("GlobalAveragePool", (IMAGE,)),
    Case("GlobalMaxPool", (floats(2, 3, 9),)),
    Case("Gemm", (floats(3, 4), Fixed(floats(4, 5)), Fixed(floats(5)))),
    Case("Gemm", (floats(4, 3), Fixed(floats(5, 4)), Fixed(floats(3, 1))), {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", (floats(3, 4), Fixed(floats(4, 5)))),
    Case("MatMul", (floats(2, 3, 4), Fixed(floats(4, 5)))),
    Case("MatMul", (floats(2, 1, 3, 4), floats(5, 4, 2))),
    Case("MatMul", (floats(4), Fixed(floats(4, 5)))),
    Case("Einsum", (floats(2, 3, 4), floats(2, 4, 5)), {"equation": "bij,bjk->bik"}),
    Case("Einsum", (floats(2, 3), floats(4, 3)), {"equation": "... d, e d -> ... e"}),
    Case("FusedMatMul", (floats(2, 4, 3), floats(2, 5, 4)), {"transA": 1, "transB": 1, "alpha": 0.25}, domain="com.microsoft"),
]  # fmt: skip

# ---------------------------------------------------------------- element by element
ROW, SIDE = floats(3, 4), floats(2, 1, 4)
WHOLE = np.asarray([[7, -7, 5], [-5, 6, -1]], np.int64)
PLAIN = [
    "Abs",
    "Neg",
    "Sign",
    "Floor",
    "Ceil",
    "Round",
    "Exp",
    "Erf",
    "Sin",
    "Cos",
    "Tan",
    "Atan",
    "Sinh",
    "Cosh",
    "Asinh",
    "Relu",
    "Sigmoid",
    "Tanh",
    "Softplus",
    "Softsign",
    "HardSwish",
]
INNER = ["Asin", "Acos", "Atanh"]
UPWARD = ["Log", "Sqrt", "Reciprocal"]
ELEMENTWISE = [
    *(Case(kind, (ROW * 2,)) for kind in PLAIN),
    *(Case(kind, (np.tanh(ROW) * np.float32(0.9),)) for kind in INNER),
    *(Case(kind, (positive(3, 4),)) for kind in UPWARD),
    Case("Round", (np.asarray([0.5, 1.5, 2.5, -0.5, -1.5], np.float32),)),
    Case("Acosh", (positive(3, 4) + 1,)),
    Case("Mish", (ROW,), opset=18),
    *(Case(kind, (ROW, SIDE)) for kind in ("Add", "Sub", "Mul", "Div")),
    *(Case(kind, (ROW, SIDE, floats(4))) for kind in ("Sum", "Max", "Min", "Mean")),
    Case("Max", (ROW,)),
    Case("Div", (WHOLE, number([2, -3, 4], np.int64))),
    Case("Mod", (WHOLE, number([3, -3, 2], np.int64))),
    Case("Mod", (WHOLE, number([3, -3, 2], np.int64)), {"fmod": 1}),
    Case("Mod", (floats(3, 4), positive(4)), {"fmod": 1}),
    Case("Pow", (ROW, number(2.0))),
    Case("Pow", (ROW, number(3, np.int64))),
    Case("Pow", (positive(3, 4), floats(4))),
    Case("Pow", (positive(3), number([[0.5]]))),
    *(Case(kind, (WHOLE, number([7, -7, 6], np.int64))) for kind in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")),
    *(Case(kind, (bools(3, 4), bools(4))) for kind in ("And", "Or", "Xor")),
    Case("Not", (bools(3, 4),)),
    Case("IsNaN", (np.asarray([1.0, np.nan, np.inf], np.float32),)),
    Case("IsInf", (np.asarray([1.0, -np.inf, np.inf], np.float32),)),
    Case("IsInf", (np.asarray([1.0, -np.inf, np.inf], np.float32),), {"detect_negative": 0}),
    Case("Where", (bools(3, 1), ROW, SIDE)),
    Case("Clip", (ROW, number(-0.5), number(0.5))),
    Case("Clip", (ROW, None, number(0.5))),
    Case("Clip", (ROW, number(0.1))),
    Case("Clip", (ROW,)),
    Case("Clip", (WHOLE, number(-3, np.int64), number(2, np.int64))),
    Case("Clip", (ROW,), {"min": 0.0, "max": 6.0}, opset=10),
    Case("LeakyRelu", (ROW,), {"alpha": 0.3}),
    Case("LeakyRelu", (ROW,)),
    Case("PRelu", (floats(2, 3, 4), Fixed(floats(3, 1)))),
    Case("Elu", (ROW,), {"alpha": 0.7}),
    Case("Celu", (ROW,), {"alpha": 0.7}),
    Case("Selu", (ROW,)),
    Case("HardSigmoid", (ROW * 3,)),
    Case("HardSigmoid", (ROW * 3,), {"alpha": 0.16666667, "beta": 0.4}),
    Case("ThresholdedRelu", (ROW,), {"alpha": 0.4}),
    Case("Shrink", (ROW,), {"lambd": 0.6, "bias": 0.1}),
    Case("Gelu", (ROW,), opset=20),
    Case("Gelu", (ROW,), {"approximate": "tanh"}, opset=20),
    Case("Swish", (ROW,), {"alpha": 1.5}, opset=24),
    Case("Cast", (ROW * 5,), {"to": TensorProto.INT64}),
    Case("Cast", (WHOLE,), {"to": TensorProto.FLOAT}),
    Case("Cast", (WHOLE,), {"to": TensorProto.BOOL}),
    Case("Cast", (bools(3, 4),), {"to": TensorProto.INT32}),
    Case("Cast", (ROW,), {"to": TensorProto.DOUBLE}),
    Case("CastLike", (ROW * 5, WHOLE)),
    Case("Gelu", (ROW,), domain="com.microsoft"),
    Case("QuickGelu", (ROW,), domain="com.microsoft"),
    Case("FastGelu", (ROW, Fixed(floats(4))), domain="com.microsoft"),
    Case("FastGelu", (ROW,), domain="com.microsoft"),
    Case("BiasGelu", (ROW, Fixed(floats(4))), domain="com.microsoft"),
]  # fmt: skip

# ---------------------------------------------------------------- reductions and normalizations
CUBE = floats(2, 3, 4)
REDUCTIONS = [
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSumExp",
]
REDUCING = [
    *(Case(kind, (CUBE, ints(1, -1)), {"keepdims": 0}, opset=18) for kind in REDUCTIONS),
    *(Case(kind, (CUBE, ints(0)), opset=18) for kind in REDUCTIONS),
    *(Case(kind, (CUBE,), {"axes": [-1], "keepdims": 1}, opset=11) for kind in REDUCTIONS),
    *(Case(kind, (CUBE,), opset=13) for kind in REDUCTIONS),
    Case("ReduceLogSum", (positive(2, 3, 4), ints(1)), opset=18),
    Case("ReduceSum", (CUBE,), {"noop_with_empty_axes": 1}),
    Case("ReduceSum", (WHOLE.astype(np.int32), ints(1))),
    Case("ReduceMean", (CUBE, ints(-2)), opset=18),
    Case("ArgMax", (CUBE,), {"axis": 1}),
    Case("ArgMax", (np.asarray([[1, 3, 3]], np.float32),), {"axis": -1, "keepdims": 0}),
    Case("ArgMax", (np.asarray([[1, 3, 3]], np.float32),), {"axis": 1, "select_last_index": 1}),
    Case("ArgMin", (CUBE,), {"axis": 2, "keepdims": 0}),
    Case("TopK", (CUBE, ints(2)), {"axis": -1}, outputs=2),
    Case("TopK", (CUBE, ints(2)), {"axis": 1, "largest": 0}, outputs=2),
    Case("CumSum", (CUBE, number(1, np.int64))),
    Case("CumSum", (CUBE, number(2, np.int64)), {"exclusive": 1, "reverse": 1}),
    Case("CumSum", (WHOLE.astype(np.int32), number(1, np.int32))),
    Case("Softmax", (CUBE,)),
    Case("Softmax", (CUBE,), {"axis": 1}),
    Case("Softmax", (CUBE,), {"axis": 1}, opset=11),
    Case("Softmax", (CUBE,), opset=11),
    Case("LogSoftmax", (CUBE,), {"axis": 0}),
    Case("LogSoftmax", (CUBE,), {"axis": 1}, opset=12),
    Case("BatchNormalization", (IMAGE, *(Fixed(positive(4)) for _ in range(4))), {"epsilon": 1e-3}),
    Case("BatchNormalization", (floats(5, 4), *(Fixed(positive(4)) for _ in range(4))), opset=9),
    Case("LayerNormalization", (CUBE, Fixed(floats(4)), Fixed(floats(4)))),
    Case("LayerNormalization", (CUBE, Fixed(floats(3, 4))), {"axis": 1, "epsilon": 1e-2}),
    Case("LayerNormalization", (CUBE, Fixed(floats(4)), Fixed(floats(3, 4))), {"axis": -1}),
    Case("RMSNormalization", (CUBE, Fixed(floats(4))), {"axis": -1}, opset=23),
    Case("SimplifiedLayerNormalization", (CUBE, Fixed(floats(4))), {"axis": -1, "epsilon": 1e-6}),
    Case("InstanceNormalization", (IMAGE, Fixed(floats(4)), Fixed(floats(4)))),
    Case("GroupNormalization", (IMAGE, Fixed(floats(4)), Fixed(floats(4))), {"num_groups": 2}, opset=21),
    Case("GroupNormalization", (IMAGE, Fixed(floats(2)), Fixed(floats(2))), {"num_groups": 2}, opset=18),
    Case("LpNormalization", (CUBE,), {"axis": 1, "p": 2}),
    Case("LpNormalization", (CUBE,), {"p": 1}),
    Case("LRN", (IMAGE,), {"size": 3, "alpha": 0.01, "beta": 0.5, "bias": 2.0}),
    Case("MeanVarianceNormalization", (IMAGE,)),
    Case("SkipLayerNormalization", (CUBE, floats(2, 3, 4), Fixed(floats(4)), Fixed(floats(4)), Fixed(floats(4))), {"epsilon": 1e-5}, domain="com.microsoft"),
    Case("SkipLayerNormalization", (CUBE, floats(2, 3, 4), Fixed(floats(4))), domain="com.microsoft"),
    Case("SkipSimplifiedLayerNormalization", (CUBE, floats(2, 3, 4), Fixed(floats(4))), {"epsilon": 1e-5}, domain="com.microsoft"),
]  # fmt: skip

# ---------------------------------------------------------------- shapes, picking and placing
PLACES = np.asarray([[0, -1], [2, 1]], np.int64)
SHAPES = [
    Case("Identity", (CUBE,)),
    Case("Dropout", (CUBE,)),
    Case("Reshape", (CUBE, ints(0, -1))),
    Case("Reshape", (CUBE, ints(4, 3, 2))),
    Case("Reshape", (floats(0, 3), ints(3, 0)), {"allowzero": 1}),
    Case("Flatten", (CUBE,)),
    *(Case("Flatten", (CUBE,), {"axis": axis}) for axis in (0, 2, -1)),
    Case("Transpose", (CUBE,)),
    Case("Transpose", (CUBE,), {"perm": [1, 2, 0]}),
    Case("Squeeze", (floats(1, 3, 1),)),
    Case("Squeeze", (floats(1, 3, 1), ints(-1))),
    Case("Squeeze", (floats(1, 3, 1),), {"axes": [0]}, opset=11),
    Case("Unsqueeze", (CUBE, ints(0, -1))),
    Case("Unsqueeze", (CUBE,), {"axes": [4, 1]}, opset=11),
    Case("Concat", (CUBE, floats(2, 2, 4)), {"axis": 1}),
    Case("Concat", (CUBE, CUBE), {"axis": -1}),
    Case("Split", (CUBE, ints(1, 3)), {"axis": 2}, outputs=2),
    Case("Split", (CUBE,), {"axis": -1}, outputs=2),
    Case("Split", (CUBE,), {"axis": 1, "split": [2, 1]}, opset=11, outputs=2),
    Case("Split", (floats(7, 2),), {"num_outputs": 3}, opset=18, outputs=3),
    Case("Shape", (CUBE,)),
    Case("Shape", (CUBE,), {"start": -2}),
    Case("Shape", (CUBE,), {"start": 0, "end": -1}),
    Case("Size", (CUBE,)),
    Case("Expand", (floats(3, 1), ints(2, 1, 4))),
    Case("Expand", (CUBE, ints(1, 1))),
    Case("Tile", (ROW, ints(2, 3))),
    Case("ConstantOfShape", (ints(2, 3),)),
    Case("ConstantOfShape", (ints(2),), {"value": numpy_helper.from_array(np.asarray([7], np.int64))}),
    Case("ConstantOfShape", (Fixed(np.zeros(0, np.int64)),), {"value": numpy_helper.from_array(np.asarray([True]))}),
    Case("Range", (number(1, np.int64), number(10, np.int64), number(3, np.int64))),
    Case("Range", (number(5, np.int64), number(0, np.int64), number(-2, np.int64))),
    Case("Range", (number(0.5), number(3.0), number(0.7))),
    Case("EyeLike", (floats(3, 4),), {"k": 1}),
    Case("EyeLike", (floats(3, 3),), {"dtype": TensorProto.INT64}),
    Case("DepthToSpace", (floats(2, 8, 3, 2),), {"blocksize": 2}),
    Case("DepthToSpace", (floats(2, 8, 3, 2),), {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", (floats(2, 3, 4, 6),), {"blocksize": 2}),
    Case("Pad", (CUBE, ints(0, 1, 2, 1, 0, 3))),
    Case("Pad", (CUBE, ints(0, 1, 2, 1, 0, 3), number(1.5))),
    Case("Pad", (CUBE, ints(0, 0, -1, 0, 1, -1))),
    Case("Pad", (CUBE, ints(1, 2), None, ints(-1)), opset=18),
    Case("Pad", (CUBE, ints(0, 1, 2, 0, 2, 1)), {"mode": "reflect"}),
    Case("Pad", (CUBE, ints(1, 1, 2, 1, 2, 1)), {"mode": "edge"}),
    Case("Pad", (CUBE, ints(0, 1, 2, 0, 2, 1)), {"mode": "wrap"}, opset=19),
    Case("Pad", (CUBE,), {"pads": [0, 1, 0, 0, 0, 2], "value": 0.5}, opset=10),
    Case("Slice", (CUBE, ints(1, 0), ints(9, -1), ints(2, 1))),
    Case("Slice", (CUBE, ints(0, 0, 1), ints(2, 3, 4))),
    Case("Slice", (CUBE, ints(-1), ints(-9223372036854775808), ints(2), ints(-1))),
    Case("Slice", (CUBE, ints(-1), ints(0), ints(-1), ints(-2))),
    Case("Slice", (CUBE, ints(0), ints(4), ints(-1), ints(3))),
    Case("Slice", (CUBE, ints(3), ints(2), ints(-1))),
    Case("Slice", (CUBE,), {"starts": [1], "ends": [3], "axes": [2]}, opset=9),
    Case("Gather", (CUBE, PLACES), {"axis": 1}),
    Case("Gather", (CUBE, number(-1, np.int64)), {"axis": -1}),
    Case("Gather", (Fixed(floats(6, 3)), PLACES)),
    Case("Gather", (ints(4, 5, 6), number(1, np.int32))),
    Case("GatherElements", (floats(3, 2), PLACES), {"axis": 0}),
    Case("GatherND", (CUBE, np.asarray([[0, 1], [1, -1]], np.int64))),
    Case("GatherND", (CUBE, np.asarray([[0], [2]], np.int64)), {"batch_dims": 1}),
    Case("GatherND", (CUBE, np.asarray([1, 2, 3], np.int64))),
    Case("ScatterElements", (floats(3, 2), PLACES, floats(2, 2)), {"axis": 0}),
    Case("ScatterElements", (floats(3, 2), PLACES, floats(2, 2)), {"axis": 0, "reduction": "add"}),
    Case("ScatterND", (CUBE, np.asarray([[0, 1], [1, -1]], np.int64), floats(2, 4))),
    Case("ScatterND", (CUBE, np.asarray([[1], [1]], np.int64), floats(2, 3, 4)), {"reduction": "add"}),
    Case("Compress", (CUBE, np.asarray([True, False, True])), {"axis": 1}),
    Case("Compress", (CUBE, np.asarray([False, True, True]))),
    Case("NonZero", (bools(3, 4),)),
    Case("OneHot", (PLACES, number(4, np.int64), number([0.0, 2.0]))),
    Case("OneHot", (PLACES, number(3, np.int64), number([-1.0, 1.0])), {"axis": 0}),
    Case("Trilu", (CUBE,)),
    Case("Trilu", (CUBE, number(-1, np.int64)), {"upper": 0}),
    Case("ArrayFeatureExtractor", (ROW, ints(2, 0)), domain="ai.onnx.ml"),
    Case("ArrayFeatureExtractor", (number([5, 6, 7], np.int64), np.asarray([[1]], np.int64)), domain="ai.onnx.ml"),
]  # fmt: skip

# ---------------------------------------------------------------- resizing
PICTURE = floats(1, 2, 5, 7)
EMPTY = Fixed(np.zeros(0, np.float32))
LINEAR = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
ROUNDING = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def resized(shape: tuple[int, ...], mode: str, coordinates: str, *, opset: int = 13, **more: Any) -> Case:
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates, **more}
    return Case("Resize", (PICTURE, None, None, ints(*shape)), attributes, opset=opset)


def scaled(scales: tuple[float, ...], **attributes: Any) -> Case:
    return Case("Resize", (PICTURE, EMPTY, number(scales)), attributes, opset=11)


def drifts(mode: str, how: str) -> bool:
    """ONNX Runtime rounds 3.4999998, its own float32 coordinate, up to 4 here."""
    return mode == "asymmetric" and how == "round_prefer_ceil"


RESIZING = [
    *(resized((1, 2, 10, 10), "linear", mode) for mode in LINEAR),
    *(resized((1, 2, 3, 4), "linear", mode) for mode in LINEAR),
    *(resized((1, 2, 9, 11), "cubic", mode) for mode in LINEAR),
    *(resized((1, 2, 8, 4), "nearest", mode, nearest_mode=how) for mode in LINEAR for how in ROUNDING if not drifts(mode, how)),
    resized((1, 2, 9, 11), "cubic", "half_pixel", cubic_coeff_a=-0.5, exclude_outside=1),
    resized((1, 2, 7, 9), "linear", "half_pixel_symmetric", opset=19),
    resized((1, 2, 1, 1), "linear", "pytorch_half_pixel"),
    scaled((1.0, 1.0, 2.0, 2.0), mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    scaled((1.0, 1.0, 0.6, 1.7), mode="linear"),
    scaled((1.0, 1.0, 2.0, 2.0), mode="nearest", coordinate_transformation_mode="tf_half_pixel_for_nn", nearest_mode="floor"),
    Case("Resize", (PICTURE, number([1.0, 1.0, 2.0, 1.5])), {"mode": "nearest"}, opset=10),
    Case("Resize", (PICTURE, number([1.0, 1.0, 2.0, 2.0])), {"mode": "linear"}, opset=10),
    Case("Resize", (PICTURE, None, None, ints(8, 8)), {"axes": [2, 3], "mode": "linear"}, opset=18),
    Case("Upsample", (PICTURE, number([1.0, 1.0, 2.0, 3.0])), {"mode": "nearest"}, opset=9),
    Case("Upsample", (PICTURE,), {"mode": "nearest", "scales": [1.0, 1.0, 2.0, 3.0]}, opset=8),
]  # fmt: skip

# ---------------------------------------------------------------- recurrences
TIME, BATCH, WIDTH, HIDDEN = 5, 2, 3, 4
SEQUENCE = floats(TIME, BATCH, WIDTH)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(
    kind: str, direction: str = "forward", *, full: bool = True, state: bool = False, **attributes: Any
) -> Case:
    both, gates = (2 if direction == "bidirectional" else 1), GATES[kind]
    weights = [Fixed(floats(both, gates * HIDDEN, side, scale=0.5)) for side in (WIDTH, HIDDEN)]
    optional: list[Any] = [Fixed(floats(both, 2 * gates * HIDDEN, scale=0.5))] if full else []
    if state:
        cells = 2 if kind == "LSTM" else 1
        optional += [None, *(floats(both, BATCH, HIDDEN) for _ in range(cells))]
    settings = {"hidden_size": HIDDEN, "direction": direction, **attributes}
    return Case(kind, (SEQUENCE, *weights, *optional), settings, outputs=3 if kind == "LSTM" else 2)


def lstm_of_lengths(direction: str, *, peepholes: bool) -> Case:
    case = recurrent("LSTM", direction, state=True)
    both = 2 if direction == "bidirectional" else 1
    inputs = list(case.inputs)
    inputs[4] = np.asarray([5, 3], np.int32)
    case.inputs = (*inputs, *([Fixed(floats(both, 3 * HIDDEN))] if peepholes else []))
    return case


RECURRENT = [
    *(recurrent(kind, way) for kind in GATES for way in ("forward", "reverse", "bidirectional")),
    *(recurrent(kind, "bidirectional", state=True) for kind in GATES),
    *(recurrent(kind, full=False) for kind in GATES),
    *(recurrent(kind, clip=0.3) for kind in GATES),
    recurrent("GRU", linear_before_reset=1),
    recurrent("LSTM", input_forget=1),
    recurrent("LSTM", activations=["HardSigmoid", "Relu", "Softsign"]),
    recurrent("RNN", activations=["Relu"]),
    *(lstm_of_lengths(way, peepholes=peep) for way in ("forward", "reverse", "bidirectional") for peep in (False, True)),
]  # fmt: skip

# ---------------------------------------------------------------- quantization, attention
SCALES = Fixed(positive(4) * np.float32(0.1))
CODES = np.asarray(RANDOM.integers(0, 255, (2, 4, 3)), np.uint8)
TOKENS, QKV = floats(2, 5, 8), Fixed(floats(8, 24, scale=0.4))
MASK = Fixed(np.asarray([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32))
QUANTIZED = [
    Case("QuantizeLinear", (CUBE, number(0.02), number(128, np.uint8))),
    Case("QuantizeLinear", (CUBE, number(0.02), number(0, np.int8))),
    Case("QuantizeLinear", (CUBE, number(0.02))),
    Case("QuantizeLinear", (floats(2, 4, 3), SCALES, Fixed(np.asarray([0, 5, 100, 128], np.uint8))), {"axis": 1}),
    Case("QuantizeLinear", (floats(2, 3, 4), SCALES, Fixed(np.zeros(4, np.int8))), {"axis": -1}),
    Case("DequantizeLinear", (CODES, number(0.02), number(128, np.uint8))),
    Case("DequantizeLinear", (CODES, SCALES, Fixed(np.asarray([0, 5, 100, 128], np.uint8))), {"axis": 1}),
    Case("DequantizeLinear", (CODES.astype(np.int32), number(0.02))),
    Case("DequantizeLinear", (Fixed(np.ones((4, 6), np.int8)), Fixed(positive(4, 3))), {"axis": 1, "block_size": 2}, opset=21),
    Case("QuantizeLinear", (CUBE, number(0.001), number(32768, np.uint16)), domain="com.microsoft"),
    Case("DequantizeLinear", (CODES, number(0.02), number(128, np.uint8)), domain="com.microsoft"),
    Case("Attention", (TOKENS, Fixed(floats(8, 20)), Fixed(floats(20))), {"num_heads": 2, "qkv_hidden_sizes": [8, 8, 4]}, domain="com.microsoft"),
    Case("Attention", (TOKENS, QKV, Fixed(floats(24))), {"num_heads": 2}, domain="com.microsoft"),
    Case("Attention", (TOKENS, QKV, Fixed(floats(24)), MASK), {"num_heads": 4}, domain="com.microsoft"),
    Case("Attention", (TOKENS, QKV, Fixed(floats(24)), None, None, floats(2, 2, 5, 5)), {"num_heads": 2}, domain="com.microsoft"),
    Case("Attention", (TOKENS, QKV, Fixed(floats(24))), {"num_heads": 2, "unidirectional": 1, "scale": 0.3}, domain="com.microsoft"),
]  # fmt: skip

ALL = [*CONVOLUTIONS, *ELEMENTWISE, *REDUCING, *SHAPES, *RESIZING, *RECURRENT, *QUANTIZED]


@pytest.mark.parametrize("case", ALL, ids=lambda case: f"{case.kind}-{case.opset}")
def test_operator_gives_what_onnx_runtime_gives(case: Case) -> None:
    check(case)


def test_every_operator_of_the_table_is_tried() -> None:
    tried = {f"{case.domain}::{case.kind}" if case.domain else case.kind for case in ALL}
    assert set(OPERATORS) - tried == set()
    assert set(CONTROLLERS) == {"If", "Loop", "Scan"}
