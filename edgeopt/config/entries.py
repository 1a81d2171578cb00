"""The kinds of values that only a few keys have: addresses, URLs, dimensions, ranges, settings of a technique.

Same terms as ``fields``: text as it stands in, a value out, :class:`~edgeopt.config.fields.Unfit` where it does not fit.
"""

from __future__ import annotations

import math
import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml

from edgeopt.config.fields import (
    PLAIN_NUMBER,
    WHOLE,
    Kind,
    Unfit,
    close_to,
    is_nothing,
    list_of,
    number,
    plain_text,
    seen,
    text,
    whole,
)
from edgeopt.policy import Span

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{0,253}):(\d{1,5})", re.ASCII)
_URL = re.compile(r"([a-z][a-z0-9+.-]{1,31}://|/)\S{1,2000}", re.ASCII)
_SPAN = re.compile(r"\d{1,10}\.\.\d{1,10}(\.\.\d{1,10})?", re.ASCII)
_SPAN_WORDS = ("min", "typical", "max")
_OTHERS_WORDS = {"opt": "typical", "usual": "typical", "least": "min", "most": "max"}
"""What other tools, and this one inside, call them."""
_LONGEST = 10**9
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
    """A length from 1 up, the name of a dimension that stays open, or the lengths that it may have: ``1..8..32``, ``{min, typical, max}``."""

    def read(node: yaml.Node) -> int | str | Span:
        if isinstance(node, yaml.MappingNode):
            return _checked_span(_span_of_mapping(node), node)
        if match := _SPAN.fullmatch(plain_text(node) or ""):
            least, *typical, most = (int(part) for part in match[0].split(".."))
            return _checked_span(Span(least=least, typical=typical[0] if typical else None, most=most), node)
        value = node.value if isinstance(node, yaml.ScalarNode) and not is_nothing(node) else ""
        if not node_is_quoted(node) and WHOLE.fullmatch(value) and 1 <= int(value) <= _LONGEST:
            return int(value)
        if not _DIMENSION_NAME.fullmatch(value):
            raise Unfit(f"is {seen(node)}, not a length from 1 up, a range such as 1..8..32 or the name of a dimension")
        return str(value)

    return Kind(read, lambda value: str(value) if isinstance(value, Span) else value)


def _span_of_mapping(node: yaml.MappingNode) -> Span:
    length, found = whole(1, _LONGEST), dict[str, int]()
    for key, value in node.value:
        word = key.value if isinstance(key, yaml.ScalarNode) else seen(key)
        if word not in _SPAN_WORDS:
            meant = _OTHERS_WORDS.get(word) or close_to(word, _SPAN_WORDS)
            raise Unfit(f"has {word!r:.40}, not min, typical and max{f'; did you mean {meant}?' if meant else ''}")
        if word in found:
            raise Unfit(f"has {word} twice")
        try:
            found[word] = length.read(value)
        except Unfit as error:
            raise Unfit(f"has {word}, which {error}") from error
    if missing := [word for word in ("min", "max") if word not in found]:
        raise Unfit(f"lacks {' and '.join(missing)}")
    return Span(least=found["min"], typical=found.get("typical"), most=found["max"])


def _checked_span(span: Span, node: yaml.Node) -> Span:
    ordered = span.least <= (span.typical or span.least) <= (span.typical or span.most) <= span.most
    if span.least < 1 or not ordered or span.most > _LONGEST or span.typical == 0:
        said = str(span) if isinstance(node, yaml.MappingNode) else seen(node)
        raise Unfit(f"is {said}, not lengths from 1 up in the order min, typical, max")
    return span


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
