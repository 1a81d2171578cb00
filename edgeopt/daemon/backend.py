"""Whether file events can be trusted for a folder, by the file system it lies on.

Asked by ``watch``. inotify sees only what this machine itself writes: on NFS, SMB and most FUSE mounts another machine's
drop raises no event, so those are polled.
"""

from __future__ import annotations

import re
from pathlib import Path

# fmt: off
_REMOTE = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gfs2", "ocfs2", "beegfs",
    "gpfs", "virtiofs", "vboxsf", "vmhgfs", "prl_fs", "fuse",
})
# fmt: on
_OCTAL = re.compile(r"\\([0-7]{3})")
MOUNTS = Path("/proc/self/mounts")


def remote_filesystem(folder: Path, *, mounts: Path = MOUNTS) -> str | None:
    """The type of the network file system that ``folder`` lies on; None where it is local, or cannot be told."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    kind = _type_of(folder.resolve(), lines)
    return kind if kind in _REMOTE or kind.startswith("fuse.") else None


def _type_of(folder: Path, lines: list[str]) -> str:
    """The type of the innermost mount above ``folder``; a later line covers an earlier one at the same place."""
    best, kind = -1, ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        place = Path(_OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[1]))
        if folder.is_relative_to(place) and len(place.parts) >= best:
            best, kind = len(place.parts), fields[2]
    return kind
