"""The kinds of values that only a few keys have: addresses, URLs, dimensions, ranges, settings of a technique.

Same terms as ``fields``: text as it stands in, a value out, :class:`~edgeopt.config.fields.Unfit` where it does not fit.
"""

from __future__ import annotations

import math
import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml

from edgeopt.config.fields import PLAIN_NUMBER, WHOLE, Kind, Unfit, is_nothing, list_of, number, plain_text, seen, text

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{0,253}):(\d{1,5})", re.ASCII)
_URL = re.compile(r"([a-z][a-z0-9+.-]{1,31}://|/)\S{1,2000}", re.ASCII)
_DIMENSION_NAME = re.compile(r"[A-Za-z_?][A-Za-z0-9_.-]{0,63}", re.ASCII)


def listen() -> Kind:
    """``host:port``, ``[v6]:port`` or ``:port`` (every address of the device); port 0 takes any free one."""
    wanted = "an address such as 127.0.0.1:9188"

    def read(node: yaml.Node) -> str:
        value: str = text(wanted).read(node)
        match = _ADDRESS.fullmatch(value)
        if not match or int(match.group(2)) > 65_535:
            raise Unfit(f"is {seen(node)}, not {wanted}")
        return value

    return Kind(read, str)


def url() -> Kind:
    """An fsspec URL or an absolute path; it may hold credentials, so a mistake does not repeat it."""

    def read(node: yaml.Node) -> str:
        value = node.value if isinstance(node, yaml.ScalarNode) else ""
        if not _URL.fullmatch(value) or not value.isprintable():
            raise Unfit("is not a URL such as s3://bucket/models or file:///mnt/share")
        return str(value)

    return Kind(read, without_credentials)


def without_credentials(value: str) -> str:
    """The URL with user, password, query and fragment blotted out."""
    try:
        parts = urlsplit(value)
    except ValueError:
        return "***"
    host = f"***@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    return urlunsplit((parts.scheme, host, parts.path, "***" if parts.query else "", "***" if parts.fragment else ""))


def dimension() -> Kind:
    """A length from 1 up, or the name of a dimension that stays open."""

    def read(node: yaml.Node) -> int | str:
        value = node.value if isinstance(node, yaml.ScalarNode) and not is_nothing(node) else ""
        if not node_is_quoted(node) and WHOLE.fullmatch(value) and 1 <= int(value) <= 10**9:
            return int(value)
        if not _DIMENSION_NAME.fullmatch(value):
            raise Unfit(f"is {seen(node)}, not a length from 1 up or the name of a dimension")
        return str(value)

    return Kind(read, lambda value: value)


def node_is_quoted(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and bool(node.style)


def span() -> Kind:
    """``[low, high]``: two finite numbers, the first the smaller one."""
    pair = list_of(number(-3.4e38, 3.4e38), exactly=2)

    def read(node: yaml.Node) -> tuple[float, float]:
        low, high = pair.read(node)
        if not low < high:
            raise Unfit(f"is [{low:g}, {high:g}], whose first number is not the smaller one")
        return low, high

    return Kind(read, pair.show)


def names_or_settings(name: Kind) -> Kind:
    """A list of names, or a free mapping of settings as JSON would have it."""
    names = list_of(name, most=16)

    def read(node: yaml.Node) -> Any:
        return plain_value(node) if isinstance(node, yaml.MappingNode) else names.read(node)

    return Kind(read, lambda value: value if isinstance(value, dict) else names.show(value))


def plain_value(node: yaml.Node) -> Any:
    """What stands there as JSON would have it; an unquoted number is a number."""
    if isinstance(node, yaml.SequenceNode):
        return [plain_value(entry) for entry in node.value]
    if isinstance(node, yaml.MappingNode):
        keys = {key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)}
        if len(keys) != len(node.value):
            raise Unfit("holds a key twice, or one that is not a word")
        return {key.value: plain_value(value) for key, value in node.value}
    return _plain_scalar(node)


def _plain_scalar(node: yaml.Node) -> str | int | float | bool:
    value = plain_text(node)
    if value is None:
        return str(node.value)
    if is_nothing(node):
        raise Unfit("holds an empty value")
    if WHOLE.fullmatch(value):
        return int(value)
    if value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if value.lower() in {".nan", ".inf", "-.inf", "+.inf"} or (
        PLAIN_NUMBER.fullmatch(value) and math.isinf(float(value))
    ):
        raise Unfit(f"holds {value}, which is not a finite number")
    return float(value) if PLAIN_NUMBER.fullmatch(value) else value
