"""torch-pruning: which channels it takes, and what its pruned model computes. ``python with_torch_pruning.py FOLDER``.

::

    FOLDER/model.onnx    a float model, batch norms folded
           feeds.npz     samples, [samples, *shape of one inference's input], keyed by input name
           job.json      importance; lose: output channels that each layer is to lose, by its weight's name; ours: constants that may lose any
           chosen.json   written: the channels taken, by the weight's name
           outputs.npz   written: the last output of its pruned torch model for the first samples

The torch model is the ONNX graph, with ``nn.Conv2d`` and ``nn.Linear`` where the graph has such layers, since those are what torch-pruning prunes, and plain torch for the rest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch_pruning
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

_COMPARED = 4
_ANY = 1e-3
"""A share of the width that rounds to one channel."""


class Graph(nn.Module):
    """An ONNX graph; layers by the name of their weight, a number in front since torch allows no dots."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        self.nodes = list(model.graph.node)
        self.names = [each.name for each in model.graph.input if each.name not in self.constants]
        self.result = model.graph.output[-1].name
        self.layers = nn.ModuleList()
        self.layer_of: dict[str, nn.Module] = {}
        self.biases = _biases(self.nodes, self.constants)
        for node in self.nodes:
            if node.op_type in _LAYERS and node.input[1] in self.constants:
                bias = self.constants[self.biases[node.output[0]]] if node.output[0] in self.biases else None
                made = _LAYERS[node.op_type](node, self.constants, bias)
                self.layer_of[node.input[1]] = made
                self.layers.append(made)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        values: dict[str, Any] = dict(zip(self.names, inputs, strict=True))
        for node in self.nodes:
            layer = self.layer_of.get(node.input[1]) if node.op_type in _LAYERS else None
            is_bias = node.op_type == "Add" and any(self.biases.get(name) in node.input for name in node.input)
            names = [name for name in node.input if name not in self.constants] if layer or is_bias else node.input
            given = [self._read(values, name) for name in names]
            pads = _settings(node).get("pads", [0, 0, 0, 0]) if node.op_type == "Conv" else [0, 0, 0, 0]
            if _is_uneven(pads):
                given[0] = functional.pad(given[0], (pads[1], pads[3], pads[0], pads[2]))
            if is_bias:  # in the layer already
                values[node.output[0]] = given[0]
            else:
                values[node.output[0]] = layer(*given) if layer else _OPERATORS[node.op_type](_settings(node), *given)
        return values[self.result]

    def _read(self, values: dict[str, Any], name: str) -> Any:
        if not name:
            return None
        return values[name] if name in values else torch.from_numpy(np.array(self.constants[name]))


def _settings(node: onnx.NodeProto) -> dict[str, Any]:
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def _biases(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> dict[str, str]:
    """The output of a MatMul with a weight to the bias that an Add puts behind it: one ``nn.Linear``."""
    made = {node.output[0] for node in nodes if node.op_type == "MatMul" and node.input[1] in constants}
    found = {}
    for node in nodes:
        if node.op_type == "Add":
            of_layer = [name for name in node.input if name in made]
            vectors = [name for name in node.input if name in constants and constants[name].ndim == 1]
            found.update({of_layer[0]: vectors[0]} if of_layer and vectors else {})
    return found


def _convolution(node: onnx.NodeProto, constants: dict[str, np.ndarray], _bias: Any) -> nn.Conv2d:
    settings, weight = _settings(node), constants[node.input[1]]
    pads = settings.get("pads", [0, 0, 0, 0])
    made = nn.Conv2d(
        weight.shape[1] * settings.get("group", 1),
        weight.shape[0],
        weight.shape[2:],
        stride=tuple(settings.get("strides", (1, 1))),
        padding=(0, 0) if _is_uneven(pads) else tuple(pads[:2]),
        dilation=tuple(settings.get("dilations", (1, 1))),
        groups=settings.get("group", 1),
        bias=len(node.input) > 2,
    )
    return _filled(made, weight, constants[node.input[2]] if len(node.input) > 2 else None)


def _is_uneven(pads: list[int]) -> bool:
    """Which ``nn.Conv2d`` does not know: padded in front of it."""
    return pads[:2] != pads[2:]


def _linear(node: onnx.NodeProto, constants: dict[str, np.ndarray], bias: np.ndarray | None) -> nn.Linear:
    weight = constants[node.input[1]]
    weight = weight if _settings(node).get("transB") else weight.T
    bias = constants[node.input[2]] if len(node.input) > 2 else bias
    return _filled(nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None), weight, bias)


