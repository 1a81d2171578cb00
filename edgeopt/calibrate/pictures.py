"""Folders of pictures as calibration or eval samples, for models with one picture as their input.

How a picture becomes a tensor is not guessed: job.yaml's ``inputs.NAME.preprocess`` states it. Pillow is optional and
imported here alone; only formats without a language of their own are decoded, and a size cap stands before decoding.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate import dtypes
from edgeopt.errors import BadData
from edgeopt.policy import Preprocess
from edgeopt.records import TensorSpec

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
_FORMATS = ("PNG", "JPEG", "BMP")
_MOST_PIXELS = 16_000_000
_MODES = {"rgb": "RGB", "bgr": "RGB", "gray": "L"}


@dataclass(frozen=True, slots=True)
class PicturesColumn:
    """One picture an inference, decoded when it is asked for."""

    files: tuple[Path, ...]
    spec: TensorSpec
    steps: Preprocess

    def read(self, index: int) -> NDArray[Any]:
        tensor = _tensor(self.files[index], self.steps)
        # a picture without its batch axis, where the model has one
        shaped = tensor[np.newaxis] if len(self.spec.shape) == tensor.ndim + 1 else tensor
        return shaped.astype(dtypes.named(self.spec.dtype))


def content_hash(files: Sequence[Path], steps: Preprocess) -> str:
    """SHA-256 over the pictures' bytes in order, and what is done to them."""
    content = hashlib.sha256(repr(steps).encode())
    for path in files:
        content.update(hashlib.sha256(path.read_bytes()).digest())
    return content.hexdigest()


def _tensor(path: Path, steps: Preprocess) -> NDArray[Any]:
    """Resize the short side, crop the middle, subtract the mean, divide by the deviation; values begin as 0..255."""
    picture = _opened(path, _MODES[steps.color])
    if steps.resize:
        scale = steps.resize / min(picture.size)
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    if steps.crop:
        left, top = (picture.width - steps.crop) // 2, (picture.height - steps.crop) // 2
        picture = picture.crop((left, top, left + steps.crop, top + steps.crop))
    values: NDArray[Any] = np.asarray(picture, dtype=np.float32)
    values = values[..., np.newaxis] if values.ndim == 2 else values
    if steps.color == "bgr":
        values = values[..., ::-1]
    values = (values - np.asarray(steps.mean, np.float32)) / np.asarray(steps.std, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1) if steps.layout == "nchw" else values)


def _opened(path: Path, mode: str) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError  # type: ignore[import-not-found]  # optional
    except ImportError as error:
        raise BadData(
            "pictures as samples need Pillow, which is not installed",
            hint="Install Pillow with pip install pillow, or drop an .npz of tensors instead.",
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            picture = Image.open(path, formats=_FORMATS)
            if picture.width * picture.height > _MOST_PIXELS:
                raise BadData(
                    f"the picture {path.name!r} has {picture.width} x {picture.height} pixels, more than {_MOST_PIXELS:,}",
                    hint="Scale the picture down.",
                )
            return picture.convert(mode)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError) as error:
        raise BadData(f"the picture {path.name!r} cannot be decoded: {error}", hint="Save it again as PNG.") from error
