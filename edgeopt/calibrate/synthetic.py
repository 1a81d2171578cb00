"""Made-up inputs for a drop without data: good enough to time a model and to compare two forms of it, no more.

Values come from the ranges that job.yaml declares; without them, from what the input's type, rank and name suggest.
Pictures are smooth, since white noise drives a network far from where photographs do: ranges taken from it are wrong,
and answers of two equally good models differ. Everything follows from the seed, the input's name and the index.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate import dtypes
from edgeopt.calibrate.sample_set import Column, SampleSet
from edgeopt.policy import Dim, InputHint, Span
from edgeopt.records import DataOrigin, Signature, TensorSpec

BATCH = 1
PAST = 16
CHANNELS = 3
_OCTAVES = 5
_SAMPLE_RATE_HZ = 16_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """Lengths for dimensions that neither the model nor the job file states."""

    height: int = 224
    width: int = 224
    sequence: int = 128
    signal: int = 512
    """Samples of a sound or another signal: 32 ms at 16 kHz, which is what recognisers of speech take at a time."""

    def by_word(self) -> tuple[tuple[tuple[str, ...], int], ...]:
        """Words in a dimension's name that tell its length."""
        return (
            (("batch",), BATCH),
            (("past",), PAST),
            (("height",), self.height),
            (("width",), self.width),
            (("channel",), CHANNELS),
            (("seq", "len", "time", "token", "frames", "steps"), self.sequence),
        )


GUESSES = (
    Guess(),
    Guess(height=48, width=320, sequence=64, signal=576),
    Guess(height=32, width=320, sequence=256, signal=1024),
    Guess(height=64, width=64, sequence=32, signal=16_000),
    Guess(height=416, width=416, sequence=512, signal=1536),
    Guess(height=640, width=640, sequence=16, signal=4000),
    Guess(height=28, width=28, sequence=8, signal=256),
)
"""In the order they are tried: many models run at one size or at multiples of 32 only."""


def synthetic(
    signature: Signature,
    hints: Sequence[tuple[str, InputHint]] = (),
    *,
    seed: int,
    count: int,
    guess: Guess = GUESSES[0],
) -> SampleSet:
    """``count`` made-up inferences; ``hints`` are the job file's shapes and ranges by input."""
    known = dict(hints)
    lengths: dict[str, int] = {}
    states = {pair.input for pair in signature.states}
    columns: dict[str, Column] = {}
    for spec in signature.inputs:
        hint = known.get(spec.name, InputHint())
        # a state's unknown lengths are of batches and layers; guessed ones would rarely fit together
        shape = resolve_shape(spec, hint.shape, lengths, guess=guess, unknown=BATCH if spec.name in states else None)
        columns[spec.name] = MadeUpColumn(
            spec.name, shape, dtypes.named(spec.dtype), hint.range, seed, spec.name in states
        )
    recipe = repr((signature.inputs, signature.states, sorted(known.items()), seed, count, guess))
    origin = DataOrigin(sha256=hashlib.sha256(recipe.encode()).hexdigest(), samples=count, origin="synthetic")
    return SampleSet(columns, origin=origin)


def resolve_shape(
    spec: TensorSpec,
    hint: tuple[Dim | Span, ...] | None,
    lengths: dict[str, int],
    *,
    guess: Guess = GUESSES[0],
    unknown: int | None = None,
) -> tuple[int, ...]:
    """A length for every dimension; equal names get equal lengths through ``lengths``, which is filled on the way.

    ``unknown`` is the length of a dimension without a name; None guesses from the axis.
    """
    picture = _picture_axes(spec, guess)
    shape = []
    for axis, dim in enumerate(spec.shape):
        hinted = hint[axis] if hint is not None and axis < len(hint) else None
        if isinstance(hinted, Span):
            hinted = hinted.typical or hinted.most
        if isinstance(dim, int):
            length = dim
        elif isinstance(hinted, int):
            length = hinted
        elif dim in lengths:
            length = lengths[dim]
        elif dim == "?" and unknown is not None:
            length = unknown
        else:
            length = _known_sum(dim, lengths) or _guessed_length(dim, axis, spec, picture, guess)
        if isinstance(dim, str) and dim != "?":
            lengths.setdefault(dim, length)
        shape.append(length)
    return tuple(shape)


def _known_sum(dim: str, lengths: Mapping[str, int]) -> int:
    """The length of a dimension called like ``past + 1``; 0 where it is no sum of known ones."""
    parts = [part.strip() for part in dim.split("+")]
    if len(parts) > 1 and all(part.isdigit() or part in lengths for part in parts):
        return sum(int(part) if part.isdigit() else lengths[part] for part in parts)
    return 0


def _guessed_length(dim: str, axis: int, spec: TensorSpec, picture: Mapping[int, int], guess: Guess) -> int:
    for words, length in guess.by_word():
        if any(word in dim.lower() for word in words):
            return length
    if axis in picture or axis == 0:
        return picture.get(axis, BATCH)
    if len(spec.shape) == 2 and "float" in spec.dtype:
        return guess.signal
    return guess.sequence if axis == 1 or len(spec.shape) == 3 else BATCH


