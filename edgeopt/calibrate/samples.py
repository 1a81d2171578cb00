"""The door for data: what was dropped beside a model becomes a set of samples, or a list of everything that is wrong.

Called by ``ingest`` for the calibration and the eval data. A drop gives an .npz, or a folder of .npy files (one for
each input), of .npz files (one for each sample), or of pictures. Nothing is loaded: see ``arrays`` for how files are
read, ``fit`` for what is checked, ``synthetic`` for what serves when there is no data.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeopt.calibrate import arrays, dtypes, fit, pictures
from edgeopt.calibrate.arrays import ArrayFile
from edgeopt.calibrate.sample_set import Column, FilesColumn, SampleSet
from edgeopt.calibrate.synthetic import GUESSES, Guess, synthetic
from edgeopt.errors import BadData
from edgeopt.policy import InputHint
from edgeopt.records import DataOrigin, Signature, TensorSpec

__all__ = ["GUESSES", "MOST_BYTES", "Guess", "SampleSet", "open_samples", "synthetic"]

MOST_BYTES = 32 << 30
"""What one set's arrays may hold, unpacked."""
_LABELS_FILE = f"{fit.LABELS}.npy"


def open_samples(
    path: Path,
    signature: Signature,
    *,
    unpack_to: Path,
    hints: Sequence[tuple[str, InputHint]] = (),
    origin: str = "drop",
) -> SampleSet:
    """The samples in a file or folder, checked against ``signature``.

    ``unpack_to`` is a folder of the job's own, for arrays that cannot be read where they lie. ``hints`` state how
    pictures become tensors. Raises :class:`~edgeopt.errors.BadData` with every mistake at once.
    """
    mode = path.lstat().st_mode
    if stat.S_ISREG(mode):
        found = arrays.open_npz(path, unpack_to=unpack_to, most_bytes=MOST_BYTES)
        return _whole_set(fit.fit(found, signature, path.name), origin)
    if not stat.S_ISDIR(mode):
        raise BadData(f"{path.name} is neither a plain file nor a folder", hint="Drop a copy of the data itself.")
    files = _plain_files(path)
    kinds = {_kind(file) for file in files if file.name != _LABELS_FILE}
    if kinds == {".npy"}:
        found = {file.stem: arrays.open_npy(file, unpack_to=unpack_to) for file in files}
        return _whole_set(fit.fit(found, signature, path.name), origin)
    if kinds == {".npz"}:
        return _file_each(files, signature, unpack_to, origin)
    if kinds == {"picture"}:
        return _pictures(files, signature, dict(hints), origin)
    raise BadData(
        f"the folder {path.name} holds {sorted(kinds) or 'nothing'}",
        hint="Fill it with .npy files named after the inputs, with one .npz a sample, or with pictures.",
    )


def _whole_set(fitted: fit.Fitted, origin: str) -> SampleSet:
    return SampleSet(
        fitted.columns,
        origin=DataOrigin(sha256=fitted.sha256, samples=fitted.count, origin=origin),
        labels=fitted.labels,
        notes=tuple(fitted.notes),
    )


def _plain_files(folder: Path) -> list[Path]:
    files = sorted(folder.iterdir())
    strange = [file.name for file in files if not stat.S_ISREG(file.lstat().st_mode)]
    if strange or len(files) > arrays.MOST_MEMBERS:
        raise BadData(
            f"the folder {folder.name} holds {len(files)} entries, {len(strange)} of them no plain files {strange[:3]}",
            hint=f"Put up to {arrays.MOST_MEMBERS:,} plain files directly into it.",
        )
    return files


def _kind(file: Path) -> str:
    suffix = file.suffix.lower()
    return "picture" if suffix in pictures.SUFFIXES else suffix


def _file_each(files: Sequence[Path], signature: Signature, unpack_to: Path, origin: str) -> SampleSet:
    """One .npz a sample; each array is exactly what one inference is fed."""
    labels = next((file for file in files if file.name == _LABELS_FILE), None)
    samples = [
        (file.name, arrays.open_npz(file, unpack_to=unpack_to / file.stem, most_bytes=MOST_BYTES))
        for file in files
        if file != labels
    ]
    mistakes: list[str] = []
    content = hashlib.sha256()
    columns: dict[str, Column] = {}
    for spec in signature.inputs:
        values = _one_each(spec, samples, mistakes)
        fit.check_values(f"{spec.name!r}", values, dtypes.named(spec.dtype), mistakes, content)
        columns[spec.name] = FilesColumn(tuple(values), dtypes.named(spec.dtype))
    fitted = fit.Fitted(columns=columns, count=len(samples), mistakes=mistakes)
    if labels is not None:
        fit.take_labels(arrays.open_npy(labels, unpack_to=unpack_to), 1, fitted, content)
    fit.raise_if_any(mistakes, signature, "the folder of samples")
    fitted.sha256 = content.hexdigest()
    return _whole_set(fitted, origin)


def _one_each(
    spec: TensorSpec, samples: Sequence[tuple[str, Mapping[str, ArrayFile]]], mistakes: list[str]
) -> list[ArrayFile]:
    values = []
    for name, found in samples:
        array = found.get(spec.name)
        if array is None:
            mistakes.append(f"{name!r} lacks {spec.name!r}")
        elif len(array.shape) != len(spec.shape):
            mistakes.append(f"{spec.name!r} in {name!r} has {len(array.shape)} axes, not {len(spec.shape)}")
        elif fit.check_feed(spec, array.shape, mistakes):
            values.append(array)
    return values


def _pictures(files: Sequence[Path], signature: Signature, hints: Mapping[str, InputHint], origin: str) -> SampleSet:
    inputs = signature.inputs
    steps = hints[inputs[0].name].preprocess if len(inputs) == 1 and inputs[0].name in hints else None
    if steps is None:
        raise BadData(
            f"pictures were dropped for a model with the inputs {[spec.name for spec in inputs]}, without how to prepare them",
            hint="State inputs.NAME.preprocess in job.yaml, or drop an .npz of tensors.",
        )
    shown = [file for file in files if file.name != _LABELS_FILE]
    column = pictures.PicturesColumn(tuple(shown), inputs[0], steps)
    fitted = fit.Fitted(columns={inputs[0].name: column}, count=len(shown))
    fitted.sha256 = pictures.content_hash(shown, steps)
    for index, file in enumerate(shown):
        shape = column.read(index).shape
        if len(shape) != len(inputs[0].shape) or not fit.check_feed(inputs[0], shape, fitted.mistakes):
            fitted.mistakes.append(f"the picture {file.name!r} becomes {list(shape)}")
    if len(shown) < len(files):
        content = hashlib.sha256(fitted.sha256.encode())
        fit.take_labels(
            arrays.open_npy(files[0].with_name(_LABELS_FILE), unpack_to=files[0].parent), 1, fitted, content
        )
        fitted.sha256 = content.hexdigest()
    fit.raise_if_any(fitted.mistakes, signature, "the folder of pictures")
    return _whole_set(fitted, origin)
