"""What sparse weights buy and cost on real models, beside packed dense weights of about the same size.

    python benchmarks/sparse.py CORPUS [MODEL ...] [--samples 32] [--eval 24] [--only TEXT ...]
    python benchmarks/sparse.py CORPUS [MODEL ...] --forms
    python benchmarks/sparse.py CORPUS [MODEL ...] --pruned 0.75
    python benchmarks/sparse.py CORPUS [MODEL ...] --layers 5

The first makes the columns of ``benchmarks/weights.py``: bytes of the clean float file over the candidate's, signal-to-noise of the worst output on eval samples,
cosine and top-1 of the last output, CPU time of an inference over the float model's, CPU seconds to load before and after, seconds to make. The second stores one and the
same sparse model in every form there is. The third takes the model with that share of its layers' weights removed for the original, as if it had been pruned before it
was dropped. The fourth compares sparse with packed dense weights layer by layer (every fifth): bits a weight and decibels of the layer's output. Timings are a first look;
``edgeopt bench`` measures properly.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from corpus_models import CorpusModel, corpus_parser, open_model
from weights import judge

from edgeopt.calibrate import codebook, compensate, gram, sparsify
from edgeopt.calibrate.sparsify import Removal
from edgeopt.errors import PassFailed
from edgeopt.graph import compact, quantizable
from edgeopt.passes import PruneWeights, QuantizeWeights

MODELS = ("efficientnet_lite0", "all_minilm_l6_v2", "magika_v3_3")
_DENSE_BITS = (2, 3, 4, 5)
_SPARSE_BITS = ((0.75, 4), (0.5, 3), (0.5, 4), (0.5, 6), (0.2, 4))
"""Share of zeros and bits of what is left: 2, 2.5, 3, 4 and 4.2 bits a weight with the mask."""
Settings = dict[str, Any]
Steps = tuple[tuple[type, Settings], ...]


def sparse(**settings: Any) -> tuple[type, Settings]:
    return PruneWeights, settings


def packed(**settings: Any) -> tuple[type, Settings]:
    return QuantizeWeights, {"levels": "palette", "compensation": "gptq", **settings}


RECIPES: tuple[Steps, ...] = (
    (packed(bits=6),),
    (packed(bits=4),),
    (packed(bits=3),),
    (sparse(),),
    (sparse(method="magnitude"),),
    (sparse(method="magnitude", scope="global"),),
    (sparse(pattern="2:4"),),
    (sparse(ratio=0.3),),
    (sparse(ratio=0.1),),
    (sparse(bits=6), packed(bits=6)),
    (sparse(pattern="2:4", bits=6), packed(bits=6)),
    (sparse(bits=4), packed(bits=4)),
    (sparse(ratio=0.3, bits=5), packed(bits=6)),
    (sparse(bits=6, noise=0.003), packed(bits=6)),
    (sparse(bits=5, noise=0.01), packed(bits=3, mean_bits=5.0)),
)


def label(steps: Steps) -> str:
    names = {PruneWeights: "prune_weights", QuantizeWeights: "quantize_weights"}
    return " + ".join(
        f"{names[kind]}({', '.join(f'{key}={value}' for key, value in settings.items())})" for kind, settings in steps
    )


def recipes(model: CorpusModel, folder: Path, given: argparse.Namespace) -> Iterator[tuple[str, Path, float]]:
    """Label, file and seconds of every candidate."""
    evidence = model.evidence(folder, samples=given.samples)
    for steps in RECIPES:
        if not any(text in label(steps) for text in given.only):
            continue
        made, before = model.clean, time.monotonic()
        try:
            for kind, settings in steps:
                made = kind().apply(made, settings, evidence)
        except PassFailed as error:
            print(f"| {label(steps)} | {error} | | | | | | |", flush=True)
            continue
        file = folder / "candidate.onnx"
        ir.save(made, file)
        yield label(steps), file, time.monotonic() - before


def forms(model: CorpusModel, folder: Path, _: argparse.Namespace) -> Iterator[tuple[str, Path, float]]:
    """The same zeros in every form: magnitude needs no data, and which weights go does not matter here."""
    evidence = model.evidence(folder, samples=1)
    ways: dict[str, Steps] = {
        "zeros in place": (sparse(form="dense"),),
        "mask and float32": (sparse(),),
        "2:4 arrangements and float32": (sparse(pattern="2:4"),),
        "zeros in place, then 6-bit palette": (sparse(form="dense"), packed(bits=6, compensation="none")),
        "mask and 6-bit palette": (sparse(bits=6), packed(bits=6, compensation="none")),
        "2:4 arrangements and 6-bit palette": (sparse(pattern="2:4", bits=6), packed(bits=6, compensation="none")),
    }
    for name, steps in ways.items():
        made, before = model.clean, time.monotonic()
        for kind, settings in steps:
            extra = {"method": "magnitude"} if kind is PruneWeights else {}
            made = kind().apply(made, {**settings, **extra}, evidence)
        file = folder / "candidate.onnx"
        ir.save(made, file)
        seconds = time.monotonic() - before
        yield name, file, seconds
        if name == "zeros in place":
            _sparse_initializers(file)
            yield "ONNX sparse initializers", file, seconds


def _sparse_initializers(file: Path) -> None:
    """Rewrite the model with the standard's sparse tensors where a third or more is zero."""
    proto = onnx.load(file)
    for tensor in list(proto.graph.initializer):
        data = onnx.numpy_helper.to_array(tensor)
        if data.size < 1024 or data.dtype != np.float32 or (data == 0).mean() < 1 / 3:
            continue
        places = np.flatnonzero(data)
        values = onnx.numpy_helper.from_array(data.reshape(-1)[places], tensor.name)
        indices = onnx.numpy_helper.from_array(places.astype(np.int64), f"{tensor.name}_indices")
        proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, data.shape))
        proto.graph.initializer.remove(tensor)
    onnx.save(proto, file)