def _picture_axes(spec: TensorSpec, guess: Guess) -> dict[int, int]:
    """Length by axis for an input that is a picture: four axes, few channels in front of or behind height and width."""
    if len(spec.shape) != 4 or ("int" in spec.dtype and spec.dtype != "uint8"):
        return {}
    if spec.shape[3] in (1, 3, 4) and spec.shape[1] not in (1, 3, 4):
        return {0: BATCH, 1: guess.height, 2: guess.width, 3: CHANNELS}
    return {0: BATCH, 1: CHANNELS, 2: guess.height, 3: guess.width}


@dataclass(frozen=True, slots=True)
class MadeUpColumn:
    """Values of one input, computed when they are asked for."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    range: tuple[float, float] | None
    seed: int
    is_state: bool

    def read(self, index: int) -> NDArray[Any]:
        if self.is_state:
            return np.zeros(self.shape, self.dtype)
        generator = np.random.default_rng([self.seed, index, zlib.crc32(self.name.encode())])
        if self.dtype.kind == "b":
            return np.ones(self.shape, self.dtype)
        if self.dtype.kind in "iu" or "int" in self.dtype.name:
            return _integers(self, generator).astype(self.dtype)
        return _floats(self, generator).astype(self.dtype)


def _integers(column: MadeUpColumn, generator: np.random.Generator) -> NDArray[Any]:
    """Within the declared range, ends included; without one, what the name suggests."""
    if column.range is not None:
        low, high = (int(np.ceil(column.range[0])), int(np.floor(column.range[1])))
        return generator.integers(low, max(low, high), column.shape, endpoint=True)
    if column.dtype == np.uint8 and len(column.shape) == 4:
        return np.asarray(np.rint(_stretched(_smooth(column.shape, generator), 0.0, 255.0)))
    return np.asarray(_named_integers(column, generator))


def _named_integers(column: MadeUpColumn, generator: np.random.Generator) -> Any:
    """Masks of ones, token types of zeros, positions counted up, token numbers small enough for any table."""
    words = set(re.split(r"[^a-z]+", column.name.lower()))
    if "mask" in words:
        return np.ones(column.shape)
    if words & {"type", "segment"}:
        return np.zeros(column.shape)
    if words & {"position", "positions", "pos"} and column.shape:
        return np.broadcast_to(np.arange(column.shape[-1]), column.shape)
    if words & {"sr", "rate"} and not column.shape:
        return _SAMPLE_RATE_HZ
    is_token = words & {"id", "ids", "token", "tokens", "input"}
    return generator.integers(1 if is_token else 0, 100 if is_token else 2, column.shape)


def _floats(column: MadeUpColumn, generator: np.random.Generator) -> NDArray[Any]:
    smooth = len(column.shape) == 4
    if column.range is not None:
        low, high = column.range
        return (
            _stretched(_smooth(column.shape, generator), low, high)
            if smooth
            else generator.uniform(low, high, column.shape)
        )
    return _smooth(column.shape, generator) if smooth else generator.standard_normal(column.shape)


def _stretched(values: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """Values of about -2.5 .. 2.5 spread over low .. high."""
    return np.clip(low + (high - low) * (values + 2.5) / 5.0, low, high)


def _smooth(shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float64]:
    """Noise whose power falls with frequency, mean 0, deviation 1: random grids of 2, 4, 8 ... points, interpolated.

    The two largest axes behind the first are taken as height and width, the remaining ones as batch and channels, which
    share most of their structure as the colours of a photograph do.
    """
    channels_last = shape[3] < min(shape[1], shape[2])
    batch, height, width, channels = shape if channels_last else (shape[0], shape[2], shape[3], shape[1])
    picture = np.zeros((batch, channels, height, width))
    for octave in range(1, _OCTAVES + 1):
        points = 2**octave + 1
        shared = generator.standard_normal((batch, 1, points, points))
        own = generator.standard_normal((batch, channels, points, points))
        picture += _interpolated(shared + 0.5 * own, height, width) / 2**octave
    picture -= picture.mean()
    deviation = picture.std()
    picture = np.clip(picture / deviation if deviation > 0 else picture, -2.5, 2.5)
    return np.ascontiguousarray(np.moveaxis(picture, 1, 3) if channels_last else picture)


def _interpolated(grid: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Bilinear, [..., points, points] to [..., height, width]."""
    rows = _between(grid, height, axis=2)
    return _between(rows, width, axis=3)


def _between(grid: NDArray[np.float64], length: int, *, axis: int) -> NDArray[np.float64]:
    place = np.linspace(0.0, grid.shape[axis] - 1.0, length)
    left = np.minimum(place.astype(int), grid.shape[axis] - 2)
    weight = (place - left).reshape([-1 if each == axis else 1 for each in range(grid.ndim)])
    between: NDArray[np.float64] = np.take(grid, left, axis) * (1.0 - weight) + np.take(grid, left + 1, axis) * weight
    return between
