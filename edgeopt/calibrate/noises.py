"""What each group of layers does to the outputs when it is quantized: measured with three opened models for all of them.

Stands under ``stages.sensitivity`` and ``passes.quantize_weights``. The layers run side by side on the true inputs, quantized by the pass itself and in the target's own kernels
(``graph.apart``); the noise that each makes is added to its output in the float model, and what comes out at the end is its damage. One
sample tells most groups apart; the others are spent on those that may have to stay in float. Once a sample is through, the
scan may end at any time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate import deadline
from edgeopt.graph import apart
from edgeopt.graph.apart import Piece
from edgeopt.protocols import Evidence

if TYPE_CHECKING:
    from edgeopt.protocols import Array, Feeds, Gradients, Model

_HALVINGS = 2
"""The first sample is run for all groups, the second for the worse half, the rest for the worst quarter."""
Quantize = Callable[["Model", Evidence], "Model"]
"""A pass with its settings."""
Powers = dict[str, tuple[float, float]]
"""(noise, signal) power by the name of a value."""
_NONE = np.zeros((), np.float32)


@dataclass(slots=True)
class Damage:
    """Sums of (noise, signal) power: at each output of the model, and at the group's own outputs."""

    outputs: Powers = field(default_factory=dict)
    own: Powers = field(default_factory=dict)

    @property
    def at_outputs(self) -> float:
        """Noise over signal at the worst output of the model."""
        return _worst(self.outputs)

    @property
    def at_layers(self) -> float:
        """Noise over signal at the group's worst layer."""
        return _worst(self.own)

    def add(self, outputs: Powers, own: Powers) -> None:
        """Another sample."""
        for sums, new in ((self.outputs, outputs), (self.own, own)):
            for name, (noise, signal) in new.items():
                before = sums.get(name, (0.0, 0.0))
                sums[name] = (before[0] + noise, before[1] + signal)


def measured(  # noqa: PLR0913 - what is measured, how it is changed, on what, and how thoroughly
    model: Model,
    found: Sequence[Sequence[Piece]],
    quantize: Quantize,
    evidence: Evidence,
    *,
    shares: Sequence[float],
    most: int | None = None,
) -> list[Damage]:
    """The damage of each group of pieces; ``shares`` say what sparing a group costs.

    With ``most`` all groups run on as many samples, for whoever needs the small damages as well.

    Raises :class:`~edgeopt.errors.PassFailed` where ``quantize`` does.
    """
    every = [piece for group in found for piece in group]
    quantized = quantize(apart.side_by_side(model, every), _given(model, every, evidence))
    return _Scan(model, found, quantized, evidence, shares).run(most)


def between(model: Model, changed: Model, evidence: Evidence) -> Damage:
    """The damage that ``changed`` as a whole does against ``model``."""
    names = [str(value.name) for value in model.graph.outputs]
    damage = Damage()
    original = list(evidence.observe(model, names))
    for right, other in zip(original, evidence.observe(changed, names), strict=True):
        damage.add(_powers(right, other), {})
    return damage


