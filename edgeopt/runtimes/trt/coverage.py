"""How much of an engine really runs in 8 bits: read from the builder's log, since an engine cannot be opened without a GPU.

With detailed verbosity the builder logs one message with a line for each layer of the engine: name, type, and the data type and dimensions of each tensor
it reads and writes. That is so for several compute capabilities too (seen with release 1.7): one engine holds one form that all of them run, and its table is that
form's. Quantization is silently undone where a GPU has no kernels for it (compute capability 7.5), and only this table shows it. The
format is not documented: what cannot be read is left out, and a table without a readable line gives None.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

_LINE = re.compile(
    r"\s*Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>.*?), StreamId"
    r"(?:: \d+, Metadata: (?P<metadata>.*))?"
)
_TENSOR = re.compile(r"Dimensions: \[([-\d,]*)\].*?Datatype: (\w+)")
_ONNX_NAME = re.compile(r"\[ONNX Layer: (.*?)\]")
PRODUCTS = frozenset({"correlation", "convolution", "deconv", "gemm", "runtime_fusion"})
"""Layer types that multiply by weights; ``runtime_fusion`` is one of them together with what follows it."""
_BITS = {
    "Float": 32,
    "Half": 16,
    "BFloat16": 16,
    "Int8": 8,
    "UInt8": 8,
    "FP8": 8,
    "Int4": 4,
    "Int32": 32,
    "Int64": 64,
    "Bool": 8,
}
_FEW_BITS = ("Int8", "Int4", "FP8", "FP4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of an engine; data types in TensorRT's words, ``Int8``, ``Half``, ``Float``."""

    name: str
    type: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    bytes: int
    """What one inference reads and writes, weights included; an open dimension counts as 1."""
    nodes: tuple[str, ...] = ()
    """Names of the ONNX nodes that it was made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Layers that multiply by weights, and in which precision they do."""

    layers: int
    products: int
    int8: int
    """8-bit activations times 8-bit weights."""
    packed: int
    """Weights in 8 or 4 bits, activations wider."""
    half: int
    traffic_bytes: int
    """Read and written by one inference, over all layers."""


def read(table: str) -> tuple[Layer, ...]:
    """The layers of a log's table; empty where no line can be read."""
    return tuple(_layer(match) for match in map(_LINE.match, table.splitlines()) if match)


def summary(layers: tuple[Layer, ...]) -> Coverage | None:
    """Counts over the layers; None where there are none."""
    if not layers:
        return None
    products = [layer for layer in layers if layer.type in PRODUCTS]
    return Coverage(
        layers=len(layers),
        products=len(products),
        int8=sum(map(_is_int8, products)),
        packed=sum(not _is_int8(layer) and any(kind in layer.constants for kind in _FEW_BITS) for layer in products),
        half=sum(not _is_int8(layer) and "Half" in layer.inputs for layer in products),
        traffic_bytes=sum(layer.bytes for layer in layers),
    )


def of_build(tables: Sequence[str]) -> Coverage | None:
    """What a build's log tells; of several tables the one with the fewest layers in int8, so that none claims more than some GPU does."""
    found = [each for each in (summary(read(table)) for table in tables) if each is not None]
    return min(found, key=lambda each: (each.int8, -each.traffic_bytes), default=None)


def _is_int8(layer: Layer) -> bool:
    return "Int8" in layer.inputs and "Int8" in layer.constants


def _layer(match: re.Match[str]) -> Layer:
    tensors = {part: _TENSOR.findall(match[part] or "") for part in ("inputs", "constants", "outputs")}
    kinds = {part: tuple(kind for _, kind in found) for part, found in tensors.items()}
    return Layer(
        name=match["name"],
        type=match["type"],
        inputs=kinds["inputs"],
        constants=kinds["constants"],
        outputs=kinds["outputs"],
        bytes=sum(_bytes(dimensions, kind) for found in tensors.values() for dimensions, kind in found),
        nodes=tuple(_ONNX_NAME.findall(match["metadata"] or "")),
    )


def _bytes(dimensions: str, kind: str) -> int:
    sides = [max(1, int(side)) for side in dimensions.split(",") if side]
    return prod(sides) * _BITS.get(kind, 32) // 8
