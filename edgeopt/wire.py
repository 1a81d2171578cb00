"""Records to JSON and back: the only serialisation in edgeopt.

Dataclasses become objects by field name, tuples become arrays. :func:`decode` checks what it reads against the
annotations, since what a worker sends is not trusted: an unknown field, a missing one or a wrong type is a
:class:`ValueError` that names the path, never a half-filled record.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

Record = TypeVar("Record")


def encode(value: Any) -> Any:
    """A record (or a tuple, dict or scalar of them) as what json.dumps takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    return value


def dumps(value: Any) -> str:
    """One line of JSON, keys in the order of the record's fields; NaN and infinity are refused."""
    return json.dumps(encode(value), allow_nan=False, separators=(",", ":"))


def loads(kind: type[Record], text: str | bytes) -> Record:
    """A record out of a line of JSON; :class:`ValueError` where it is not one."""
    return decode(kind, json.loads(text))


def decode(kind: type[Record], data: Any) -> Record:
    """A record out of parsed JSON; :class:`ValueError` names the place that does not fit."""
    return typing.cast("Record", _decode(kind, data, kind.__name__))


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _decode(kind: Any, data: Any, where: str) -> Any:
    if kind is Any:
        return data
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_record(kind, data, where)
    origin = typing.get_origin(kind)
    composite = _COMPOSITES.get(origin)
    return composite(typing.get_args(kind), data, where) if composite else _decode_scalar(kind, data, where)


def _decode_record(kind: type, data: Any, where: str) -> Any:
    _require(isinstance(data, dict), data, where, "an object")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(data) - set(fields)):
        raise ValueError(f"{where} has unknown fields {unknown}")
    needed = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := sorted(needed - set(data)):
        raise ValueError(f"{where} lacks the fields {missing}")
    hints = _hints(kind)
    return kind(**{name: _decode(hints[name], item, f"{where}.{name}") for name, item in data.items()})


def _decode_literal(arguments: tuple[Any, ...], data: Any, where: str) -> Any:
    return _require(data in arguments, data, where, f"one of {arguments}")


def _decode_dict(arguments: tuple[Any, ...], data: Any, where: str) -> Any:
    _require(isinstance(data, dict), data, where, "an object")
    return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in data.items()}


def _decode_union(arguments: tuple[Any, ...], data: Any, where: str) -> Any:
    for argument in arguments:
        try:
            return _decode(argument, data, where)
        except ValueError:
            continue
    raise ValueError(f"{where} is {data!r:.80}, which fits none of {arguments}")


def _decode_tuple(arguments: tuple[Any, ...], data: Any, where: str) -> Any:
    _require(isinstance(data, list | tuple), data, where, "an array")
    if len(arguments) == 2 and arguments[1] is ...:
        return tuple(_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(data))
    _require(len(data) == len(arguments), data, where, f"an array of {len(arguments)}")
    return tuple(
        _decode(kind, item, f"{where}[{index}]") for index, (kind, item) in enumerate(zip(arguments, data, strict=True))
    )


def _decode_scalar(kind: Any, data: Any, where: str) -> Any:
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    fits = type(data) is kind if kind in (int, float, bool, str) else data is None and kind in (None, type(None))
    return _require(fits, data, where, getattr(kind, "__name__", str(kind)))


def _require(fits: bool, data: Any, where: str, wanted: str) -> Any:
    if not fits:
        raise ValueError(f"{where} is {data!r:.80}, not {wanted}")
    return data


_COMPOSITES: dict[Any, Callable[[tuple[Any, ...], Any, str], Any]] = {
    typing.Literal: _decode_literal,
    typing.Union: _decode_union,
    types.UnionType: _decode_union,
    tuple: _decode_tuple,
    dict: _decode_dict,
}
