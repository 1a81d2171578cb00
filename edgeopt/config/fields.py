"""One YAML value to one Python value: the kinds of values that a configuration holds.

``sections`` says which key is of which kind, ``reader`` walks the document. A :class:`Kind` reads a node and shows a
value again, so that ``config show`` prints what ``config check`` accepts. Values are read from the text as it stands
and not from what YAML 1.1 makes of it: ``off`` is no boolean where a choice is due, ``0644`` is a mode and not 420.
A kind that meets something else raises :class:`Unfit` with one clause, "is 3, not a whole number from 4 up".
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from edgeopt.config import units

PLAIN_NUMBER = re.compile(r"[+-]?(\d{1,20}(\.\d{0,20})?|\.\d{1,20})([eE][+-]?\d{1,3})?", re.ASCII)
WHOLE = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_TRUE = frozenset({"true", "yes", "on"})
_FALSE = frozenset({"false", "no", "off"})
_NOTHING = frozenset({"", "~", "null"})


class Unfit(ValueError):
    """A value that is not of its kind; the message goes on after the key's name."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of value is read and shown again; ``read`` raises :class:`Unfit`."""

    read: Callable[[yaml.Node], Any]
    show: Callable[[Any], Any]
    is_path: bool = False
    """Relative values are relative to the file they stand in."""


def seen(node: yaml.Node) -> str:
    """What stands there, short enough to be repeated to its author."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if not isinstance(node, yaml.ScalarNode) or is_nothing(node):
        return "empty"
    text = node.value if len(node.value) <= 60 else node.value[:57] + "..."
    return ascii(text) if node.style or not text.isprintable() else text


def is_nothing(node: yaml.Node) -> bool:
    """The key is there and its value is left out, or ``null``."""
    return isinstance(node, yaml.ScalarNode) and not node.style and node.value.lower() in _NOTHING


def plain_text(node: yaml.Node) -> str | None:
    """The text of an unquoted scalar; None for anything else."""
    return node.value if isinstance(node, yaml.ScalarNode) and not node.style else None


def _scalar(node: yaml.Node, wanted: str) -> str:
    if not isinstance(node, yaml.ScalarNode) or is_nothing(node):
        raise Unfit(f"is {seen(node)}, not {wanted}")
    return str(node.value)


def close_to(word: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that ``word`` was probably meant to be; None where none is like it."""
    close = difflib.get_close_matches(word.lower().replace("-", "_"), sorted(known), n=1, cutoff=0.6)
    return close[0] if close else None


def text(wanted: str = "a text", *, pattern: str = "", limit: int = 4096) -> Kind:
    """A non-empty line of text; ``pattern`` must match the whole of it."""

    def read(node: yaml.Node) -> str:
        value = _scalar(node, wanted)
        if not value or len(value) > limit or not value.isprintable() or (pattern and not re.fullmatch(pattern, value)):
            raise Unfit(f"is {seen(node)}, not {wanted}")
        return value

    return Kind(read, str)


def path() -> Kind:
    """A path; the reader makes it absolute."""
    return Kind(text("a path").read, str, is_path=True)


def secret_path() -> Kind:
    """The path of a file that holds a secret.

    Who puts the secret itself here by mistake must not find it in a log, so no mistake repeats the value.
    """

    def read(node: yaml.Node) -> str:
        value = node.value if isinstance(node, yaml.ScalarNode) else ""
        if not value or len(value) > 4096 or not value.isprintable() or ":" in value:
            raise Unfit("is not the path of a file; put the secret into a file of its own and name that")
        return str(value)

    return Kind(read, str, is_path=True)


def choice(*names: str) -> Kind:
    """One of these words."""

    def read(node: yaml.Node) -> str:
        value = _scalar(node, f"one of {', '.join(names)}")
        if value not in names:
            meant = close_to(value, names)
            raise Unfit(f"is {seen(node)}, not one of {', '.join(names)}{f'; did you mean {meant}?' if meant else ''}")
        return value

    return Kind(read, str)


def boolean() -> Kind:
    def read(node: yaml.Node) -> bool:
        value = (plain_text(node) or "").lower()
        if value not in _TRUE | _FALSE:
            raise Unfit(f"is {seen(node)}, not true or false")
        return value in _TRUE

    return Kind(read, bool)


def whole(low: int, high: int) -> Kind:
    """A whole number within ``low`` and ``high``, both included."""
    wanted = f"a whole number from {low} to {high}"

    def read(node: yaml.Node) -> int:
        value = plain_text(node) or ""
        if not WHOLE.fullmatch(value) or not low <= int(value) <= high:
            raise Unfit(f"is {seen(node)}, not {wanted}")
        return int(value)

    return Kind(read, int)


