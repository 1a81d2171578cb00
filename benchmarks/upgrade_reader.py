"""A server of one published model, for benchmarks/upgrade.py: calls without end through `edgeopt.load`, and counts.

    python benchmarks/upgrade_reader.py FOLDER --feed FILE --tally FILE [--accept-stale]

Runs until it is sent SIGTERM, then writes its tally: how many calls were answered and failed in each tenth of a second by which
version under which library, and every sentence with which a version was refused. A service that cannot load its model
is restarted by its supervisor; here it tries again every half second, as one that counts what it could not answer.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

import edgeopt
from edgeopt.errors import EdgeoptError

PACE_S = 0.02
"""Between two calls: a load that the measuring beside it can bear."""
AGAIN_S = 0.5


class Said(logging.Handler):
    """Keeps what edgeopt warns of, each sentence once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.sentences: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if (sentence := record.getMessage()) not in self.sentences:
            self.sentences.append(sentence)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--feed", type=Path, required=True)
    parser.add_argument("--tally", type=Path, required=True)
    parser.add_argument("--accept-stale", action="store_true")
    options = parser.parse_args()
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    said = Said()
    logging.getLogger("edgeopt").addHandler(said)
    with np.load(options.feed) as file:
        feeds = {name: file[name] for name in file.files}
    calls: Counter[tuple[int, int]] = Counter()
    failures: Counter[int] = Counter()
    refused: list[tuple[float, str]] = []
    model = None
    while not over.is_set():
        try:
            if model is None:
                model = edgeopt.load(options.folder, accept_stale=options.accept_stale)
            model.run(feeds)
            calls[tenth(), model.version.manifest["version"]] += 1
        except EdgeoptError as error:
            if model is None:
                refused.append((time.time(), f"{type(error).__name__}: {error.message}"))
                over.wait(AGAIN_S)
                continue
            failures[tenth()] += 1
            said.sentences.append(f"{type(error).__name__}: {error.message}")
        over.wait(PACE_S)
    library = sys.modules.get("onnxruntime")
    tally = {
        "library": getattr(library, "__version__", None),
        "calls": [[at / 10, version, count] for (at, version), count in sorted(calls.items())],
        "failures": [[at / 10, count] for at, count in sorted(failures.items())],
        "refused": refused,
        "said": said.sentences,
    }
    options.tally.write_text(json.dumps(tally))
    return 0


def tenth() -> int:
    return int(time.time() * 10)


if __name__ == "__main__":
    sys.exit(main())
