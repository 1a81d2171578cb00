"""What a student is shown: calibration samples, views of them, blends of two, and noise, all for the teacher to label.

Stands between the evidence's samples and ``training.lesson``. The inputs come in *pools*: pool 0 holds the samples as they are, every further pool one
more view of each. A view is a function of the seed, the pool and the sample, so it is made again whenever it is wanted and only the teacher's
answers are kept. Teacher and student see the very same view, which is what makes augmented distillation work (L. Beyer et al., "Knowledge
distillation: A good teacher is patient and consistent", CVPR 2022); there the views never repeat, here a fixed number of pools bounds how often the
teacher is run.

Settings of ``inputs``:

- ``auto``        ``mixed`` for pictures, else ``calibration``: what a view of a sound, a text or a row of numbers may be, nobody told us
- ``calibration`` the samples as they are
- ``mixed``       every other epoch the samples, in between views: flipped and cropped pictures, blends of two samples, some tokens from another sample
- ``noise``       normal with each channel's mean and deviation on the samples; whole numbers in another order. Far from the samples a small
                  student spends itself on answers that nobody will ask for, so no other setting draws any
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate.regression import is_held_out
from edgeopt.errors import PassFailed
from edgeopt.training.shelf import Shelf

if TYPE_CHECKING:
    from edgeopt.protocols import Array, Feeds

INPUTS = ("auto", "calibration", "mixed", "noise")
_PICTURE_CHANNELS = (1, 3, 4)
_SMALLEST_CROP = 0.7
"""Of each side: smaller crops show the teacher nothing it knows."""
_BLENDED = 0.3
"""The share of blends in a pool of views; the rest is flipped, cropped or jittered."""
_TOKENS_REPLACED = 0.15
_JITTER = 0.1
"""Of an input's deviation, for what is no picture."""
_FEW_VALUES = 2
"""Whole numbers of so few different values are masks and flags, which say what the others mean: they stay."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and deviation of a float input for each index of ``axis``, shaped to broadcast; or of the whole input."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]


class Views:
    """The training samples and their views. ``samples`` must outlive it; ``chosen`` are the indices to train on."""

    def __init__(self, samples: Shelf, chosen: Sequence[int], *, kind: str, pools: int, seed: int) -> None:
        if kind not in INPUTS[1:]:
            raise PassFailed(f"{kind!r} are no inputs", hint=f"Use one of {', '.join(INPUTS)}.")
        self._samples = samples
        self._chosen = tuple(chosen)
        self._kind = kind
        self._seed = seed
        self._groups = groups(samples[index] for index in self._chosen)
        self._mates = {position: group for group in self._groups for position in group}
        self._spread = _spreads(samples, self._chosen) if kind != "calibration" else {}
        self.pools = 1 if kind == "calibration" else max(1, pools)

    def __len__(self) -> int:
        """How many inputs a pool holds."""
        return len(self._chosen)

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Positions whose inputs have equal shapes: only those fit into one batch."""
        return self._groups

    def pool_of(self, epoch: int) -> int:
        """Which pool an epoch shows: the samples themselves stay half of what a mixed training sees."""
        if self._kind == "mixed" and self.pools > 1:
            return 0 if epoch % 2 == 0 else 1 + (epoch // 2) % (self.pools - 1)
        return epoch % self.pools

    def sample(self, position: int) -> dict[str, Array]:
        """The calibration sample that the views at ``position`` are of."""
        return self._samples[self._chosen[position]]

    def largest(self) -> dict[str, Array]:
        """The sample of the most elements."""
        firsts = [self.sample(group[0]) for group in self._groups]
        return max(firsts, key=lambda row: sum(array.size for array in row.values()))

    def feeds(self, pool: int, position: int) -> dict[str, Array]:
        """The inputs of one inference."""
        own = self.sample(position)
        if self._kind == "calibration" or (pool == 0 and self._kind != "noise"):
            return own
        random = np.random.default_rng((self._seed, pool, position))
        draw = random.random()
        if self._kind == "noise":
            return self._noise(own, random)
        other = self.sample(self._mate(position, random))
        blends = any(array.dtype.kind == "f" for array in own.values())
        if blends and draw < _BLENDED:
            return _blend(own, other, random)
        return {name: self._view(name, array, other[name], random) for name, array in own.items()}

    def _mate(self, position: int, random: np.random.Generator) -> int:
        """Another sample of the same shape, where there is one."""
        mates = self._mates[position]
        number = int(random.integers(len(mates)))
        return mates[number] if mates[number] != position else mates[(number + 1) % len(mates)]

    def _view(self, name: str, array: Array, other: Array, random: np.random.Generator) -> Array:
        if array.dtype.kind != "f":
            return _with_tokens_of(array, other, random, share=_TOKENS_REPLACED)
        channels_last = _picture(array)
        if channels_last is None:
            noise = random.standard_normal(array.shape) * self._spread[name].deviation * _JITTER
            return _cast(_float(array) + noise, like=array)
        return _crop_and_flip(array, random, channels_last=channels_last)

    def _noise(self, own: Feeds, random: np.random.Generator) -> dict[str, Array]:
        made: dict[str, Array] = {}
        for name, array in own.items():
            if array.dtype.kind == "f":
                spread = self._spread[name]
                values = random.standard_normal(array.shape) * spread.deviation + spread.mean
                made[name] = _cast(values, like=array)
            else:
                made[name] = _shuffled(array, random)
        return made


def resolved(kind: str, row: Feeds) -> str:
    """``auto`` as one of the others, by whether an input of ``row`` is a picture."""
    if kind != "auto":
        return kind
    pictures = any(array.dtype.kind == "f" and _picture(array) is not None for array in row.values())
    return "mixed" if pictures else "calibration"


def groups(rows: Iterable[Feeds]) -> tuple[tuple[int, ...], ...]:
    """Positions in ``rows`` by the shapes of their inputs, in order of first appearance.

    A scalar belongs to its whole batch, so there its value counts as part of the shape.
    """
    found: dict[object, list[int]] = {}
    for position, row in enumerate(rows):
        shape = tuple(
            (name, array.dtype.str, array.shape, array.tobytes() if array.ndim == 0 else b"")
            for name, array in sorted(row.items())
        )
        found.setdefault(shape, []).append(position)
    return tuple(tuple(group) for group in found.values())


def stack(rows: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Rows of one group as one batch: joined along the first axis, scalars as they are."""
    if len(rows) == 1:
        return dict(rows[0])
    return {
        name: np.concatenate([row[name] for row in rows]) if array.ndim else array for name, array in rows[0].items()
    }


def drawn(count: int, most: int, *, seed: int) -> tuple[int, ...]:
    """Numbers of ``most`` of ``count`` samples, ascending: a draw by ``seed``, in which as large a share judges as of all (see :func:`held_out`).

    The first ones would be of one kind wherever samples lie in order.
    """
    if most >= count:
        return tuple(range(count))
    random = np.random.default_rng((seed, most))
    judging = [index for index in range(count) if is_held_out(index)]
    others = [index for index in range(count) if not is_held_out(index)]
    judges = min(len(judging), max(int(most > 1), round(most * len(judging) / count)))
    picked = [*random.choice(judging, judges, replace=False)] if judges else []
    picked += [*random.choice(others, most - judges, replace=False)]
    return tuple(sorted(int(index) for index in picked))


def held_out(numbers: Sequence[int], *, most: int = 64) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Positions in ``numbers``, which say which samples there are: (to train on, to judge by).

    Those samples judge that the refit after pruning has not fitted, ``most`` at most. On what it was fitted to, a student does better than it will on
    anything else, and whatever is taught would look worse. The last of two or three samples judges; a lone one does both.
    """
    if len(numbers) == 1:
        return (0,), (0,)
    known = [position for position, number in enumerate(numbers) if is_held_out(number)]
    if len(known) in (0, len(numbers)):
        known = [len(numbers) - 1]
    picked = np.unique(np.linspace(0, len(known) - 1, min(most, len(known))).round().astype(int))
    judging = tuple(known[index] for index in picked)
    return tuple(position for position in range(len(numbers)) if position not in set(judging)), judging


def _spreads(samples: Shelf, chosen: Sequence[int]) -> dict[str, Spread]:
    """For each float input the mean and deviation, by channel where it is a picture."""
    sums: dict[str, list[Any]] = {}
    for index in chosen:
        for name, array in samples[index].items():
            if array.dtype.kind != "f":
                continue
            channels_last = _picture(array)
            axes = None if channels_last is None else (0, 1, 2) if channels_last else (0, 2, 3)
            values = _float(array)
            new = (
                values.mean(axis=axes, keepdims=axes is not None),
                np.square(values).mean(axis=axes, keepdims=axes is not None),
            )
            old = sums.setdefault(name, [0, 0.0, 0.0])
            old[0], old[1], old[2] = old[0] + 1, old[1] + new[0], old[2] + new[1]
    found = {}
    for name, (count, first, second) in sums.items():
        mean = np.asarray(first / count)
        deviation = np.sqrt(np.maximum(np.asarray(second / count) - mean**2, 0.0))
        found[name] = Spread(mean.astype(np.float32), deviation.astype(np.float32))
    return found


def _picture(array: Array) -> bool | None:
    """Whether an input is a picture with its channels last; None where it is no picture."""
    if array.ndim != 4 or min(array.shape) < 1:
        return None
    if array.shape[1] in _PICTURE_CHANNELS and min(array.shape[2:]) > max(_PICTURE_CHANNELS):
        return False
    return True if array.shape[3] in _PICTURE_CHANNELS and min(array.shape[1:3]) > max(_PICTURE_CHANNELS) else None


def _crop_and_flip(array: Array, random: np.random.Generator, *, channels_last: bool) -> Array:
    """A random part of a picture, stretched back to its size (the nearest pixel), mirrored half of the time."""
    rows, columns = (1, 2) if channels_last else (2, 3)
    made = array
    for axis in (rows, columns):
        length = array.shape[axis]
        kept = round(length * random.uniform(_SMALLEST_CROP, 1.0))
        start = int(random.integers(length - kept + 1))
        picked = start + (np.arange(length) * kept) // length
        made = np.take(made, picked, axis=axis)
    return np.ascontiguousarray(np.flip(made, axis=columns) if random.random() < 0.5 else made)


def _blend(own: Feeds, other: Feeds, random: np.random.Generator) -> dict[str, Array]:
    """A weighted mean of two samples of one shape (H. Zhang et al., "mixup", ICLR 2018); whole numbers stay one's own."""
    share = random.uniform(0.0, 1.0)
    return {
        name: _cast(_float(array) * share + _float(other[name]) * (1.0 - share), like=array)
        if array.dtype.kind == "f"
        else array
        for name, array in own.items()
    }


def _float(array: Array) -> NDArray[np.float64]:
    return array.astype(np.float64)


def _cast(values: NDArray[np.float64], *, like: Array) -> Array:
    made: Array = values.astype(like.dtype)
    return made


def _with_tokens_of(array: Array, other: Array, random: np.random.Generator, *, share: float) -> Array:
    """Some whole numbers from another sample; zeros stay, since they pad."""
    if array.dtype.kind not in "iu" or len(np.unique(array)) <= _FEW_VALUES:
        return array
    replaced = (random.random(array.shape) < share) & (array != 0) & (other != 0)
    return np.where(replaced, other, array)


def _shuffled(array: Array, random: np.random.Generator) -> Array:
    """Whole numbers in random order where they differ; zeros stay, since they pad."""
    if array.dtype.kind not in "iu" or len(np.unique(array)) <= _FEW_VALUES:
        return array
    made = array.copy()
    made[array != 0] = random.permutation(array[array != 0])
    return made
