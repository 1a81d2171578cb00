"""The original's outputs on the eval samples: run once, kept on disk, compared with every candidate's.

Memory is one sample's outputs whatever the number of samples. A model with states is run over whole sequences: each
sequence starts with the states that the samples give and then carries the model's own states along, so that errors add
up as they will in service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import BadData, MeasureFailed
from edgeopt.records import DataOrigin, Signature
from edgeopt.stages.forms import OutputForm, recognise
from edgeopt.stages.frames import read_frame, write_frame

if TYPE_CHECKING:
    from edgeopt.protocols import Array, Feeds, Labels, Samples
    from edgeopt.stages.runners import Runner

MOST_SAMPLES = 512
_SEQUENCE_SAMPLES = 32
_SAMPLES_TO_RECOGNISE = 16

RunOne = Callable[["Feeds"], "list[Array]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What candidates are held against."""

    signature: Signature
    samples: Samples
    indices: tuple[int, ...]
    """Which samples were run, in order."""
    forms: tuple[OutputForm, ...]
    file: Path
    origin: DataOrigin
    taught: bool = False
    """The outputs are those of a teacher: the original itself is some way off."""
    own: bool = True
    """The outputs are those of the very artifact that candidates are timed against; else that is judged by them like a candidate."""

    @property
    def synthetic(self) -> bool:
        return self.origin.origin == "synthetic"

    @property
    def labels(self) -> Labels | None:
        """Class indices of the samples that were run."""
        labels = self.samples.labels
        return None if labels is None else labels[list(self.indices)]

    def outputs(self) -> Iterator[list[NDArray[Any]]]:
        """The original's outputs, sample by sample."""
        with self.file.open("rb") as stream:
            for _ in self.indices:
                yield read_frame(stream)[1]


def make(
    runner: Runner, samples: Samples, signature: Signature, ends: dict[str, tuple[str, ...]], folder: Path
) -> Reference:
    """Run the original over at most ``MOST_SAMPLES`` samples, spread evenly, and keep its outputs in ``folder``.

    Raises :class:`BadData` where the original itself does not run on the samples: no candidate could be judged.
    """
    indices = spread(len(samples), MOST_SAMPLES, ordered=bool(signature.states))
    file = folder / "reference.frames"
    shown: list[list[NDArray[Any]]] = []
    try:
        with file.open("wb") as stream:
            for outputs in sequence(runner.run, samples, signature, indices):
                write_frame(stream, {}, outputs)
                if len(shown) < _SAMPLES_TO_RECOGNISE:
                    shown.append(outputs)
    except MeasureFailed as error:
        raise BadData(
            f"the model as dropped does not run on its samples: {error.message}",
            hint="Check the shapes and value ranges of the samples.",
        ) from error
    forms = recognise(signature, ends, shown, labelled=samples.labels is not None)
    if samples.labels is not None:
        _check_labels(samples.labels, forms, shown[0])
    return Reference(
        signature=signature, samples=samples, indices=indices, forms=forms, file=file, origin=samples.origin
    )


def _check_labels(labels: Labels, forms: Sequence[OutputForm], shown: Sequence[NDArray[Any]]) -> None:
    """Raises :class:`BadData` where ``labels`` name classes that an output with class scores does not have: an accuracy by them would mean nothing."""
    for form in forms:
        if form.kind != "classes":
            continue
        classes = 2 if form.scores == "binary" else shown[form.index].shape[-1]
        if labels.min() < 0 or labels.max() >= classes:
            raise BadData(
                f"the labels go from {labels.min()} to {labels.max()}, and output {form.name} has {classes} classes",
                hint="Give class indices, counted from 0; leave labels out where they are something else.",
            )


def spread(count: int, most: int, *, ordered: bool) -> tuple[int, ...]:
    """Indices of at most ``most`` of ``count`` samples: evenly spread, or the first ones where order matters."""
    if count <= most:
        return tuple(range(count))
    if ordered:
        return tuple(range(most))
    return tuple(int(index) for index in np.linspace(0, count - 1, most).round())


def sequence(run: RunOne, samples: Samples, signature: Signature, indices: tuple[int, ...]) -> Iterator[list[Array]]:
    """Outputs of ``run`` for each sample; states are carried from one to the next within a sequence."""
    names = [spec.name for spec in signature.outputs]
    carried: dict[str, Array] = {}
    for position, index in enumerate(indices):
        if position % _SEQUENCE_SAMPLES == 0:
            carried = {}
        outputs = run({**samples.feeds(index), **carried})
        carried = {pair.input: outputs[names.index(pair.output)] for pair in signature.states}
        yield outputs
