"""Taking a settled drop: checked, copied into a job's private folder, hashed, and written down as an order.

After ``drops`` and before the job store. A :class:`~edgeopt.daemon.drops.Drop` goes in; a :class:`Staged` job folder comes
out, holding copies under names of our own. From here on nothing opens the inbox again, so neither a swapped file nor a
link in it can reach the worker. Every failure removes what was staged; the drop itself is untouched until its outcome is
durable (``leave``, ``rejected``). Callers run :func:`stage` in a thread: it keeps no state between calls.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from edgeopt import wire
from edgeopt.daemon import gate, take, taking_bundle
from edgeopt.daemon.drops import Drop
from edgeopt.daemon.leave import remove_drop
from edgeopt.daemon.names import escaped, model_format, slug
from edgeopt.daemon.rejected import move_to_rejected, recover_rejected
from edgeopt.daemon.scan import Stamp
from edgeopt.daemon.storage import fsync_folder, storage_errors, translate, write_file
from edgeopt.daemon.take import NotReady, Patience
from edgeopt.daemon.taking import MODEL, OWN_NAMES, Taking
from edgeopt.errors import TooLarge, UnsafeFile, UnsupportedModel
from edgeopt.layout import BUNDLE_FILE, BUNDLE_FORMAT, JobFolder
from edgeopt.orders import JobOrder, Source
from edgeopt.policy import Policy, WorkerLimits

__all__ = [
    "NotReady",
    "Patience",
    "Staged",
    "content_key",
    "identify",
    "move_to_rejected",
    "recover_rejected",
    "remove_drop",
    "stage",
]

_HASHED_BYTES = 1 << 20
FINISHED = Patience()
"""What looks broken is broken: for files that their owner calls finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A drop that was taken."""

    order: JobOrder
    folder: JobFolder
    key: str
    """SHA-256 over every input's content and the policy: equal keys mean equal work."""
    drop: Drop
    """The drop with the external-data files that its model refers to."""
    stamps: dict[str, Stamp]
    """How each file looked when it was taken, by its path in the drop; what ``remove_drop`` goes by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a drop that may be unreadable is filed under."""

    name: str
    sha256: str


def stage(
    drop: Drop, *, staging_root: Path, policy: Policy, limits: WorkerLimits, patience: Patience = FINISHED
) -> Staged:
    """Copy a drop into ``staging_root/<job id>/`` and write its order.

    Raises :class:`~edgeopt.errors.InputError` where the drop can never work, :class:`NotReady` where it may be
    unfinished, :class:`~edgeopt.errors.EnvironmentFault` where the disk is full or broken, and
    :class:`~edgeopt.errors.JobCancelled` when ``patience.should_stop`` says so. In each case nothing is left behind.
    """
    _refuse_form(drop, limits)
    folder = JobFolder(staging_root / secrets.token_hex(8))
    with ExitStack() as undo, _vanishing(drop):
        undo.callback(shutil.rmtree, folder.root, ignore_errors=True)
        with storage_errors("making the job's folder"):
            folder.create()
        taking = Taking(drop, folder, limits, patience)
        if model_format(PurePosixPath(drop.model or "").name) == BUNDLE_FORMAT:
            taking_bundle.take_bundle(taking)
        else:
            taking.take_model()
            taking.take_external_data()
        taking.take_sidecars()
        taking.look_at_the_rest()
        staged = _seal(taking, policy)
        undo.pop_all()
    return staged


def identify(drop: Drop) -> Identity:
    """Name and hash to file a refused drop under; made of the model's first MiB, or of the name where it cannot be read."""
    digest = hashlib.sha256(os.fsencode(drop.path)).hexdigest()
    if drop.model is not None:
        try:
            with take.open_regular(drop, drop.model) as opened:
                digest = take.digest_of(opened, limit_bytes=_HASHED_BYTES)
        except (FileNotFoundError, UnsafeFile):
            pass
    return Identity(name=slug(drop.name, digest), sha256=digest)


def _refuse_form(drop: Drop, limits: WorkerLimits) -> None:
    """Refuse what the names alone rule out."""
    shown = escaped(drop.path)
    if drop.problem == "linked-folder":
        raise UnsafeFile(f"{shown} is a symbolic link", hint="Drop a real folder with copies of the files.")
    if drop.problem == "overfull":
        raise TooLarge(
            f"the folder {shown} holds too many files or folders", hint="Pack the samples into an .npz file."
        )
    if drop.problem == "several-models":
        raise UnsupportedModel(
            f"the folder {shown} holds several models and none is called model.onnx",
            hint="Drop each model by itself, or name the one to optimize model.onnx.",
        )
    if drop.model is None:
        raise UnsupportedModel(f"{shown} holds no model", hint="Put the model into it as model.onnx.")
    kind = model_format(PurePosixPath(drop.model).name) or "onnx"
    gate.refuse_by_name(PurePosixPath(drop.model).name, kind, torchscript=limits.torchscript)


@contextmanager
def _vanishing(drop: Drop) -> Iterator[None]:
    """A file that went away while the drop was taken: whoever dropped it is not done."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotReady(f"a file of {escaped(drop.path)} went away while it was taken") from error
    except OSError as error:
        raise translate(error, f"taking {escaped(drop.path)}") from error


def _seal(taking: Taking, policy: Policy) -> Staged:
    """Write the order last: a folder that has one is whole."""
    drop, folder = taking.drop, taking.folder
    sha256 = _source_sha256(taking)
    order = JobOrder(
        job_id=folder.root.name,
        name=slug(drop.name, sha256),
        source=Source(
            file=escaped(PurePosixPath(drop.model or "").name),
            format=BUNDLE_FORMAT if taking.files.model == BUNDLE_FILE else "onnx",
            sha256=sha256,
            bytes=taking.sizes["model"],
        ),
        files=taking.files,
        policy=policy,
        limits=taking.limits,
    )
    with storage_errors("writing the job's order"):
        fsync_folder(folder.input)
        write_file(folder.order, wire.dumps(order).encode(), mode=0o600)
        fsync_folder(folder.root)
        fsync_folder(folder.root.parent)
    members = tuple(dict.fromkeys((*drop.members, *taking.external)))
    entries = drop.entries if drop.folder else tuple(dict.fromkeys((*drop.entries, *taking.external)))
    return Staged(
        order=order,
        folder=folder,
        key=content_key(taking.digests, wire.dumps(policy)),
        drop=replace(drop, members=members, entries=entries),
        stamps=taking.stamps,
    )


def _source_sha256(taking: Taking) -> str:
    """The model's SHA-256; with external data the hash of all of the hashes, since equal graphs may have other weights."""
    outside = [name for name in taking.digests if name not in OWN_NAMES and name.split("/")[0] not in OWN_NAMES]
    if not outside:
        return taking.digests[MODEL]
    lines = [taking.digests[MODEL], *(f"{taking.digests[name]} {name!a}" for name in sorted(outside))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def content_key(digests: dict[str, str], policy: str) -> str:
    """The key of a job: SHA-256 over the name inside ``input/`` and the SHA-256 of each file, and the policy as JSON."""
    lines = [f"{digest} {name!a}" for name, digest in sorted(digests.items())]
    return hashlib.sha256("\n".join([*lines, policy]).encode()).hexdigest()
