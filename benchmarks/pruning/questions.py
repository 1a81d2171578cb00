"""What is asked: a model of the corpus (or the demo's digits), and one way to make it smaller.

::

    WORK/MODEL/corpus/          only the demo's: the shipped files under the corpus' names
               clean.onnx       tidied, batch norms folded: what all ways start from and are held against
               made/KEY.onnx    one candidate
               results.json     one entry a candidate, written as it is made
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir
from corpus_models import CorpusModel, open_model

import edgeopt
from edgeopt import catalogue
from edgeopt.calibrate.shapes import observed_shapes
from edgeopt.graph import groups, shrink
from edgeopt.graph.groups import ChannelGroups
from edgeopt.stages.data import Subset
from edgeopt.stages.evidence import CalibrationEvidence
from edgeopt.training.inputs import held_out

DEMO = "digits"
_SHIPPED = Path(edgeopt.__file__).parent / "demo"
CLASSIFIERS = (DEMO, "efficientnet_lite0", "magika_v3_3")
_ROLES = {"model.onnx": f"{DEMO}.onnx", "calib.npz": f"{DEMO}.calibration.npz", "eval.npz": f"{DEMO}.eval.npz"}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One candidate. ``steps`` is 0 where nothing is taught."""

    model: str
    ratio: float
    criterion: str
    method: str
    families: str
    samples: int
    """Unlabelled calibration samples that choose, refit and teach."""
    largest: int
    """Multiple of the channels left, see :func:`edgeopt.calibrate.removal.grain`."""
    scope: str = "local"
    steps: int = 0

    @property
    def key(self) -> str:
        scope = "" if self.scope == "local" else f"-{self.scope}"
        steps = f"-{self.steps}" if self.steps else ""
        asked = f"{self.families}-{self.ratio:g}-{self.criterion}{scope}-{self.method}{steps}"
        return f"{asked}-of{self.samples}-by{self.largest}".replace(" ", "_")

    @property
    def chooser(self) -> str:
        """The criterion and how far it ranks, as tables name it."""
        return self.criterion if self.scope == "local" else f"{self.criterion}, {self.scope}"


@dataclass(kw_only=True)
class Subject:
    """A model with its samples, opened once for all questions about it."""

    folder: Path
    corpus: CorpusModel
    evidence: CalibrationEvidence
    labels: np.ndarray | None
    """Of the eval samples, where they name the class of each."""

    @property
    def name(self) -> str:
        return self.corpus.name

    @property
    def clean(self) -> Path:
        return self.folder / "clean.onnx"

    @cached_property
    def parts(self) -> tuple[ir.Model, ChannelGroups]:
        """The clean model with every constant its own, and what must go together in it."""
        own = shrink.unshared(self.corpus.clean)
        return own, groups.find(own, observed_shapes(own, self.evidence))

    def training_evidence(self) -> CalibrationEvidence:
        """Without the samples that distillation judges by."""
        chosen, _ = held_out(range(self.evidence.sample_count))
        return replace(self.evidence, calibration=Subset(self.corpus.calibration, list(chosen), "drop"), memo={})

    def made(self, question: Question) -> Path:
        return self.folder / "made" / f"{question.key}.onnx"


def open_subject(corpus: Path, name: str, work: Path, *, samples: int) -> Subject:
    """``name`` of the corpus, or the demo's digits; at most ``samples`` calibration samples are used."""
    folder = work / name
    (folder / "made").mkdir(parents=True, exist_ok=True)
    (folder / "observed").mkdir(exist_ok=True)
    home = _demo(folder / "corpus") if name == DEMO else corpus
    model = open_model(home, name, folder)
    evidence = model.evidence(folder, samples=samples)
    evidence.teacher, evidence.gradients = model.clean, catalogue.find_gradients()
    subject = Subject(folder=folder, corpus=model, evidence=evidence, labels=_labels(home / name / "eval.npz", name))
    if not subject.clean.exists():
        ir.save(model.clean, subject.clean)
    return subject


def _demo(home: Path) -> Path:
    """The shipped digits, laid out as the corpus is."""
    (home / DEMO).mkdir(parents=True, exist_ok=True)
    for name, shipped in _ROLES.items():
        shutil.copyfile(_SHIPPED / shipped, home / DEMO / name)
    return home


def _labels(file: Path, name: str) -> np.ndarray | None:
    with np.load(file) as arrays:
        found = arrays["labels"] if "labels" in arrays.files else None
    is_a_class = found is not None and found.ndim == 1 and found.dtype.kind in "iu" and name in CLASSIFIERS
    return found if is_a_class else None


# ---------------------------------------------------------------- results
def read(folder: Path) -> list[dict]:
    """The rows of the model whose folder this is."""
    file = folder / "results.json"
    return json.loads(file.read_text()) if file.exists() else []


def write(folder: Path, rows: list[dict]) -> None:
    """In one step, so that a cut leaves the last whole table."""
    part = folder / "results.json.part"
    part.write_text(json.dumps(rows, indent=1))
    part.rename(folder / "results.json")


def find(rows: list[dict], question: Question) -> dict | None:
    return next((row for row in rows if row["question"] == asdict(question)), None)