def pruned(model: CorpusModel, folder: Path, given: argparse.Namespace) -> Iterator[tuple[str, Path, float]]:
    """Packing a model that came with zeros, with and without looking at them."""
    evidence = model.evidence(folder, samples=given.samples)
    ways: tuple[Steps, ...] = (
        (packed(bits=6),),
        (packed(bits=4),),
        (sparse(method="found"),),
        (sparse(method="found", bits=8),),
        (sparse(method="found", bits=8), (QuantizeWeights, {"bits": 8})),
        (sparse(method="found", bits=6), packed(bits=6)),
        (sparse(method="found", bits=4), packed(bits=4)),
    )
    for steps in ways:
        made, before = model.clean, time.monotonic()
        for kind, settings in steps:
            made = kind().apply(made, settings, evidence)
        file = folder / "candidate.onnx"
        ir.save(made, file)
        yield label(steps), file, time.monotonic() - before


def with_zeros(model: CorpusModel, folder: Path, share: float) -> CorpusModel:
    """``model`` as if somebody had pruned it before it was dropped."""
    settings = {"ratio": share, "form": "dense"}
    return replace(model, clean=PruneWeights().apply(model.clean, settings, model.evidence(folder, samples=16)))


def layers(model: CorpusModel, folder: Path, every: int, samples: int) -> None:
    """A table: for some layers the output's signal-to-noise at so many bits a weight, dense and sparse."""
    chosen = [each for each in compact.weights(model.clean.graph) if each.size >= 16_384 and not each.is_table][::every]
    wanted = [each for each in quantizable.layers(model.clean.graph) if each.weight in {each.value for each in chosen}]
    moments = gram.collect(model.clean, wanted, model.evidence(folder, samples=samples))
    columns = [f"dense {bits}" for bits in _DENSE_BITS] + [f"{share:.0%} zero, {bits}" for share, bits in _SPARSE_BITS]
    print(f"| layer | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for weight in chosen:
        if weight.name not in moments:
            continue
        rows, own = weight.rows(), moments[weight.name]
        cells = []
        for bits in _DENSE_BITS:
            grid = codebook.fit_palette(rows, 1 << bits, block=rows.shape[1])
            cells.append(
                decibels(compensate.output_noise(rows, grid.decode(compensate.compensated(rows, own, grid)), own))
            )
        for share, bits in _SPARSE_BITS:
            kept, left = sparsify.reconstructed(rows, own, Removal(share))
            grid = codebook.fit_palette(left, 1 << bits, block=rows.shape[1], weights=kept.astype(np.float32))
            cells.append(decibels(compensate.output_noise(rows, sparsify.rounded(rows, own, kept, grid), own)))
        print(f"| {weight.name} {rows.shape} | {' | '.join(cells)} |", flush=True)


def decibels(noise: float) -> str:
    return f"{-10 * np.log10(max(noise, 1e-12)):.1f}"


def main() -> None:
    parser = corpus_parser(__doc__, MODELS, samples=32, evaluation=24)
    parser.add_argument("--only", nargs="*", default=[""], help="only recipes whose label holds one of these")
    parser.add_argument("--forms", action="store_true", help="one sparse model in every form instead of recipes")
    parser.add_argument("--pruned", type=float, help="share of zeros that the original comes with")
    parser.add_argument("--layers", type=int, help="layer by layer, every so many")
    given = parser.parse_args()
    for name in given.models:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            model = open_model(given.corpus, name, folder)
            if given.layers:
                print(f"\n### {name}\n")
                layers(model, folder, given.layers, given.samples)
                continue
            if given.pruned:
                model = with_zeros(model, folder, given.pruned)
            clean = folder / "clean.onnx"
            ir.save(model.clean, clean)
            feeds = model.eval_feeds(given.eval)
            print(f"\n### {name}\n")
            print("| recipe | times smaller | SNR dB | cosine | top-1 | latency | load s | seconds |")
            print("|---|---|---|---|---|---|---|---|")
            make = forms if given.forms else pruned if given.pruned else recipes
            for text, file, seconds in make(model, folder, given):
                judge(text, file, seconds, clean=clean, feeds=feeds)


if __name__ == "__main__":
    main()