class Given:
    """Evidence for the layers side by side: what each reads while ``model`` runs over the samples of ``inner``."""

    def __init__(self, inner: Evidence, model: Model, names: Sequence[str]) -> None:
        self._inner, self._model, self._names = inner, model, names
        self.signature, self.target, self.seed = inner.signature, inner.target, inner.seed
        self.sample_count, self.synthetic = inner.sample_count, inner.synthetic
        self.memo: MutableMapping[str, object] = {}
        self.teacher: Model | None = None
        self.gradients: Gradients | None = None
        self.deadline_s, self.progress = inner.deadline_s, inner.progress

    @property
    def folder(self) -> Path | None:
        return self._inner.folder

    def samples(self) -> Iterator[Feeds]:
        """What the layers read, sample by sample."""
        return (_fed(seen, self._names) for seen in self._inner.observe(self._model, self._names))

    def observe(self, model: Model, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Run ``model``, made of the layers side by side, over :meth:`samples`."""
        given = {str(value.name) for value in model.graph.inputs}
        inner = [name for name in names if name not in given]
        now: list[Feeds] = []
        if not inner:
            yield from ({name: feeds[name] for name in names} for feeds in self.samples())
            return
        for seen in self._inner.run(model, _remembered(self.samples(), now), inner):
            yield {name: seen[name] if name in seen else now[-1][name] for name in names}

    def run(self, model: Model, inputs: Iterable[Feeds], names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """As the evidence it is made of."""
        return self._inner.run(model, inputs, names)


class _Scan:
    """One pass over the samples: the layers side by side first, then the model with the noise of one group after the other."""

    def __init__(
        self,
        model: Model,
        found: Sequence[Sequence[Piece]],
        quantized: Model,
        evidence: Evidence,
        shares: Sequence[float],
    ) -> None:
        self._model, self._found, self._evidence, self._shares = model, found, evidence, shares
        self._quantized = quantized
        self._inputs = _unique(name for group in found for piece in group for name in piece.inputs)
        self._ends = _unique(name for group in found for piece in group for name in piece.outputs)
        self._damages = [Damage() for _ in found]
        self._turns: list[int | None] = []
        self._own: list[Powers] = []

    def run(self, most: int | None) -> list[Damage]:
        names = [str(value.name) for value in self._model.graph.outputs]
        original: Mapping[str, Array] = {}
        noisy = apart.with_noise(self._model, self._ends)
        for outputs in self._evidence.run(noisy, self._feeds(most), names):
            turn = self._turns[-1]
            if turn is None:
                original = outputs
            else:
                self._damages[turn].add(_powers(original, outputs), self._own[turn])
        return self._damages

    def _feeds(self, most: int | None) -> Iterator[Feeds]:
        """For every sample the original first, then one group's noise at a time."""
        for number, (feeds, noises, own) in enumerate(islice(self._noises(), most)):
            if number and deadline.is_over(self._evidence):
                return
            silent = {**feeds, **{apart.noise(name): _NONE for name in self._ends}}
            self._own = own
            self._turns.append(None)
            yield silent
            for index in self._active(number) if most is None else range(len(self._found)):
                self._turns.append(index)
                ends = [name for piece in self._found[index] for name in piece.outputs]
                yield {**silent, **{apart.noise(name): noises[name] for name in ends}}

    def _noises(self) -> Iterator[tuple[Feeds, dict[str, Array], list[Powers]]]:
        """For every sample its feeds, the noise of every layer, and each group's own (noise, signal)."""
        now: list[dict[str, Array]] = []
        seen = self._evidence.observe(self._model, _unique([*self._inputs, *self._ends]))
        given = (_fed(values, self._inputs) for values in _remembered(seen, now))
        wanted = [apart.apart(name) for name in self._ends]
        changed = self._evidence.run(self._quantized, given, wanted)
        for feeds, quantized in zip(self._evidence.samples(), changed, strict=True):
            noises = {name: _difference(quantized[apart.apart(name)], now[-1][name]) for name in self._ends}
            signals = now[-1]
            own = [
                {name: (_power(noises[name]), _power(signals[name])) for piece in group for name in piece.outputs}
                for group in self._found
            ]
            yield feeds, noises, own

    def _active(self, sample: int) -> list[int]:
        """The groups that this sample is run for."""
        everyone = list(range(len(self._found)))
        worth = [damage.at_outputs / share for damage, share in zip(self._damages, self._shares, strict=True)]
        most = math.ceil(len(everyone) / 2 ** min(sample, _HALVINGS))
        return sorted(sorted(everyone, key=lambda index: -worth[index])[:most])


def _given(model: Model, every: Sequence[Piece], evidence: Evidence) -> Given:
    return Given(evidence, model, _unique(name for piece in every for name in piece.inputs))


def _fed(seen: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    return {apart.given(name): seen[name] for name in names}


def _remembered(items: Iterable[Any], now: list[Any]) -> Iterator[Any]:
    """``items``, the last one of which lies in ``now`` while it is in use."""
    for item in items:
        now[:] = [item]
        yield item


def _powers(original: Mapping[str, Array], changed: Mapping[str, Array]) -> Powers:
    """(noise, signal) of each floating-point output; one that changed its shape is lost."""
    found = {}
    for name, right in original.items():
        if right.dtype.kind == "f":
            other = changed[name] if changed[name].shape == right.shape else np.zeros_like(right)
            found[name] = (_mean_power(np.subtract(other, right, dtype=np.float64)), _mean_power(right))
    return found


def _worst(sums: Powers) -> float:
    ratios = [noise / signal if signal > 0 else float(noise > 0) for noise, signal in sums.values()]
    worst = max(ratios, default=0.0)
    return worst if math.isfinite(worst) else math.inf


def _difference(changed: NDArray[Any], right: NDArray[Any]) -> Array:
    return np.asarray(np.nan_to_num(changed - right), np.float32)


def _mean_power(values: NDArray[Any]) -> float:
    return float(np.square(values, dtype=np.float64).mean()) if values.size else 0.0


def _power(values: NDArray[Any]) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