def _transposed(node: onnx.NodeProto, constants: dict[str, np.ndarray], _bias: Any) -> nn.ConvTranspose2d:
    settings, weight = _settings(node), constants[node.input[1]]
    strides, pads = settings.get("strides", (1, 1)), settings.get("pads", (0, 0, 0, 0))
    shape = weight.shape
    made = nn.ConvTranspose2d(shape[0], shape[1], shape[2:], strides, tuple(pads[:2]), bias=len(node.input) > 2)
    return _filled(made, weight, constants[node.input[2]] if len(node.input) > 2 else None)


_LAYERS: dict[str, Any] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "Gemm": _linear,
    "MatMul": _linear,
}


def _filled(layer: Any, weight: np.ndarray, bias: np.ndarray | None) -> Any:
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.array(weight)))
        if bias is not None:
            layer.bias.copy_(torch.from_numpy(np.array(bias)))
    return layer


def _clip(_settings: dict[str, Any], data: torch.Tensor, low: Any = None, high: Any = None) -> torch.Tensor:
    return data.clamp(None if low is None else float(low), None if high is None else float(high))


def _max_pool(settings: dict[str, Any], data: torch.Tensor) -> torch.Tensor:
    pads, kernel = settings.get("pads", [0, 0, 0, 0]), settings["kernel_shape"]
    return functional.max_pool2d(data, kernel, settings.get("strides", [1, 1]), pads[:2])


