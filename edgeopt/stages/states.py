"""Which outputs a caller feeds back as inputs, guessed from names, types and shapes.

ONNX has no word for recurrent state, so exporters only leave traces: ``state`` and ``stateN``, ``h0`` and ``hn``,
``past_key_values.0.key`` and ``present.0.key``, ``cache_in`` and ``cache_out``. A wrong pair would be worse than a
missed one (a denoiser's ``sample`` is not its ``out_sample``), so a name must speak of a state, the shapes must fit,
and an input that carries the data must remain.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

from edgeopt.records import StatePair, TensorSpec

Words: TypeAlias = tuple[str, ...]

_STATE_WORDS = frozenset(
    {
        "state",
        "states",
        "h",
        "c",
        "hx",
        "cx",
        "hidden",
        "cell",
        "cache",
        "caches",
        "mem",
        "mems",
        "memory",
        "buf",
        "buffer",
        "buffers",
        "rnn",
        "lstm",
        "gru",
        "carry",
        "kv",
        "context",
        "ctx",
    }
)
_BEFORE = frozenset({"in", "input", "prev", "previous", "past", "old", "init", "initial", "last"})
_AFTER = frozenset({"out", "output", "next", "new", "present", "updated", "final", "curr", "current", "n"})
_PASSING = (("past", "present"), ("prev", "next"), ("previous", "next"), ("prev", "new"), ("old", "new"))
"""Pairs of words that say by themselves that a value is carried along."""


def find_states(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> tuple[StatePair, ...]:
    """The state pairs of a model, in the order of its inputs; each input and output in one pair at most."""
    pairs: list[StatePair] = []
    taken: set[str] = set()
    for given in inputs:
        for result in outputs:
            if result.name not in taken and _fits(given, result) and _related(given.name, result.name):
                pairs.append(StatePair(input=given.name, output=result.name))
                taken.add(result.name)
                break
    states = {pair.input for pair in pairs}
    data = [given for given in inputs if given.name not in states and given.shape]
    return tuple(pairs) if data else ()


def _fits(given: TensorSpec, result: TensorSpec) -> bool:
    """Same floating type, same rank, and no two fixed lengths that differ."""
    if given.dtype != result.dtype or "float" not in given.dtype or len(given.shape) != len(result.shape):
        return False
    pairs = zip(given.shape, result.shape, strict=True)
    return bool(given.shape) and all(
        isinstance(one, str) or isinstance(other, str) or one == other for one, other in pairs
    )


def _related(given: str, result: str) -> bool:
    before, after = _words(given), _words(result)
    passing = any(old in before and new in after for old, new in _PASSING)
    if not passing and not _STATE_WORDS & {*before, *after}:
        return False
    stem = tuple(word for word in before if word not in _BEFORE)
    stems = {stem, stem[:-1] if stem[-1:] == ("0",) else stem}
    rest = tuple(word for word in after if word not in _AFTER)
    if not rest:
        return passing and not stem
    # past_key_values.0.key against present.0.key: what follows the word is what counts
    return rest in stems or (passing and any(each[-len(rest) :] == rest for each in stems))


def _words(name: str) -> Words:
    """``stateN`` as state, n; ``past_key_values.0.key`` as past, key, values, 0, key; ``hn`` as h, n."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)
    words: list[str] = []
    for part in map(str.lower, parts):
        if part in ("hn", "cn"):
            words += [part[0], "n"]
        else:
            words.append(part)
    return tuple(words)
