"""Workers' out folders for tests of publishing, and the reader's view of what was published."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def out_folder(root: Path, content: bytes, *, source: str = "0" * 64, **changes: Any) -> Path:
    """An ``out/`` as a worker leaves it, its artifact holding ``content``; ``changes`` replace parts of the manifest."""
    out = root / f"out-{hashlib.sha256(content).hexdigest()[:8]}"
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.onnx").write_bytes(content)
    (out / "report.html").write_text("<!doctype html><title>report</title>")
    manifest = {
        "schema": 1,
        "name": "",
        "version": 0,
        "created": "",
        "source": {"file": "m.onnx", "format": "onnx", "sha256": source, "bytes": 10},
        "artifact": {
            "file": "model.onnx",
            "format": "onnx",
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
        },
        "goal": {"objective": "latency"},
        "recipe": [],
    }
    (out / "manifest.json").write_text(json.dumps(manifest | changes))
    return out


def versions(home: Path) -> list[int]:
    return sorted(int(entry.name) for entry in home.iterdir() if entry.name.isdecimal())


def check_whole(folder: Path) -> dict[str, Any]:
    """Every file of a version is what SHA256SUMS and the manifest say; returns the manifest."""
    sums = dict(reversed(line.split("  ", 1)) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == {entry.name for entry in folder.iterdir()} - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    assert manifest["artifact"]["sha256"] == sums[manifest["artifact"]["file"]]
    return manifest
