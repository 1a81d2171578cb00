"""What an engine depends on, as one hash: equal keys mean that the engine need not be built again.

The model's bytes with its external data, the options of the build, the flavour and its release as read when it ran, the platform, the GPUs. TensorRT for the GPU that is
there also depends on that GPU, the number of its multiprocessors, its memory and its driver: they go in as ``device``. No engine is built for a DLA core.
``shelf`` finds finished engines by it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from platform import machine

from edgeopt import wire
from edgeopt.runtimes.trt.order import OPTIONS, Order

_CHUNK_BYTES = 1 << 20


_PLATFORM = f"{sys.platform}-{machine()}"


def engine_key(files: Sequence[Path], order: Order, *, flavour: str, version: str, device: str = "") -> str:
    """SHA-256 in hex over the model's ``files`` in order and everything else that shapes the engine."""
    digest = hashlib.sha256()
    facts = {
        "flavour": flavour,
        "version": version,
        "gpus": sorted(order.gpus),
        "profiles": wire.encode(order.profiles),
        "workspace_bytes": order.workspace_bytes,
        "options": OPTIONS,
        "platform": _PLATFORM,
        "dla_core": None,
        "device": device,
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for file in files:
        digest.update(f"\n{file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
