"""First step: one folder a model that every tool reads its input from, so that all get the very same samples.

::

    MODEL/model.onnx            a copy of the corpus' model
          calibration.npz       at most 128 calibration samples, in the form in which they would be dropped
          feeds.npz             the same samples, [samples, *shape of one inference's input], keyed by input name
          facts.json            operators, and how a tool that judges itself is to judge

The eval samples stay where they are: no tool sees them but edgeopt, whose way of choosing they are part of.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgeopt import device
from edgeopt.calibrate.samples import open_samples
from edgeopt.graph import endings
from edgeopt.graph.load import load
from edgeopt.policy import TargetRequest
from edgeopt.records import Recipe
from edgeopt.runtimes.ort import OnnxRuntime
from edgeopt.stages import reference
from edgeopt.stages.runners import Runner
from edgeopt.stages.signature import signature_of

from .field import Facts

MOST_SAMPLES = 128
_JUDGED_BY = {"classes": "agreement", "embedding": "cosine"}
_FILES = ("model.onnx", "calibration.npz", "feeds.npz", "facts.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A model ready for all tools."""

    folder: Path
    eval: Path
    facts: Facts

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def calibration(self) -> Path:
        return self.folder / "calibration.npz"


def prepare(source: Path, folder: Path) -> Prepared:
    """Fill ``folder`` from a corpus folder, once."""
    if not all((folder / file).exists() for file in _FILES):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / "model.onnx", folder / "model.onnx")
        with np.load(source / "calib.npz") as arrays:
            np.savez(folder / "calibration.npz", **{name: arrays[name][:MOST_SAMPLES] for name in arrays.files})
        (folder / "facts.json").write_text(json.dumps(asdict(_look(folder))))
    facts = Facts(**json.loads((folder / "facts.json").read_text()))
    return Prepared(folder=folder, eval=source / "eval.npz", facts=facts)


def _look(folder: Path) -> Facts:
    """Write ``feeds.npz`` and run the original over it to see what its outputs are."""
    model = load(folder / "model.onnx")
    signature = signature_of(model)
    artifact = OnnxRuntime().compile(folder / "model.onnx", Recipe(), device.detect(TargetRequest(threads=1)))
    with tempfile.TemporaryDirectory() as unpacked, Runner(artifact) as original:
        samples = open_samples(folder / "calibration.npz", signature, unpack_to=Path(unpacked))
        feeds = [samples.feeds(index) for index in range(len(samples))]
        np.savez(folder / "feeds.npz", **{name: np.stack([each[name] for each in feeds]) for name in feeds[0]})
        ends = endings.final_operators(model)
        judged = reference.make(original, samples, signature, ends, Path(unpacked))
    known = [form for form in judged.forms if form.kind not in ("state", "discrete")]
    decisive = next((form for form in known if form.kind in _JUDGED_BY), known[0])
    return Facts(
        operators={name.rpartition("::")[2]: number for name, number in signature.operators},
        judged_output=decisive.index,
        judged_by=_JUDGED_BY.get(decisive.kind, "nsr"),
    )
