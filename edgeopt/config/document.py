"""Hostile YAML to a tree of nodes with line numbers, in bounded time and memory; what comes out is still unchecked.

A job file comes from whoever can write into the inbox, and PyYAML's safe loader is safe from code only: nested aliases
grow without bound (yaml/pyyaml#235) and merge keys hang it (yaml/pyyaml#897). So the tokens are read first, and every
feature that nobody needs in a configuration is refused before anything is composed. Nodes and not values, because a
mistake is told with its line, and because a schema knows better than YAML 1.1 what ``off``, ``0644`` or ``1:30`` mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import yaml

MAX_BYTES = 64 * 1024
MAX_DEPTH = 16
MAX_NODES = 10_000

_REFUSED: tuple[tuple[type[yaml.Token], str], ...] = (
    (yaml.AnchorToken, "an anchor (&name)"),
    (yaml.AliasToken, "an alias (*name)"),
    (yaml.TagToken, "a tag (!name)"),
    (yaml.DirectiveToken, "a directive (%NAME)"),
)
_OPENS = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_CLOSES = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
_FRAME = (yaml.StreamStartToken, yaml.StreamEndToken, yaml.DocumentStartToken, yaml.DocumentEndToken)


class Unreadable(ValueError):
    """The text is not YAML, or not the plain kind that is accepted; ``line`` counts from 1."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")


@dataclass(slots=True)
class Mistakes:
    """Collects every mistake of a document, so that the reader is told all of them at once."""

    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, node: yaml.Node, text: str) -> None:
        self.found.append((line_of(node), text))

    def lines(self) -> tuple[str, ...]:
        """``line 7: ...`` for each, in the order of the file; line 0 belongs to the file as a whole."""
        return tuple(
            f"line {line}: {text}" if line else text for line, text in sorted(self.found, key=lambda item: item[0])
        )


def line_of(node: yaml.Node) -> int:
    """The line a node starts at, counted from 1."""
    return int(node.start_mark.line) + 1


def compose(text: str | bytes) -> yaml.Node | None:
    """The document's root node; None where it is empty. Raises :class:`Unreadable`."""
    plain = _decoded(text)
    try:
        _refuse_tokens(yaml.scan(plain, Loader=yaml.SafeLoader))
        root: yaml.Node | None = yaml.compose(plain, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # the problem alone: PyYAML's own message quotes the line, which may hold a secret
        raise Unreadable(mark.line + 1 if mark else 1, f"this is not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise Unreadable(1, "this is not YAML: it holds characters that YAML does not allow") from error
    return root


def _decoded(text: str | bytes) -> str:
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(raw) > MAX_BYTES:
        raise Unreadable(1, f"the file has {len(raw)} bytes, more than the {MAX_BYTES} that are read")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(raw[: error.start].count(b"\n") + 1, "the file is not UTF-8 text; save it as UTF-8") from error


def _refuse_tokens(tokens: Iterable[yaml.Token]) -> None:
    for token in _within_limits(tokens):
        line = token.start_mark.line + 1
        for kind, name in _REFUSED:
            if isinstance(token, kind):
                raise Unreadable(line, f"{name} is not accepted here; write the value out")
        if isinstance(token, yaml.ScalarToken) and token.plain and token.value == "<<":
            raise Unreadable(line, "a merge key (<<) is not accepted here; write the keys out")


def _within_limits(tokens: Iterable[yaml.Token]) -> Iterator[yaml.Token]:
    depth = 0
    content = False
    for count, token in enumerate(tokens, start=1):
        line = token.start_mark.line + 1
        depth += isinstance(token, _OPENS) - isinstance(token, _CLOSES)
        if depth > MAX_DEPTH:
            raise Unreadable(line, f"this is nested deeper than {MAX_DEPTH} levels")
        if count > MAX_NODES:
            raise Unreadable(line, f"the file has more than {MAX_NODES} tokens")
        if isinstance(token, yaml.DocumentStartToken) and content:
            raise Unreadable(line, "a second document (---) is not accepted here; use one file for each")
        content = (
            content
            or not isinstance(token, (*_FRAME, yaml.DirectiveToken))
            or isinstance(token, yaml.DocumentStartToken)
        )
        yield token
