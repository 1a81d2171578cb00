"""The real models, whose folder is in ``EDGEOPT_CORPUS``; tests that need one skip without it."""

from __future__ import annotations

import os
from pathlib import Path

import builders
import onnx_ir as ir
import pytest

from edgeopt.passes import FoldBatchNorm, Tidy

CORPUS = Path(os.environ.get("EDGEOPT_CORPUS", "/nonexistent"))


def folder_of(name: str) -> Path:
    """Where the corpus keeps the model called ``name``."""
    folder = CORPUS / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not in this corpus")
    return folder


def cleaned(name: str) -> tuple[ir.Model, builders.FakeEvidence]:
    """The model behind its clean-up, and evidence without samples that knows the model as it was."""
    model = ir.load(folder_of(name) / "model.onnx")
    evidence = builders.FakeEvidence(model, samples=0)
    return FoldBatchNorm().apply(Tidy().apply(model, {}, evidence), {}, evidence), evidence
