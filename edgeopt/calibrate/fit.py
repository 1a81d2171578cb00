"""Arrays of a drop against the inputs of its model: what fits becomes columns, what does not is listed, all of it.

Between ``arrays``, which opens files, and ``samples``, which makes the set. The rule for axes: an array of the input's
own rank is cut along its first axis into batches (of the model's fixed batch, or of one); an array with one more axis
holds one whole inference a row. Every value is read once, for its range, its finiteness and the content's hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate import dtypes
from edgeopt.calibrate.arrays import ArrayFile
from edgeopt.calibrate.sample_set import Column, FixedColumn, StoredColumn
from edgeopt.errors import BadData
from edgeopt.records import Signature, TensorSpec

LABELS = "labels"
_SCAN_BYTES = 4 << 20


@dataclass(slots=True)
class Fitted:
    """Columns, and what belongs to them; ``mistakes`` is empty where everything fits."""

    columns: dict[str, Column] = field(default_factory=dict)
    count: int = 0
    labels: NDArray[np.int64] | None = None
    sha256: str = ""
    mistakes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Layout:
    """How an array is cut: ``rows`` a feed, ``stacked`` where a row is a feed, ``shape`` of one feed, ``count`` of them."""

    rows: int
    stacked: bool
    shape: tuple[int, ...]
    count: int


def fit(arrays: Mapping[str, ArrayFile], signature: Signature, file: str) -> Fitted:
    """Columns for the inputs of ``signature``; raises :class:`~edgeopt.errors.BadData` with every mistake at once."""
    fitted = Fitted()
    given = dict(arrays)
    specs = {spec.name: spec for spec in signature.inputs}
    labels = None if LABELS in specs else given.pop(LABELS, None)
    given = _named(given, signature, fitted)
    layouts: dict[str, _Layout] = {}
    for name in sorted(given.keys() & specs.keys()):
        if layout := _laid_out(specs[name], given[name], fitted.mistakes):
            layouts[name] = layout
            fitted.columns[name] = StoredColumn(
                given[name], dtypes.named(specs[name].dtype), layout.rows, layout.stacked
            )
    _check_symbols(specs, {name: layout.shape for name, layout in layouts.items()}, fitted.mistakes)
    fitted.count = _common_count(layouts, fitted.mistakes)
    content = hashlib.sha256()
    for name in sorted(given):
        wanted = dtypes.named(specs[name].dtype) if name in specs else None
        check_values(f"{name!r}", [given[name]], wanted, fitted.mistakes, content)
    if labels is not None:
        take_labels(labels, max((layout.rows for layout in layouts.values()), default=1), fitted, content)
    _add_first_states(signature, layouts, fitted)
    fitted.sha256 = content.hexdigest()
    raise_if_any(fitted.mistakes, signature, file)
    return fitted


def raise_if_any(mistakes: Sequence[str], signature: Signature, file: str) -> None:
    """All mistakes in one :class:`~edgeopt.errors.BadData`, with what the model takes as the hint."""
    if not mistakes:
        return
    takes = ", ".join(f"{spec.name}: {spec.dtype} {_shown(spec.shape)}" for spec in signature.inputs)
    raise BadData(
        f"{file} does not fit the model: {'; '.join(mistakes)}",
        hint=f"Give one array for each input, the samples along the first axis; the model takes {takes}.",
    )


def check_values(
    name: str,
    arrays: Sequence[ArrayFile],
    wanted: np.dtype[Any] | None,
    mistakes: list[str],
    content: hashlib._Hash,
) -> None:
    """Read everything once, add it to ``content``, and note what is not finite or cannot be cast to ``wanted``."""
    seen = dtypes.Seen()
    for array in arrays:
        content.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        step = max(1, _SCAN_BYTES // max(1, array.row_bytes))
        for start in range(0, array.shape[0] if array.shape else 0, step):
            rows = array.rows(start, step)
            content.update(np.ascontiguousarray(rows).data)
            seen.add(rows)
    if seen.nans or seen.infinities:
        mistakes.append(f"{name} holds {seen.nans} NaN and {seen.infinities} infinite values")
    elif wanted is not None and arrays and (reason := dtypes.why_not(arrays[0].dtype, wanted, seen)):
        mistakes.append(f"{name} {reason}")


def check_feed(spec: TensorSpec, shape: tuple[int, ...], mistakes: list[str]) -> bool:
    """Whether one inference's array, of the right rank, has the declared dimensions and is not empty."""
    fits = all(length > 0 and dim in (length, str(dim)) for length, dim in zip(shape, spec.shape, strict=True))
    if not fits:
        mistakes.append(f"{spec.name!r} is {_shown(shape)} a sample, but the model takes {_shown(spec.shape)}")
    return fits


