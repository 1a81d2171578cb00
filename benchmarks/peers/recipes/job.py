"""What every tool's script gets and how it starts: ``python with_TOOL.py RECIPE FOLDER OUT``; see ``prepare`` for FOLDER.

Imported by the scripts inside the tools' own virtual environments: numpy and the standard library only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Job:
    """One artifact to make: ``model`` in, ``out`` written."""

    model: str
    out: str
    feeds: list[dict[str, np.ndarray]]
    """The calibration samples, one inference each."""
    facts: dict[str, Any]

    def reader(self, base: type = object) -> Any:
        """The samples as the calibration data reader that onnxruntime's way of calibrating wants; ``base`` is its class."""
        feeds = self.feeds

        class Reader(base):  # type: ignore[misc]  # the class is the tool's
            def __init__(self) -> None:
                self.rewind()

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self._left, None)

            def rewind(self) -> None:
                self._left: Iterator[dict[str, np.ndarray]] = iter(feeds)

            reset_iter = rewind

            def __len__(self) -> int:
                return len(feeds)

        return Reader()


def run(recipes: dict[str, Callable[[Job], None]]) -> None:
    """Make what the command line asks for."""
    recipe, folder, out = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    with np.load(folder / "feeds.npz") as arrays:
        columns = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(columns.values())))
    feeds = [{name: np.asarray(column[index]) for name, column in columns.items()} for index in range(count)]
    facts = json.loads((folder / "facts.json").read_text())
    recipes[recipe](Job(str(folder / "model.onnx"), out, feeds, facts))
