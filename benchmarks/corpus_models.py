"""A model of the corpus with its samples, through the same doors as in the worker. Used by the benchmarks of single rooms."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeopt import device
from edgeopt.calibrate.samples import SampleSet, open_samples
from edgeopt.graph.load import load
from edgeopt.passes import FoldBatchNorm, Tidy
from edgeopt.policy import TargetRequest
from edgeopt.records import Signature, Target
from edgeopt.runtimes.ort import OnnxRuntime
from edgeopt.stages.data import Subset
from edgeopt.stages.evidence import CalibrationEvidence
from edgeopt.stages.signature import signature_of


@dataclass(frozen=True)
class CorpusModel:
    name: str
    original: ir.Model
    clean: ir.Model
    """Tidied, batch norms folded: what quantization starts from."""
    signature: Signature
    target: Target
    calibration: SampleSet
    evaluation: SampleSet

    def evidence(self, folder: Path, *, samples: int, repeat: bool = False) -> CalibrationEvidence:
        """The first ``samples`` calibration samples; with ``repeat`` they start again when they end."""
        available = len(self.calibration)
        indices = [index % available for index in range(samples)] if repeat else range(min(samples, available))
        return CalibrationEvidence(
            calibration=Subset(self.calibration, list(indices), "drop"),
            signature=self.signature,
            target=self.target,
            observer=partial(OnnxRuntime().observe, threads=self.target.threads),
            folder=folder,
            seed=0,
        )

    def eval_feeds(self, most: int) -> list[dict[str, np.ndarray]]:
        """At most so many of the samples that judge, evenly from all of them."""
        chosen = np.linspace(0, len(self.evaluation) - 1, min(most, len(self.evaluation))).astype(int)
        return [self.evaluation.feeds(int(index)) for index in chosen]


def corpus_parser(purpose: str, models: tuple[str, ...], *, samples: int, evaluation: int) -> argparse.ArgumentParser:
    """The arguments of every benchmark that makes candidates of the corpus' models; ``purpose`` is its docstring."""
    parser = argparse.ArgumentParser(description=purpose.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("models", nargs="*", default=models)
    parser.add_argument("--samples", type=int, default=samples)
    parser.add_argument("--eval", type=int, default=evaluation)
    return parser


def each_model(given: argparse.Namespace) -> Iterator[tuple[CorpusModel, Path, Path, list[dict[str, np.ndarray]]]]:
    """Of every model that was asked for: itself, a folder for candidates, the file of its clean form, the feeds that judge."""
    for name in given.models:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            model = open_model(given.corpus, name, folder)
            clean = folder / "clean.onnx"
            ir.save(model.clean, clean)
            yield model, folder, clean, model.eval_feeds(given.eval)


def open_model(corpus: Path, name: str, folder: Path, *, threads: int = 1) -> CorpusModel:
    original = load(corpus / name / "model.onnx")
    signature = signature_of(original)
    target = device.detect(TargetRequest(threads=threads))
    calibration = open_samples(corpus / name / "calib.npz", signature, unpack_to=_subfolder(folder, "calibration"))
    evaluation = open_samples(corpus / name / "eval.npz", signature, unpack_to=_subfolder(folder, "eval"))
    model = CorpusModel(name, original, original, signature, target, calibration, evaluation)
    evidence = model.evidence(folder, samples=1)
    clean = Tidy().apply(original, {}, evidence)
    if signature.count("BatchNormalization"):
        clean = FoldBatchNorm().apply(clean, {}, evidence)
    return CorpusModel(name, original, clean, signature, target, calibration, evaluation)


def _subfolder(folder: Path, name: str) -> Path:
    (folder / name).mkdir(exist_ok=True)
    return folder / name


def signal_to_noise_db(right: list[np.ndarray], got: list[np.ndarray]) -> float:
    """20 dB: the error's power is a hundredth of the output's."""
    signal = sum(float((array.astype(float) ** 2).sum()) for array in right)
    noise = sum(float(((a.astype(float) - b) ** 2).sum()) for a, b in zip(right, got, strict=True))
    return 10 * np.log10(signal / max(noise, 1e-30))
