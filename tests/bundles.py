"""Bundles for tests: put together from members, so that each can be wrong in its own way."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgeopt.layout import BUNDLE_FILE, CHECKSUMS_FILE
from tests.inbox import model_bytes, npz_bytes

REGULAR = 0o100644


def members(document: bytes = b"{}", *models: bytes) -> dict[str, bytes]:
    """What a small bundle holds, without its checksums: the document, two models, three samples with their labels."""
    found = {BUNDLE_FILE: document}
    for model in models or (model_bytes(0), model_bytes(1)):
        found[f"candidates/{hashlib.sha256(model).hexdigest()}/model.onnx"] = model
    for number in range(3):
        found[f"samples/{number:05d}.npz"] = npz_bytes(x=np.full((1, 64), number, np.float32))
    return found | {"samples/labels.npy": _npy(np.arange(3))}


def packed(
    contents: Mapping[str, bytes], *, sums: bool = True, method: int = zipfile.ZIP_STORED, mode: int = REGULAR
) -> bytes:
    """The archive; with ``sums`` it lists what is in it."""
    listed = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(contents.items()))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in (contents | ({CHECKSUMS_FILE: listed.encode()} if sums else {})).items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type, entry.external_attr, entry.create_system = method, mode << 16, 3
            archive.writestr(entry, data)
    return buffer.getvalue()


def unpacked(bundle: Path) -> dict[str, bytes]:
    """The members of a bundle but its checksums."""
    with zipfile.ZipFile(bundle) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name != CHECKSUMS_FILE}


def altered(bundle: Path, **changes: object) -> bytes:
    """The same bundle whose document says something else, with checksums that fit."""
    found = unpacked(bundle)
    document = json.loads(found[BUNDLE_FILE]) | changes
    return packed(found | {BUNDLE_FILE: json.dumps(document).encode()})


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
