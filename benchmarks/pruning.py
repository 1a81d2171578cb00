"""What pruning costs and gains: criteria against each other, with and without the refit, on real models.

    python benchmarks/pruning.py CORPUS [MODEL ...] [--ratios 0.1,0.2,0.3,0.5] [--criteria l1,l2,...] [--families inner] [--samples 64] [--eval 120] [--results FILE]

Each row is one way to remove the same share of every family's units from the same clean model. Quality is that of the last output on eval samples and the calibration samples not used: for class scores
the Kullback-Leibler divergence, the drop that the original expects (docs/quality.md), top-1 agreement, and agreement where the original is surer than one half; for an
embedding the cosine. Latency is CPU time over the float model's in blocks taken in turns. With ``--results`` every row goes into a JSON file as it is made, and rows that are there are not made again.

``METHODS`` is the seam for other ways to prune, or to recover: a name, and what makes a model of a :class:`Question`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from corpus_models import CorpusModel, open_model
from quantization import ratio as latency_ratio
from quantization import session

from edgeopt.errors import PassFailed
from edgeopt.passes import PruneChannels
from edgeopt.stages.evidence import CalibrationEvidence

MODELS = ("efficientnet_lite0", "all_minilm_l6_v2")
RATIOS = (0.1, 0.2, 0.3, 0.5)
CRITERIA = ("l1", "l2", "entropy", "apoz", "variance", "obs", "random")


@dataclass(frozen=True)
class Question:
    model: CorpusModel
    evidence: CalibrationEvidence
    criterion: str
    ratio: float
    families: str


@dataclass(frozen=True)
class Row:
    model: str
    method: str
    criterion: str
    ratio: float
    cosine: float
    top1: float
    sure: float
    divergence: float
    drop: float
    latency: float
    size: float
    seconds: float


def plain(question: Question) -> ir.Model:
    return _pruned(question, refit=False)


def refitted(question: Question) -> ir.Model:
    return _pruned(question, refit=True)


METHODS: dict[str, Callable[[Question], ir.Model]] = {"removed": plain, "refitted": refitted}


def _pruned(question: Question, **settings: Any) -> ir.Model:
    wishes = {"criterion": question.criterion, "ratio": question.ratio, "families": question.families, **settings}
    return PruneChannels().apply(question.model.clean, wishes, question.evidence)


class Judge:
    """The original's outputs on the eval samples, and how near a candidate's are."""

    def __init__(self, model: CorpusModel, folder: Path, samples: int, *, calibrated: int) -> None:
        self.folder, self.classes = folder, model.signature.count("Conv") > 0
        self.clean = folder / "clean.onnx"
        ir.save(model.clean, self.clean)
        chosen = np.linspace(0, len(model.evaluation) - 1, min(samples, len(model.evaluation))).astype(int)
        self.feeds = [model.evaluation.feeds(int(index)) for index in chosen]
        # A few photographs, cropped several times, are few samples: what calibration did not see is judged as well.
        self.feeds += [model.calibration.feeds(index) for index in range(calibrated, len(model.calibration))]
        self.original = session(self.clean)
        self.right = self.outputs(self.original)

    def outputs(self, opened: Any) -> list[np.ndarray]:
        return [opened.run(None, feeds)[-1].astype(np.float64).ravel() for feeds in self.feeds]

    def numbers(self, made: ir.Model) -> dict[str, float]:
        file = self.folder / "candidate.onnx"
        ir.save(made, file)
        opened = session(file)
        pairs = list(zip(self.right, self.outputs(opened), strict=True))
        shares = [(softmax(right), softmax(got)) for right, got in pairs] if self.classes else []
        sure = [p.argmax() == q.argmax() for p, q in shares if p.max() > 0.5]
        return {
            "cosine": mean(r @ g / (np.linalg.norm(r) * np.linalg.norm(g) + 1e-30) for r, g in pairs),
            "top1": mean(p.argmax() == q.argmax() for p, q in shares),
            "sure": mean(sure),
            "divergence": mean((p * (np.log(p + 1e-30) - np.log(q + 1e-30))).sum() for p, q in shares),
            "drop": mean(p.max() - p[q.argmax()] for p, q in shares),
            "latency": latency_ratio(opened, self.original, self.feeds[0]),
            "size": file.stat().st_size / self.clean.stat().st_size,
        }


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum())


def mean(values: Any) -> float:
    numbers = [float(value) for value in values]
    return statistics.fmean(numbers) if numbers else 0.0


def rows(name: str, given: argparse.Namespace, known: set[tuple[Any, ...]]) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = open_model(given.corpus, name, folder)
        evidence = model.evidence(folder, samples=given.samples)
        judge = Judge(model, folder, given.eval, calibrated=given.samples)
        for ratio in given.ratios:
            for criterion in given.criteria:
                for method, make in METHODS.items():
                    if (name, method, criterion, ratio) in known:
                        continue
                    before = time.monotonic()
                    try:
                        made = make(Question(model, evidence, criterion, ratio, given.families))
                    except PassFailed as error:
                        print(f"| {method} | {criterion} | {ratio:g} | {error.message}")
                        continue
                    seconds = time.monotonic() - before
                    yield Row(name, method, criterion, ratio, **judge.numbers(made), seconds=seconds)


HEADER = (
    "| removed | criterion | method | KL | expected drop | top-1 | sure top-1 | cosine | latency | size | seconds |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def line(row: Row) -> str:
    is_classes = row.top1 or row.divergence
    classes = f"{row.divergence:.3f} | {row.drop:.4f} | {row.top1:.3f} | {row.sure:.3f}" if is_classes else "| | |"
    return (
        f"| {row.ratio:.0%} | {row.criterion} | {row.method} | {classes} | {row.cosine:.4f} "
        f"| {row.latency:.2f} | {row.size:.2f} | {row.seconds:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--ratios", type=lambda text: tuple(map(float, text.split(","))), default=RATIOS)
    parser.add_argument("--criteria", type=lambda text: tuple(text.split(",")), default=CRITERIA)
    parser.add_argument("--families", default="inner")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--eval", type=int, default=120)
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    found = [Row(**each) for each in json.loads(given.results.read_text())] if _exists(given.results) else []
    known = {(row.model, row.method, row.criterion, row.ratio) for row in found}
    for name in given.models:
        print(f"\n### {name}\n\n{HEADER}")
        for row in (row for row in found if row.model == name):
            print(line(row))
        for row in rows(name, given, known):
            print(line(row), flush=True)
            found.append(row)
            if given.results is not None:
                given.results.write_text(json.dumps([asdict(each) for each in found], indent=1))


def _exists(file: Path | None) -> bool:
    return file is not None and file.exists()


if __name__ == "__main__":
    main()
