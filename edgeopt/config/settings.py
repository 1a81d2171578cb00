"""Settings of the techniques that a configuration or a job file may spell out: their names, and what each may hold.

Stands under ``sections``. The passes check what a recipe gives them once more, but a refused candidate at the end of a job is a late answer to a misspelled
word, and the daemon cannot ask the passes: it imports none of what they are made of. Tests hold these tables against the passes' own, both ways.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import yaml

from edgeopt.config import entries
from edgeopt.config import fields as kinds
from edgeopt.config.fields import Kind, Unfit, seen

PRUNE = "techniques.prune"
PRUNERS = ("prune_channels", "prune_weights")
_DECIDES = "pattern"
"""With it ``prune`` is about single weights, without it about channels."""
_MANY = 10**9
_SEEDS = 2**32 - 1
_LARGEST_GROUP = 16


def of_prune(node: yaml.MappingNode) -> Mapping[str, Kind]:
    """The settings that go with ``prune`` as it is spelled out here."""
    has_pattern = any(isinstance(key, yaml.ScalarNode) and key.value == _DECIDES for key, _ in node.value)
    # a pattern alone is how one comes to the settings of single weights, so its name has to be known from outside
    return PRUNE_WEIGHTS if has_pattern else {**PRUNE_CHANNELS, _DECIDES: PRUNE_WEIGHTS[_DECIDES]}


def of_distill(node: yaml.MappingNode) -> Mapping[str, Kind]:
    """The settings of ``distill``."""
    del node
    return DISTILL


def of_the_other(key: str, known: Collection[str]) -> str | None:
    """Why ``key`` is no setting of the one way to prune, where it is one of the other; None where it is of neither."""
    if "criterion" not in known:
        return "it is about channels, and with a pattern single weights are pruned" if key in PRUNE_CHANNELS else None
    return "it is about single weights and needs a pattern, such as 2:4, beside it" if key in PRUNE_WEIGHTS else None


def clash(found: Mapping[str, Any]) -> str | None:
    """Which settings do not go together; None where all do."""
    pattern = found.get(_DECIDES)
    if pattern not in (None, "unstructured") and found.get("scope") == "global":
        return f"has pattern {pattern}, which removes the same share everywhere, and scope global, which does not"
    return None


def _count(least: int = 0) -> Kind:
    return kinds.whole(least, _MANY)


def _word_or(word: str, kind: Kind) -> Kind:
    """``word`` as it is, or what ``kind`` reads."""

    def read(node: yaml.Node) -> Any:
        if kinds.plain_text(node) == word:
            return word
        try:
            return kind.read(node)
        except Unfit as error:
            raise Unfit(f"{error}, nor {word}") from error

    return Kind(read, lambda value: value)


def _width(*bits: int) -> Kind:
    wanted = f"one of {', '.join(map(str, bits))}"

    def read(node: yaml.Node) -> int:
        value = kinds.plain_text(node) or ""
        if not kinds.WHOLE.fullmatch(value) or int(value) not in bits:
            raise Unfit(f"is {seen(node)}, not {wanted}")
        return int(value)

    return Kind(read, int)


def _pattern() -> Kind:
    wanted = f"unstructured, or n:m such as 2:4 with n below m and m up to {_LARGEST_GROUP}"
    line = kinds.text(wanted, limit=60)

    def read(node: yaml.Node) -> str:
        value: str = line.read(node)
        match = re.fullmatch(r"(\d{1,2}):(\d{1,2})", value, re.ASCII)
        if value != "unstructured" and not (match and 0 < int(match[1]) < int(match[2]) <= _LARGEST_GROUP):
            raise Unfit(f"is {seen(node)}, not {wanted}")
        return value

    return Kind(read, str)


def _layers() -> Kind:
    """A list of names, or the same as a text in JSON, which is how a recipe has it."""
    return _structured("a list of names", lambda value: isinstance(value, list) and all(type(n) is str for n in value))


def _counts() -> Kind:
    """Names with counts, or the same as a text in JSON, which is how a recipe has it."""
    return _structured(
        "counts by name, such as {conv1.weight: 8}",
        lambda value: isinstance(value, dict) and all(type(count) is int and count >= 0 for count in value.values()),
    )


def _structured(wanted: str, fits: Callable[[Any], bool]) -> Kind:
    def read(node: yaml.Node) -> Any:
        value = entries.plain_value(node) if not isinstance(node, yaml.ScalarNode) else node.value
        if not fits(_parsed(value) if isinstance(value, str) else value):
            raise Unfit(f"is {seen(node)}, not {wanted}")
        return value

    return Kind(read, lambda value: value)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # brackets in brackets in brackets: a job file may be hostile
        return None


PRUNE_CHANNELS: Mapping[str, Kind] = {
    "criterion": kinds.choice(
        "l1", "l2", "group_l2", "batch_norm", "taylor", "entropy", "apoz", "variance", "obs", "random"
    ),
    "ratio": kinds.number(0, 1, below=True),
    "removed": _counts(),
    "scope": kinds.choice("local", "global", "kind"),
    "multiple": _count(),
    "largest": _count(),
    "refit": kinds.boolean(),
    "apart": kinds.boolean(),
    "direction": kinds.choice("low", "high"),
    "families": kinds.choice("all", "inner", "channels", "heads", "neurons", "hidden"),
    "seed": kinds.whole(0, _SEEDS),
}
PRUNE_WEIGHTS: Mapping[str, Kind] = {
    "pattern": _pattern(),
    "ratio": kinds.number(0, 1, above=True, below=True),
    "method": kinds.choice("sparsegpt", "magnitude", "found"),
    "scope": kinds.choice("local", "global"),
    "bits": _width(0, 2, 3, 4, 5, 6, 8),
    "noise": kinds.number(0),
    "small": kinds.number(0, 1, below=True),
    "form": kinds.choice("masked", "dense"),
    "skip": _layers(),
}
DISTILL: Mapping[str, Kind] = {
    "steps": _count(1),
    "batch": _count(1),
    "learning_rate": _word_or("auto", kinds.number(0)),
    "schedule": kinds.choice("cosine", "linear", "constant"),
    "optimizer": kinds.choice("adamw", "sgd"),
    "weight_decay": kinds.number(0),
    "l1": kinds.number(0),
    "dropout": kinds.number(0, 1, below=True),
    "clip": kinds.number(0),
    "ema": kinds.number(0, 1, below=True),
    "temperature": kinds.number(0, above=True),
    "loss": kinds.choice("auto", "kl", "mse", "cosine", "features"),
    "features": _count(),
    "inputs": kinds.choice("auto", "calibration", "mixed", "noise"),
    "pools": _count(1),
    "samples": _count(),
    "precision": kinds.choice("float32", "bfloat16"),
    "fake_quantize": kinds.choice("off", "int8"),
    "reduced_range": kinds.boolean(),
    "keep_zeros": kinds.boolean(),
    "patience": _count(1),
    "seconds": kinds.number(0),
    "seed": kinds.whole(0, _SEEDS),
}