def _reshape(_settings: dict[str, Any], data: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    target = [int(length) for length in shape]
    if target[:2] == [0, 0]:  # heads are counted here, and some are to go
        return data.reshape(*data.shape[:2], -1, *target[3:])
    # a flattened feature map has as many columns as channels are left, whatever the exporter wrote
    return data.flatten(1) if data.dim() == 4 and len(target) == 2 else data.reshape(target)


def _unsqueeze(_settings: dict[str, Any], data: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    for axis in axes.reshape(-1).tolist():
        data = data.unsqueeze(axis)
    return data


def _slice(_settings: dict[str, Any], data: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
    starts, ends, *rest = [[int(each) for each in part] for part in given]
    axes, steps = rest[0] if rest else [0], rest[1] if len(rest) > 1 else [1] * len(starts)
    places = [slice(None)] * data.dim()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places[axis] = slice(start, min(end, data.shape[axis]), step)
    return data[tuple(places)]


def _resize(
    _settings: dict[str, Any], data: torch.Tensor, _region: Any, scales: Any, sizes: Any = None
) -> torch.Tensor:
    if scales is not None and scales.numel():
        return functional.interpolate(data, scale_factor=[float(each) for each in scales[2:]])
    return functional.interpolate(data, [int(each) for each in sizes[2:]])


_OPERATORS: dict[str, Any] = {
    "Add": lambda _s, a, b: a + b,
    "Mul": lambda _s, a, b: a * b,
    "Relu": lambda _s, a: a.relu(),
    "Sigmoid": lambda _s, a: a.sigmoid(),
    "HardSwish": lambda _s, a: functional.hardswish(a),
    "HardSigmoid": lambda _s, a: (a * _s.get("alpha", 0.2) + _s.get("beta", 0.5)).clamp(0, 1),
    "Clip": _clip,
    "MaxPool": _max_pool,
    "GlobalAveragePool": lambda _s, a: a.mean((2, 3), keepdim=True),
    "ReduceMean": lambda _s, a, axes=None: a.mean(tuple(int(x) for x in axes), keepdim=bool(_s.get("keepdims", 1))),
    "Softmax": lambda _s, a: a.softmax(_s.get("axis", -1)),
    "Concat": lambda _s, *parts: torch.cat(parts, _s["axis"]),
    "Flatten": lambda _s, a: a.flatten(_s.get("axis", 1)),
    "Reshape": _reshape,
    "Shape": lambda _s, a: torch.tensor(a.shape)[_s.get("start", 0) : _s.get("end", a.dim())],
    "Gather": lambda _s, a, at: a[at] if _s.get("axis", 0) == 0 else a.index_select(_s["axis"], at),
    "Unsqueeze": _unsqueeze,
    "Squeeze": lambda _s, a: a.squeeze(),
    "Slice": _slice,
    "Resize": _resize,
    "Cast": lambda _s, a: a.to({1: torch.float32, 7: torch.int64, 9: torch.bool}[_s["to"]]),
    "Range": lambda _s, start, end, by: torch.arange(int(start), int(end), int(by)),
    "GreaterOrEqual": lambda _s, a, b: a >= b,
    "And": lambda _s, a, b: a & b,
    "Max": lambda _s, a, b: torch.maximum(a, b),
    "Expand": lambda _s, a, shape: a * torch.ones([int(x) for x in shape], dtype=a.dtype),
    "GatherND": lambda _s, a, at: a[tuple(at.unbind(-1))],
    "LayerNormalization": lambda _s, a, scale, shift: functional.layer_norm(
        a, scale.shape, scale, shift, _s["epsilon"]
    ),
    "Transpose": lambda _s, a: a.permute(_s["perm"]),
    "MatMul": lambda _s, a, b: a @ b,
    "Where": lambda _s, where, a, b: torch.where(where, a, b),
    "IsNaN": lambda _s, a: a.isnan(),
    "Div": lambda _s, a, b: a / b,
    "Erf": lambda _s, a: a.erf(),
    "ReduceSum": lambda _s, a, axes: a.sum(tuple(int(x) for x in axes), keepdim=bool(_s.get("keepdims", 1))),
    "ReduceL2": lambda _s, a, axes: a.norm(dim=tuple(int(x) for x in axes), keepdim=bool(_s.get("keepdims", 1))),
    "Identity": lambda _s, a: a,
}


def importance(kind: str, model: Graph, samples: list[list[torch.Tensor]]) -> Any:
    """The peer's own; Taylor needs gradients, here of the cross entropy with the model's own answers."""
    if kind == "magnitude":
        return torch_pruning.importance.GroupMagnitudeImportance(p=2)
    for sample in samples:
        scores = model(*sample)
        functional.cross_entropy(scores, scores.detach().argmax(-1)).backward()
    return torch_pruning.importance.GroupTaylorImportance()


def main() -> None:
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    model = Graph(onnx.load(folder / "model.onnx")).eval()
    with np.load(folder / "feeds.npz") as arrays:
        columns = [torch.from_numpy(arrays[name]) for name in model.names]
    samples = [[column[index] for column in columns] for index in range(len(columns[0]))]
    names = {layer: name for name, layer in model.layer_of.items()}
    # a little less than the share, since the peer rounds what is left down
    shares = {
        layer: (job["lose"][name] - 0.25) / _outputs(layer) for layer, name in names.items() if name in job["lose"]
    }
    heads = {model.layer_of[name]: job["units"][each[0]] for each in job["heads"] for name in each}
    of_heads = {model.layer_of[name]: shares[model.layer_of[each[0]]] for each in job["heads"] for name in each}
    pruner = torch_pruning.pruner.BasePruner(
        model,
        samples[0],
        importance(job["importance"], model, samples),
        pruning_ratio=0.0,
        # it looks at heads only where a width is to go, which prune_head_dims then forbids
        pruning_ratio_dict=shares | dict.fromkeys(heads, _ANY),
        num_heads=heads,
        prune_num_heads=bool(heads),
        prune_head_dims=False,
        head_pruning_ratio_dict=of_heads,
        ignored_layers=[layer for layer, name in names.items() if name not in job["ours"]],
        forward_fn=lambda graph, inputs: graph(*inputs),
    )
    chosen: dict[str, list[int]] = {}
    for group in pruner.step(interactive=True):
        for dependency, channels in group:
            name = names.get(dependency.target.module)
            if name in job["lose"] and pruner.DG.is_out_channel_pruning_fn(dependency.handler):
                chosen[name] = sorted(int(channel) for channel in channels)
        group.prune()
    with torch.no_grad():
        outputs = [model(*sample).numpy() for sample in samples[:_COMPARED]]
    np.savez(folder / "outputs.npz", last=np.stack(outputs))
    (folder / "chosen.json").write_text(json.dumps(chosen))


def _outputs(layer: Any) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


if __name__ == "__main__":
    main()
