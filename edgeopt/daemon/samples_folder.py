"""A folder of samples (pictures, arrays) inside a drop: which files it has and what they are called once staged.

Inside ``intake``. Names are kept where they print, since their order may be what labels go by and a folder's name may be
the class; only a name that would garble a log line or is not UTF-8 is replaced.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath

from edgeopt.daemon.drops import Drop, full_path
from edgeopt.daemon.names import is_waiting, slug

_LONGEST_SUFFIX = 8


def is_folder(drop: Drop, path: str) -> bool:
    """Whether the data of a drop is a folder of samples rather than an archive."""
    if drop.trusted:
        return full_path(drop, path).is_dir()
    return not path.lower().endswith(".npz")


def staged_names(drop: Drop, folder: str, role: str) -> dict[str, str]:
    """Every file below ``folder``, to the name it gets inside ``input/``; sorted, unfinished files left out."""
    return {path: f"{role}/{_printable(path[len(folder) + 1 :])}" for path in _files(drop, folder)}


def _files(drop: Drop, folder: str) -> list[str]:
    if drop.trusted:
        found = [str(Path(parent) / name) for parent, _, names in os.walk(folder) for name in names]
    else:
        inside = [path for path in drop.members if path.startswith(f"{folder}/")]
        parents = {str(PurePosixPath(path).parent) for path in inside}
        found = [path for path in inside if path not in parents and not full_path(drop, path).is_dir()]
    return sorted(path for path in found if not is_waiting(PurePosixPath(path).name))


def _printable(path: str) -> str:
    return "/".join(_part(part) for part in path.split("/"))


def _part(part: str) -> str:
    if part.isprintable() and not part.startswith("-"):
        return part
    suffix = PurePosixPath(part).suffix
    suffix = suffix if suffix[1:].isascii() and suffix[1:].isalnum() and len(suffix) <= _LONGEST_SUFFIX else ""
    digest = hashlib.sha256(os.fsencode(part)).hexdigest()
    return slug(part.removesuffix(suffix), digest) + suffix
