"""Taking a finished drop out of the inbox: exactly the files that were staged, and only as they were staged.

After the outcome is durable. A file that was replaced meanwhile has another stamp, so it stays and becomes a drop of its
own. Asked twice, or after a crash in the middle, it does what is left to do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePosixPath

from edgeopt.daemon import companions
from edgeopt.daemon.drops import Drop, full_path
from edgeopt.daemon.names import escaped
from edgeopt.daemon.scan import Stamp, describe
from edgeopt.daemon.storage import storage_errors


def remove_drop(drop: Drop, stamps: Mapping[str, Stamp]) -> tuple[str, ...]:
    """Remove the files of ``stamps`` (``Staged.stamps``) and the folders that this empties; what stayed is returned.

    Never the inbox itself, never a file that looks different now, no data file that another model there needs. Raises
    :class:`~edgeopt.errors.StorageFault` where the file system refuses.
    """
    stayed = []
    if drop.trusted:
        return ()
    shared = companions.shared_data(drop)
    with storage_errors(f"removing {escaped(drop.path)} from the inbox"):
        for path, stamp in stamps.items():
            if path in shared or not _remove(drop, path, stamp):
                stayed.append(path)
        for folder in sorted(_folders(drop, stamps), key=lambda path: path.count("/"), reverse=True):
            with suppress(OSError):  # not empty, not a folder, or gone: all of these mean that it stays
                full_path(drop, folder).rmdir()
    return tuple(stayed)


def _remove(drop: Drop, path: str, stamp: Stamp) -> bool:
    where = full_path(drop, path)
    try:
        if describe(os.lstat(where))[1] != stamp:
            return False
        where.unlink()
    except (FileNotFoundError, NotADirectoryError):
        pass  # removed before, by us or by its owner
    return True


def _folders(drop: Drop, stamps: Mapping[str, Stamp]) -> set[str]:
    """Every folder that may be empty now; the inbox is none of them."""
    parents = {str(parent) for path in stamps for parent in PurePosixPath(path).parents}
    inside = {member for member in drop.members if drop.folder and member not in stamps}
    return (parents | inside) - {".", "", "/"}
