"""Names of the files and folders of a job; the daemon and the worker agree on them here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ARTIFACT_FILE = "model.onnx"
ARTIFACT_DATA_FILE = "model.onnx.data"
ENGINE_FILE = "model.engine"
"""Lies beside the ``model.onnx`` that it was made of."""
MANIFEST_FILE = "manifest.json"
REPORT_FILE = "report.html"
CHECKSUMS_FILE = "SHA256SUMS"
REASON_FILE = "reason.json"
CURRENT_LINK = "current"
CHECKPOINTS_FOLDER = "checkpoints"
"""Inside of a job's ``work/``: states of unfinished trainings, the one thing there that outlives an attempt."""
WORKER_LOG_FILE = "worker.log"

BUNDLE_SUFFIX = ".edgeopt"
BUNDLE_FORMAT = "bundle"
"""What an order's ``source.format`` says of a drop that was prepared elsewhere."""
BUNDLE_VERSION = 1
BUNDLE_FILE = f"edgeopt-bundle-{BUNDLE_VERSION}.json"
"""Inside of a bundle: its document. The name carries the version, so that a newer bundle is known before anything of it is read."""
CANDIDATES_FOLDER = "candidates"
"""Inside of a bundle: ``candidates/<content address>/model.onnx``, with ``model.onnx.data`` where the weights lie outside."""
SAMPLES_FOLDER = "samples"
"""Inside of a bundle: one .npz for each sample, and ``labels.npy`` where there are any."""


@dataclass(frozen=True, slots=True)
class JobFolder:
    """A job's staging folder."""

    root: Path

    @property
    def order(self) -> Path:
        return self.root / "order.json"

    @property
    def input(self) -> Path:
        return self.root / "input"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def log(self) -> Path:
        """What the worker printed; written by its supervisor, bounded."""
        return self.root / WORKER_LOG_FILE

    def create(self) -> None:
        """Make the folder and its three subfolders, mode 0700."""
        for folder in (self.root, self.input, self.work, self.out):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def cache_folder(state: Path, model_sha256: str) -> Path:
    """Where finished candidates of one model lie; only jobs of this very model can write there."""
    return state / "cache" / model_sha256[:32]
