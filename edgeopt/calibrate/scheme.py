"""Settings of the passes, from a recipe's scalars to a checked dataclass.

Stands under the passes that have settings: recipes carry strings, numbers and booleans, and a typo in one must not silently mean the default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from edgeopt.errors import PassFailed
from edgeopt.records import Scalar

Scheme = TypeVar("Scheme")
DTYPES = ("int8", "uint8")
_KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def read_settings(kind: type[Scheme], settings: Mapping[str, Scalar], *, technique: str) -> Scheme:
    """A ``kind`` with the settings laid over its defaults; a whole number does for a number, as a job file says 0 for 0.0.

    Raises :class:`~edgeopt.errors.PassFailed` for an unknown setting, one of another type than its default, or a type that is not 8-bit.
    """
    defaults: dict[str, Any] = {field.name: field.default for field in fields(kind)}  # type: ignore[arg-type] # a dataclass
    given: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in defaults:
            raise PassFailed(f"{technique} has no setting {name!r}", hint=f"Use one of {', '.join(sorted(defaults))}.")
        wanted = type(defaults[name])
        given[name] = float(value) if wanted is float and type(value) is int else value
        if type(given[name]) is not wanted:
            called = _KINDS[wanted]
            raise PassFailed(f"{technique}: {name} is {value!r}, not {called}", hint=f"Give {called}.")
        if name in ("activation", "weight") and value not in DTYPES:
            raise PassFailed(f"{technique}: {name} is {value!r}, not 8-bit", hint="Use int8 or uint8.")
    return kind(**{**defaults, **given})


def read_names(text: str) -> frozenset[str]:
    """The names in a JSON list, such as ``skip``; :class:`~edgeopt.errors.PassFailed` where it is none."""
    try:
        names = json.loads(text)
    except (ValueError, RecursionError) as error:  # brackets in brackets in brackets
        raise PassFailed(f"skip is {text!r:.80}, not JSON", hint='Give a JSON list such as ["conv1"].') from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PassFailed(f"skip is {text!r:.80}, not a list of names", hint='Give a JSON list such as ["conv1"].')
    return frozenset(names)
