"""What the daemon found out about a version after it was published: a small file beside it, never in it.

``published/NAME/.mark-3`` says of version 3 that its files are damaged, that it did not run, or that nobody has tried it
yet. A version's folder is never changed or deleted for that: it stays for a look, and a file that comes back from a
backup is found whole again. Read by ``shelf``, which leads readers away from what is marked; written by ``healing``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from edgeopt.daemon import storage

DAMAGED = "damaged"
"""Its files are not what was published."""
FAILED = "smoke"
"""It was published, and did not open or run."""
UNTRIED = "untried"
"""Published, and nobody knows whether it runs: the daemon ended in between."""
_KINDS = (DAMAGED, FAILED, UNTRIED)
_FILE = re.compile(r"\.mark-([1-9][0-9]{0,8})")
_MOST_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """``reason`` is one sentence, empty where there is none to tell."""

    kind: str
    reason: str = ""

    @property
    def bad(self) -> bool:
        """Nobody should be led to this version."""
        return self.kind in (DAMAGED, FAILED)


def read(home: Path, names: list[str]) -> dict[int, Mark]:
    """The marks among the file ``names`` of a model's folder, by version; one that does not read means damaged."""
    found = {}
    for name in names:
        if match := _FILE.fullmatch(name):
            found[int(match[1])] = _mark(home / name)
    return found


def put(home: Path, version: int, mark: Mark) -> None:
    """Mark a version, durable when this returns; OSError where the disk refuses."""
    text = json.dumps({"kind": mark.kind, "reason": mark.reason})
    storage.replace_file(home / f".mark-{version}", text.encode())


def take_off(home: Path, version: int) -> None:
    """Remove a version's mark; none is fine."""
    (home / f".mark-{version}").unlink(missing_ok=True)


def _mark(path: Path) -> Mark:
    try:
        with path.open("rb") as file:
            told = json.loads(file.read(_MOST_BYTES))
        kind, reason = told["kind"], told["reason"]
    except (OSError, ValueError, KeyError, TypeError):
        return Mark(kind=DAMAGED, reason="its mark cannot be read")
    if kind not in _KINDS or not isinstance(reason, str):
        return Mark(kind=DAMAGED, reason="its mark says nothing known")
    return Mark(kind=kind, reason=reason)
