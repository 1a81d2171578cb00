"""A training's whole state on disk, so that a restarted job goes on where it was and ends with the same weights.

Written and read by ``training.loop``. One .npz without pickles, whose name is the hash of everything that the training depends on:
student, teacher, data and settings. It appears in one rename, so a crash leaves the previous one. What the loop draws at random is a
function of the seed and the step, so no generator's state has to be kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FACTS = "facts"


@dataclass(slots=True)
class State:
    """Where a training is: numbers by name, and arrays by (kind, weight)."""

    facts: dict[str, Any] = field(default_factory=dict)
    """JSON: the step, the best loss, the rate that was found."""
    arrays: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    """``weights``, ``average``, ``best`` and the optimizer's moments, each by the weight's name."""


def key(*parts: str) -> str:
    """The hash that names a checkpoint."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def save(file: Path, state: State) -> None:
    """Replace the checkpoint; raises OSError where the disk does."""
    # weights' names may hold anything, a zip's entries may not: they are numbered, and the facts say who is who
    names = [(kind, name) for kind, arrays in state.arrays.items() for name in arrays]
    entries = {str(number): state.arrays[kind][name] for number, (kind, name) in enumerate(names)}
    facts = json.dumps({"facts": state.facts, "names": names}).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("wb") as stream:
        np.savez(stream, **{_FACTS: np.frombuffer(facts, np.uint8)}, **entries)  # type: ignore[arg-type]  # numpy takes the dict for its flag
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(file)


def load(file: Path) -> State | None:
    """What :func:`save` wrote; None where there is nothing, or nothing that can be read."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as entries:
            told = json.loads(entries[_FACTS].tobytes())
            state = State(facts=dict(told["facts"]))
            for number, (kind, name) in enumerate(told["names"]):
                state.arrays.setdefault(kind, {})[name] = entries[str(number)]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return state


def held(arrays: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Tensors by name as arrays of their own."""
    return {name: np.array(tensor.detach().numpy()) for name, tensor in arrays.items()}