# ---------------------------------------------------------------- names
def _named(given: dict[str, ArrayFile], signature: Signature, fitted: Fitted) -> dict[str, ArrayFile]:
    """The arrays by input name; a lone array goes to a lone input whatever it is called."""
    names = [spec.name for spec in signature.inputs]
    states = {pair.input for pair in signature.states}
    needed = [name for name in names if name not in states]
    if len(given) == 1 and len(needed) == 1 and not set(given) & set(names):
        return {needed[0]: next(iter(given.values()))}
    fitted.mistakes += [f"{name!r} is not an input" for name in sorted(given.keys() - set(names))]
    fitted.mistakes += [f"{name!r} is missing" for name in needed if name not in given]
    return given


# ---------------------------------------------------------------- axes
def _laid_out(spec: TensorSpec, array: ArrayFile, mistakes: list[str]) -> _Layout | None:
    rank = len(spec.shape)
    if len(array.shape) == rank + 1:
        layout = _Layout(1, True, array.shape[1:], array.shape[0])
    elif len(array.shape) == rank and rank > 0:
        batch = spec.shape[0] if isinstance(spec.shape[0], int) else 1
        layout = _Layout(batch, False, (batch, *array.shape[1:]), array.shape[0] // batch)
    else:
        mistakes.append(
            f"{spec.name!r} has {len(array.shape)} axes {_shown(array.shape)}, not the {rank} of the model's input "
            f"{_shown(spec.shape)} or one more for the samples"
        )
        return None
    if not check_feed(spec, layout.shape, mistakes):
        return None
    if layout.count == 0:
        mistakes.append(f"{spec.name!r} holds {array.shape[0]} rows, which is no sample of {layout.rows}")
        return None
    return layout


def _common_count(layouts: Mapping[str, _Layout], mistakes: list[str]) -> int:
    counts = {name: layout.count for name, layout in layouts.items()}
    if len(set(counts.values())) > 1:
        mistakes.append(f"the inputs have different numbers of samples: {counts}")
    return min(counts.values(), default=0)


def _check_symbols(specs: Mapping[str, TensorSpec], shapes: Mapping[str, tuple[int, ...]], mistakes: list[str]) -> None:
    """Dimensions of one name have one length within an inference."""
    lengths: dict[str, tuple[int, str]] = {}
    for name, shape in shapes.items():
        for dim, length in zip(specs[name].shape, shape, strict=True):
            if not isinstance(dim, str) or dim == "?":
                continue
            known, where = lengths.setdefault(dim, (length, name))
            if known != length:
                mistakes.append(f"the dimension {dim!r} is {known} in {where!r}, but {length} in {name!r}")


def _shown(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


# ---------------------------------------------------------------- what comes beside the inputs
def take_labels(array: ArrayFile, rows: int, fitted: Fitted, content: hashlib._Hash) -> None:
    """One class for each inference; finer labels (a class a pixel) are of no use here, and the notes say so."""
    if array.dtype.kind not in "iu" or not array.shape:
        fitted.mistakes.append(f"'labels' is {array.dtype.name} {_shown(array.shape)}, not a list of class indices")
        return
    check_values("'labels'", [array], None, fitted.mistakes, content)
    if array.shape[0] != fitted.count * rows:
        fitted.mistakes.append(f"'labels' has {array.shape[0]} entries for {fitted.count * rows} samples")
    elif len(array.shape) > 1 or rows > 1:
        fitted.notes.append(
            f"the labels are {_shown(array.shape)}, not one class for each inference; they are not used"
        )
    elif (labels := array.whole().astype(np.int64)).min(initial=0) < 0:
        fitted.mistakes.append(f"'labels' holds {labels.min()}, but class indices begin at 0")
    else:
        fitted.labels = labels


def _add_first_states(signature: Signature, layouts: Mapping[str, _Layout], fitted: Fitted) -> None:
    """States that nobody gave begin as zeros, as long as the other inputs say."""
    specs = {spec.name: spec for spec in signature.inputs}
    lengths = {
        dim: length
        for name, layout in layouts.items()
        for dim, length in zip(specs[name].shape, layout.shape, strict=True)
        if isinstance(dim, str) and dim != "?"
    }
    for pair in signature.states:
        if pair.input in fitted.columns or pair.input not in specs:
            continue
        spec = specs[pair.input]
        shape = tuple(dim if isinstance(dim, int) else lengths.get(dim, 1) for dim in spec.shape)
        fitted.columns[pair.input] = FixedColumn(shape, dtypes.named(spec.dtype))
        fitted.notes.append(f"no samples for the state {pair.input!r}; it is zeros {_shown(shape)}")