def number(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> Kind:
    """A finite number within ``low`` and ``high``; ``above`` leaves ``low`` itself out, ``below`` leaves ``high`` out."""
    wanted = _span(low, high, above=above, below=below)

    def read(node: yaml.Node) -> float:
        value = plain_text(node) or ""
        parsed = float(value) if PLAIN_NUMBER.fullmatch(value) else math.nan
        within = low <= parsed <= high and math.isfinite(parsed)
        if not within or (above and parsed == low) or (below and parsed == high):
            raise Unfit(f"is {seen(node)}, not {wanted}")
        return parsed

    return Kind(read, float)


def _span(low: float, high: float, *, above: bool, below: bool) -> str:
    if math.isinf(high):
        return f"a number above {low:g}" if above else f"a number of {low:g} or more"
    most = f"below {high:g}" if below else f"up to {high:g}" if above else f"{high:g}"
    return f"a number above {low:g} and {most}" if above else f"a number from {low:g} to {most}"


def _unit(parse: Callable[[str], Any], show: Callable[[Any], str], wanted: str) -> Kind:
    def read(node: yaml.Node) -> Any:
        value = _scalar(node, wanted)
        try:
            return parse(value)
        except ValueError as error:
            raise Unfit(f"is {seen(node)}: it {error}") from error

    return Kind(read, show)


def duration(*, least_s: float, most_s: float = units.MAX_SECONDS) -> Kind:
    """A time; seconds inside."""

    def parse(value: str) -> float:
        seconds = units.parse_duration(value)
        if not least_s <= seconds <= most_s:
            span = f"{units.show_duration(least_s)} to {units.show_duration(most_s)}"
            raise ValueError(f"is not within {span}")
        return seconds

    return _unit(parse, units.show_duration, "a time such as 10m")


def size(*, least: int = 0) -> Kind:
    """A size; bytes inside."""

    def parse(value: str) -> int:
        amount = units.parse_size(value)
        if amount < least:
            raise ValueError(f"is less than {units.show_size(least)}")
        return amount

    return _unit(parse, units.show_size, "a size such as 512MiB")


def share_or_size(*, least: int) -> Kind:
    """``75%`` (a float inside) or a size (an int inside)."""
    amount = size(least=least)

    def parse(value: str) -> float | int:
        if "%" not in value:
            raise ValueError("is neither a share such as 75% nor a size such as 2GiB")
        share = units.parse_percent(value)
        if share == 0:
            raise ValueError("leaves nothing")
        return share

    share = _unit(parse, units.show_percent, "a share such as 75% or a size such as 2GiB")

    def read(node: yaml.Node) -> float | int:
        value = _scalar(node, "a share such as 75% or a size such as 2GiB")
        kind = amount if value[-1:].isalpha() or value.isdigit() else share
        result: float | int = kind.read(node)
        return result

    return Kind(read, lambda value: units.show_percent(value) if isinstance(value, float) else units.show_size(value))


def mode() -> Kind:
    return _unit(units.parse_mode, units.show_mode, "a file mode such as 0644")


def or_else(word: str, kind: Kind) -> Kind:
    """``word`` (None inside) or what ``kind`` reads; an empty value counts as ``word`` too."""

    def read(node: yaml.Node) -> Any:
        if is_nothing(node) or plain_text(node) == word:
            return None
        try:
            return kind.read(node)
        except Unfit as error:
            raise Unfit(f"{error}, nor {word}") from error

    return Kind(read, lambda value: word if value is None else kind.show(value), kind.is_path)


def optional(kind: Kind) -> Kind:
    """A value that may be left empty: None inside."""

    def read(node: yaml.Node) -> Any:
        return None if is_nothing(node) else kind.read(node)

    return Kind(read, lambda value: None if value is None else kind.show(value), kind.is_path)


def list_of(kind: Kind, *, most: int = 64, exactly: int | None = None) -> Kind:
    """A list, each entry of one kind; a tuple inside."""
    wanted = f"a list of {exactly} entries" if exactly else f"a list of up to {most} entries"

    def read(node: yaml.Node) -> tuple[Any, ...]:
        if (
            not isinstance(node, yaml.SequenceNode)
            or len(node.value) > most
            or len(node.value) != (exactly or len(node.value))
        ):
            count = f" of {len(node.value)} entries" if isinstance(node, yaml.SequenceNode) else ""
            raise Unfit(f"is {seen(node)}{count}, not {wanted}")
        entries = []
        for position, entry in enumerate(node.value):
            try:
                entries.append(kind.read(entry))
            except Unfit as error:
                raise Unfit(f"[{position}] {error}") from error
        return tuple(entries)

    return Kind(read, lambda value: [kind.show(entry) for entry in value])


def either(first: Kind, second: Kind) -> Kind:
    """What ``first`` reads of a scalar, what ``second`` reads of anything else."""

    def read(node: yaml.Node) -> Any:
        return (first if isinstance(node, yaml.ScalarNode) else second).read(node)

    def show(value: Any) -> Any:
        return (second if isinstance(value, tuple | dict) else first).show(value)

    return Kind(read, show)
