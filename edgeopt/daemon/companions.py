"""Which data files in the inbox belong to which model, when a drop leaves.

Used by ``leave`` and ``rejected``. External data is known only from inside the model, and two models may share one file:
then it stays until the last of them goes, since taking it along would break the other, not yet taken drop.
"""

from __future__ import annotations

import os

from edgeopt.daemon import gate, protowalk, take
from edgeopt.daemon.drops import Drop
from edgeopt.daemon.names import is_waiting, model_format
from edgeopt.errors import EdgeoptError

_SIDECAR_SUFFIXES = (".yaml", ".yml", ".npz")


def data_of(drop: Drop) -> tuple[str, ...]:
    """The data files a model file names beside itself; none where it cannot be read, or for a folder."""
    if drop.folder or drop.trusted or drop.model is None:
        return ()
    return _references(drop, drop.model) or ()


def shared_data(drop: Drop) -> frozenset[str]:
    """Those of the drop's entries that another model in the inbox refers to as well, or may."""
    own = {drop.model, drop.job_file, drop.calibration, drop.eval}
    # a model that cannot be read may still be arriving: it may need any data file but those named after this drop
    data = {path for path in drop.entries if path not in own}
    unnamed = {path for path in data if not path.startswith(drop.name)}
    shared: set[str] = set()
    for other in _other_models(drop) if data and not drop.folder else ():
        references = _references(drop, other)
        shared |= unnamed if references is None else data.intersection(references)
    return frozenset(shared)


def _other_models(drop: Drop) -> list[str]:
    try:
        with os.scandir(drop.root) as entries:
            names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    except OSError:
        return []
    return [name for name in names if model_format(name) == "onnx" and name != drop.model and not is_waiting(name)]


def _references(drop: Drop, model: str) -> tuple[str, ...] | None:
    """The plain locations in a model file of the drop's inbox; None where it cannot be read (yet)."""
    try:
        with take.open_regular(drop, model) as opened:
            gate.refuse_by_content(opened.fd, opened.size_bytes)
            named = protowalk.walk(opened.fd, opened.size_bytes).references
            plain = [gate.plain_location(location) for location, _ in named]
    except (EdgeoptError, OSError):
        return None
    return tuple(path for path in plain if model_format(path) is None and not path.endswith(_SIDECAR_SUFFIXES))
