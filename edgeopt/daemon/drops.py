"""Which files belong together: a listing of the inbox, grouped into drops.

Between ``scan`` and ``intake``, and pure: the names alone decide. A drop is ``NAME.onnx`` with its siblings ``NAME.yaml``,
``NAME.calibration.npz`` and ``NAME.eval.npz``, or one folder ``NAME/`` with ``model.onnx`` in it. External-data files are
known only once the model was read, so ``intake`` adds them. Whatever is no drop stays where it is: a README, a sidecar
whose model has not come yet, a name that says it is still being written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

from edgeopt.daemon.names import is_waiting, model_format
from edgeopt.daemon.scan import Found, Listing

Problem: TypeAlias = Literal["overfull", "several-models", "linked-folder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """What was dropped together. Strings only, so that ``wire`` can keep it; paths are relative to ``root``."""

    root: str
    name: str
    """The raw stem: show it only through :func:`~edgeopt.daemon.names.escaped`."""
    path: str
    """The model file or the folder: what identifies the drop in its inbox."""
    folder: bool
    model: str | None
    job_file: str | None = None
    calibration: str | None = None
    """An .npz file, or a folder of samples."""
    eval: str | None = None
    teacher: str | None = None
    """The model to learn from, where the caller names it; a dropped folder's job file names its own."""
    entries: tuple[str, ...] = ()
    """What leaves the inbox with the drop: the folder, or each file."""
    members: tuple[str, ...] = ()
    """Every file and folder that is part of it."""
    waits_for: tuple[str, ...] = ()
    """What must hold still first: the members, and unfinished files that will become one."""
    problem: Problem | None = None
    trusted: bool = False
    """The caller's own files, named on a command line: links are followed."""


def group(listing: Listing) -> list[Drop]:
    """The drops of a listing, sorted by path."""
    top = {entry.path: entry for entry in listing if "/" not in entry.path}
    inside: dict[str, list[Found]] = {}
    for entry in listing:
        if "/" in entry.path:
            inside.setdefault(entry.path.split("/", 1)[0], []).append(entry)
    partial = sorted(name for name in top if is_waiting(name))
    drops: list[Drop] = []
    free = set(top)
    for name, entry in sorted(top.items(), key=_onnx_first):
        if is_waiting(name):
            continue
        drop = (
            _folder_drop(listing, name, inside.get(name, []))
            if entry.kind == "dir"
            else _file_drop(listing, entry, free, partial)
        )
        if drop is not None:
            drops.append(drop)
            free.difference_update(drop.members)
    return sorted(drops, key=lambda drop: drop.path)


def of_paths(
    model: Path,
    *,
    calibration: Path | None = None,
    eval_: Path | None = None,
    job_file: Path | None = None,
    teacher: Path | None = None,
) -> Drop:
    """A drop of the caller's own files, wherever they lie; for the one-shot, so nothing of it is ever removed."""
    given = (model, job_file, calibration, eval_, teacher)
    resolved = [None if path is None else str(path.resolve()) for path in given]
    return Drop(
        root=str(model.resolve().parent),
        name=model.stem,
        path=model.name,
        folder=False,
        model=resolved[0],
        job_file=resolved[1],
        calibration=resolved[2],
        eval=resolved[3],
        teacher=resolved[4],
        trusted=True,
    )


def _onnx_first(item: tuple[str, Found]) -> tuple[bool, str]:
    """Of two models with one stem the ONNX file gets the sidecars."""
    return model_format(item[0]) != "onnx", item[0]


def _file_drop(listing: Listing, entry: Found, free: set[str], partial: Iterable[str]) -> Drop | None:
    name = entry.path
    if model_format(name) is None:
        if entry.kind == "symlink" and not PurePosixPath(name).suffix:
            # most likely a link to a folder; whatever it points at is not looked at
            return Drop(
                root=str(listing.root),
                name=name,
                path=name,
                folder=False,
                model=None,
                entries=(name,),
                members=(name,),
                waits_for=(name,),
                problem="linked-folder",
            )
        return None
    stem = PurePosixPath(name).stem
    job_file = _first(free, f"{stem}.yaml", f"{stem}.yml")
    calibration = _first(free, f"{stem}.calibration.npz")
    evaluation = _first(free, f"{stem}.eval.npz")
    members = (name, *(path for path in (job_file, calibration, evaluation) if path is not None))
    coming = (
        waiting
        for waiting in partial
        if waiting.lstrip(".~").startswith((f"{stem}.yaml", f"{stem}.cal", f"{stem}.eval"))
    )
    return Drop(
        root=str(listing.root),
        name=stem,
        path=name,
        folder=False,
        model=name,
        job_file=job_file,
        calibration=calibration,
        eval=evaluation,
        entries=members,
        members=members,
        waits_for=(*members, *coming),
    )


def _folder_drop(listing: Listing, name: str, inside: list[Found]) -> Drop | None:
    children = {entry.path.split("/", 1)[1]: entry for entry in inside}
    models = sorted(
        (child for child in children if "/" not in child and model_format(child) and not is_waiting(child)),
        key=lambda child: (PurePosixPath(child).stem != "model", model_format(child) != "onnx", child),
    )
    overfull = name in listing.overfull
    if not models:
        return None  # a folder still being filled, or one that has nothing to do with models
    several = len(models) > 1 and PurePosixPath(models[0]).stem != "model"
    members = (*(entry.path for entry in inside), name)

    def child(*names: str) -> str | None:
        found = _first(children, *names)
        return None if found is None else f"{name}/{found}"

    return Drop(
        root=str(listing.root),
        name=name,
        path=name,
        folder=True,
        model=f"{name}/{models[0]}",
        job_file=child("job.yaml", "job.yml"),
        calibration=child("calibration.npz", "calibration"),
        eval=child("eval.npz", "eval"),
        entries=(name,),
        members=members,
        waits_for=members,
        problem="overfull" if overfull else "several-models" if several else None,
    )


def _first(names: Iterable[str], *wanted: str) -> str | None:
    return next((name for name in wanted if name in names), None)


def full_path(drop: Drop, path: str) -> Path:
    """Where a member lies; an absolute path (one-shot) stays itself."""
    return Path(drop.root) / path
