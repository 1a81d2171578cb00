"""The skeleton of an ONNX file, seen with the standard library alone: whether it is whole, and what it refers to.

Stands inside ``intake``, before anything heavier sees the bytes: an open descriptor goes in, a :class:`Walk` comes out.
The daemon never imports onnx, and onnx's own checks of external data were incomplete three times in four years
(CVE-2022-25882, CVE-2024-27318, CVE-2026-27489), so every TensorProto anywhere is visited here: initializers, attributes,
subgraphs, functions, sparse tensors and training information.

The walk is iterative, reads through a window (``pread``, so a file that shrinks under it is an error and not a SIGBUS),
jumps over weights and is bounded in depth, in fields and in references. It is stricter than protobuf: an entry of
``external_data`` counts wherever it stands, since protobuf merges a message that is given twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from edgeopt.errors import InputError, JobCancelled, NotAModel, TooLarge, TruncatedModel, UnsafeReference

MAX_DEPTH = 64
MAX_FIELDS = 30_000_000
MAX_LOCATIONS = 10_000
MAX_ENTRY_BYTES = 8192
EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})

_WINDOW = 1 << 18
_LONGEST_HEADER = 20  # a tag and a length, ten bytes each at most
_LONGEST_VARINT = 10
_HOLE = 512
_CHECK_EVERY = 1 << 16
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING = range(8)
_CHILDREN: tuple[dict[int, int], ...] = (
    {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},  # ModelProto: graph, training_info, functions
    {1: _NODE, 5: _TENSOR, 15: _SPARSE},  # GraphProto: node, initializer, sparse_initializer
    {5: _ATTRIBUTE},  # NodeProto: attribute
    {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},  # AttributeProto: t, g, and their lists
    {},  # TensorProto: external_data is read where the tensor is, by note()
    {1: _TENSOR, 2: _TENSOR},  # SparseTensorProto: values, indices
    {7: _NODE, 11: _ATTRIBUTE},  # FunctionProto: node, attribute_proto
    {1: _GRAPH, 2: _GRAPH},  # TrainingInfoProto: initialization, algorithm
)
_MODEL_IR_VERSION, _MODEL_GRAPH, _MODEL_OPSETS = 1, 7, 8
_TENSOR_EXTERNAL_DATA, _TENSOR_LOCATION = 13, 14
_FIRST_IR_WITH_OPSETS = 3
_LARGEST_IR_VERSION = 0xFFFF
_NUMBER = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """What a whole model file refers to."""

    references: tuple[tuple[str, int], ...]
    """(location as written, the byte its file must reach at least), in the order of first sight."""
    nodes: int
    tensors: int


def walk(fd: int, size_bytes: int, *, should_stop: Callable[[], bool] = lambda: False) -> Walk:
    """Visit every tensor of the ModelProto in ``fd``, which is ``size_bytes`` long.

    Raises :class:`~edgeopt.errors.TruncatedModel` where the file ends (or turns to zeros) too early,
    :class:`~edgeopt.errors.NotAModel` where it is something else or damaged, :class:`~edgeopt.errors.UnsafeReference`
    for external data with keys or numbers that are not allowed, :class:`~edgeopt.errors.TooLarge` past the bounds.
    """
    walker = _Walker(fd, size_bytes)
    walker.run(should_stop)
    walker.judge()
    return Walk(references=tuple(walker.locations.items()), nodes=walker.nodes, tensors=walker.tensors)


@dataclass(slots=True)
class _Walker:
    fd: int
    size: int
    window: bytes = b""
    base: int = 0
    nodes: int = 0
    tensors: int = 0
    ir_version: int | None = None
    seen: set[int] = field(default_factory=set)
    """Numbers of the top-level fields that were there."""
    locations: dict[str, int] = field(default_factory=dict)
    entries: list[dict[int, str]] = field(default_factory=list)
    """external_data of the tensor that is open; tensors do not nest."""
    external: bool = False

    def run(self, should_stop: Callable[[], bool]) -> None:
        """One field a turn: a message that can hold tensors is entered, everything else is jumped over."""
        stack: list[tuple[int, int]] = []
        kind, end, position, fields = _MODEL, self.size, 0, 0
        while True:
            while position >= end:
                if kind == _TENSOR:
                    self.close_tensor()
                if not stack:
                    return
                kind, end = stack.pop()
            fields += 1
            if fields % _CHECK_EVERY == 0:
                _check_bounds(fields, should_stop)
            number, wire, start, stop = self.field_at(position, kind)
            if stop > end:
                raise self.overrun(kind, position, stop)
            if kind in (_MODEL, _TENSOR):
                self.note(kind, (number, wire), start, stop)
            child = _CHILDREN[kind].get(number) if wire == _LENGTH else None
            if child is None:
                position = stop
            else:
                stack.append((kind, end))
                self.enter(child, len(stack))
                kind, end, position = child, stop, start

    def field_at(self, position: int, kind: int) -> tuple[int, int, int, int]:
        """Number and wire type of the field at ``position``, and where its content starts and stops."""
        offset = position - self.base
        if offset + _LONGEST_HEADER > len(self.window) and self.base + len(self.window) < self.size:
            self.window, self.base, offset = os.pread(self.fd, _WINDOW, position), position, 0
        window = self.window
        try:
            tag = window[offset]
            offset += 1
            if tag > 0x7F:
                tag, offset = _varint(window, offset - 1)
            if not 8 <= tag < 1 << 32:
                raise self.damaged(position)
            wire = tag & 7
            start = stop = self.base + offset
            if wire == _LENGTH:
                length = window[offset]
                offset += 1
                if length > 0x7F:
                    length, offset = _varint(window, offset - 1)
                start = self.base + offset
                stop = start + length
            elif wire == _VARINT:
                stop = self.base + (offset + 1 if window[offset] <= 0x7F else _varint(window, offset)[1])
            elif wire in (_FIXED32, _FIXED64):
                stop = start + (4 if wire == _FIXED32 else 8)
            else:
                raise self.damaged(position)
        except IndexError:
            raise self.overrun(kind, position, self.size + 1) from None
        except OverflowError:
            raise self.damaged(position) from None
        return tag >> 3, wire, start, stop

    def enter(self, child: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise TooLarge(
                f"the model nests its messages more than {MAX_DEPTH} deep",
                hint="Export it with fewer subgraphs inside subgraphs.",
            )
        self.nodes += child == _NODE
        self.tensors += child == _TENSOR

    def note(self, kind: int, field_id: tuple[int, int], start: int, stop: int) -> None:
        """Keep what matters of a ModelProto's or a TensorProto's own fields."""
        if kind == _MODEL:
            self.seen.add(field_id[0])
            if field_id == (_MODEL_IR_VERSION, _VARINT):
                self.ir_version = self.number(start)
        elif field_id == (_TENSOR_EXTERNAL_DATA, _LENGTH):
            self.entries.append(self.entry(start, stop))
        elif field_id == (_TENSOR_LOCATION, _VARINT):
            self.external = self.number(start) == 1

    def number(self, start: int) -> int:
        return _varint(self.window, start - self.base)[0]

    def entry(self, start: int, stop: int) -> dict[int, str]:
        """A StringStringEntryProto: 1 is the key, 2 the value, the last one given counts."""
        if stop - start > MAX_ENTRY_BYTES:
            raise UnsafeReference(
                f"an external-data entry of {stop - start} bytes is longer than {MAX_ENTRY_BYTES}",
                hint="Export the model again with a short file name for its external data.",
            )
        data = os.pread(self.fd, stop - start, start)
        pair, offset = {1: "", 2: ""}, 0
        try:
            while offset < len(data):
                tag, offset = _varint(data, offset)
                length, offset = _varint(data, offset)
                if tag & 7 != _LENGTH or offset + length > len(data):
                    raise self.damaged(start)
                pair[tag >> 3] = data[offset : offset + length].decode()
                offset += length
        except (IndexError, OverflowError, UnicodeDecodeError):
            raise self.damaged(start) from None
        return pair

    def close_tensor(self) -> None:
        """Judge the external data of the tensor that ends here."""
        entries, external = self.entries, self.external
        self.entries, self.external = [], False
        if not entries and not external:
            return
        pairs = [(entry[1], entry[2]) for entry in entries]
        if unknown := sorted({key for key, _ in pairs} - EXTERNAL_KEYS):
            raise _unsafe(f"external data carries the keys {unknown!a:.200}, only {sorted(EXTERNAL_KEYS)} are known")
        values = dict(pairs)
        if len(values) < len(pairs):
            raise _unsafe(f"a tensor gives a key of its external data twice: {[key for key, _ in pairs]}")
        if "location" not in values:
            raise _unsafe("a tensor with external data names no location")
        for key in ("offset", "length"):
            if not _NUMBER.fullmatch(values.get(key, "0")):
                raise _unsafe(f"the {key} of external data is {values[key]!a:.40}, not a number of bytes")
        reach = int(values.get("offset", "0")) + int(values.get("length", "0"))
        location = values["location"]
        self.locations[location] = max(reach, self.locations.get(location, 0))
        if len(self.locations) > MAX_LOCATIONS:
            raise TooLarge(
                f"the model refers to more than {MAX_LOCATIONS} external files",
                hint="Export it with all of its external data in one file.",
            )

    def judge(self) -> None:
        """Refuse a file that parsed but is no ModelProto, or that lacks its end."""
        if not self.plausible():
            raise _not_a_model("the file is no ONNX model: it has no ir_version")
        version = self.ir_version or 0
        if _MODEL_GRAPH not in self.seen:
            raise _truncated("the model ends before its graph")
        if version >= _FIRST_IR_WITH_OPSETS and _MODEL_OPSETS not in self.seen:
            raise _truncated("the model ends before its opset_import")

    def plausible(self) -> bool:
        return self.ir_version is not None and 1 <= self.ir_version <= _LARGEST_IR_VERSION

    def overrun(self, kind: int, position: int, stop: int) -> InputError:
        """A field that reaches past its message: past the file's end it was cut off, inside the file it is damage."""
        if kind != _MODEL:
            return self.damaged(position)
        if self.plausible() or (position == 0 and self.window[:1] == b"\x08"):
            return _truncated(f"the model is cut off: it has {self.size} bytes and a field needs at least {stop}")
        return _not_a_model("the file is no ONNX model: its first bytes are no ModelProto")

    def damaged(self, position: int) -> InputError:
        hole = os.pread(self.fd, _HOLE, position)
        if self.plausible() and hole and not any(hole):
            return _truncated(f"the model is zeros from byte {position} on: it was allocated but not filled")
        if self.plausible():
            return _not_a_model(f"the model is damaged at byte {position} of {self.size}")
        return _not_a_model("the file is no ONNX model: its first bytes are no ModelProto")


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """The number at ``offset`` and the offset behind it; OverflowError past ten bytes, IndexError past the data."""
    value = 0
    for index in range(_LONGEST_VARINT):
        byte = data[offset + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, offset + index + 1
    raise OverflowError


def _check_bounds(fields: int, should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise JobCancelled("the look at the model was stopped")
    if fields > MAX_FIELDS:
        raise TooLarge(
            f"the model has more than {MAX_FIELDS} fields", hint="Export it with packed weights and fewer nodes."
        )


def _unsafe(message: str) -> UnsafeReference:
    return UnsafeReference(message, hint="Export the model again with the exporter's plain external data.")


def _not_a_model(message: str) -> NotAModel:
    return NotAModel(message, hint="Export the model as ONNX and drop that file.")


def _truncated(message: str) -> TruncatedModel:
    return TruncatedModel(
        message, hint="Copy the whole file again, best under a name ending in .part and renamed at the end."
    )
