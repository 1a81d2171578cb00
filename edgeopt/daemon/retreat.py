"""Leading readers away from a version that turned out bad: mark it, and point ``current`` to the last good one.

Used by ``floor`` where a fresh version fails its smoke test, and by ``healing`` where published files are damaged. Nothing is
deleted. The version that is retreated to is read whole first, since whatever damaged one may have damaged the other.
"""

from __future__ import annotations

from pathlib import Path

from edgeopt.daemon import marks, scrub, storage
from edgeopt.daemon import shelf as shelves
from edgeopt.daemon.marks import DAMAGED, Mark


def retreat(published: Path, name: str, version: int, mark: Mark) -> int:
    """Mark ``version`` of ``name``; returns where ``current`` points now.

    That is ``version`` itself where no good one is left: a reader that checks hashes refuses it, and a link to nothing
    would tell nobody why. Raises :class:`~edgeopt.errors.EnvironmentFault` where the disk refuses.
    """
    home = published / name
    with storage.storage_errors(f"marking version {version} of {name}"), shelves.locked(home):
        if not (home / str(version)).is_dir():
            return shelves.read(published, name).current
        marks.put(home, version, mark)
        shelf = shelves.read(published, name)
        if shelf.current != version:
            return shelf.current
        older = [number for number in reversed(shelf.good) if number < version]
        newer = [number for number in shelf.good if number > version]
        for number in (*older, *newer):
            problem = scrub.problem_of(home / str(number))
            if not problem:
                if shelf.pinned:
                    shelves.move_pin(home, number)
                shelves.point_current(home, number)
                return number
            marks.put(home, number, Mark(kind=DAMAGED, reason=problem))
    return version


def found_whole(published: Path, name: str, version: int) -> bool:
    """Take the mark of damage off a version that is whole again; False where it bore none."""
    shelf = shelves.read(published, name)
    mark = shelf.marks.get(version)
    if mark is None or mark.kind != DAMAGED:
        return False
    with storage.storage_errors(f"taking the mark off version {version} of {name}"), shelves.locked(shelf.folder):
        marks.take_off(shelf.folder, version)
    return True
