"""Taking a bundle: its members become plain files of the job's input, each hashed against what the bundle says of it.

The work inside ``intake.stage`` for ``NAME.edgeopt``, beside ``taking``. The worker never sees the archive, only files under names from the
allow list of ``gate_bundle``; every model among them is walked as if it had been dropped by itself.
"""

from __future__ import annotations

import os
from dataclasses import replace

from edgeopt.daemon import gate, gate_bundle, gate_zip, protowalk, take
from edgeopt.daemon.gate_bundle import Part
from edgeopt.daemon.storage import storage_errors
from edgeopt.daemon.take import Opened
from edgeopt.daemon.taking import MODEL, Taking
from edgeopt.errors import BadBundle, UnsafeReference
from edgeopt.integrity import content_address
from edgeopt.layout import (
    ARTIFACT_DATA_FILE,
    ARTIFACT_FILE,
    BUNDLE_FILE,
    CANDIDATES_FOLDER,
    CHECKSUMS_FILE,
    SAMPLES_FOLDER,
)

MODELS = 16
"""A bundle may be this many times as large as one model: it holds many."""


def take_bundle(taking: Taking) -> None:
    """Unpack the drop's bundle into the job's ``input/``; raises what ``gate_bundle`` and ``protowalk`` do."""
    with taking.opened(taking.drop.model or "") as opened:
        taking.count(opened, "model", times=MODELS)
        parts = gate_bundle.parts(opened.fd, opened.size_bytes, model_bytes=taking.limits.model_bytes)
        taking.wait_for_writer(opened)
        digests = _unpack(taking, opened, parts)
        taking.digests[MODEL] = take.digest_of(opened, limit_bytes=opened.size_bytes)
        taking.stamps[opened.path] = opened.stamp
        for name in digests:
            _check_member(taking, name, digests)
    judging = SAMPLES_FOLDER if any(name.startswith(f"{SAMPLES_FOLDER}/") for name in digests) else None
    taking.files = replace(taking.files, model=BUNDLE_FILE, eval=judging)


def _unpack(taking: Taking, opened: Opened, parts: tuple[Part, ...]) -> dict[str, str]:
    """Copy every member out; the digests by name, which are those that the bundle states."""
    (listing,) = (part for part in parts if part.name == CHECKSUMS_FILE)
    text = os.pread(opened.fd, listing.stop - listing.start, listing.start)
    stated = gate_bundle.sums(text, [part.name for part in parts if part.name != CHECKSUMS_FILE])
    found: dict[str, str] = {}
    for part in parts:
        if part.name == CHECKSUMS_FILE:
            continue
        target = taking.folder.input / part.name
        with storage_errors("making a folder for the copy"):
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = (part.start, part.stop)
        found[part.name] = take.copy(opened, target, should_stop=taking.patience.should_stop, part=place)
        if found[part.name] != stated[part.name]:
            raise BadBundle(
                f"{part.name} in the bundle has the sha256 {found[part.name]:.16}..., its {CHECKSUMS_FILE} says {stated[part.name]!a:.18}",
                hint="Copy the bundle again: its bytes changed on the way.",
            )
    return found


def _check_member(taking: Taking, name: str, digests: dict[str, str]) -> None:
    """Look at one unpacked file as the gate looks at a dropped one."""
    with storage_errors("reading the unpacked bundle"), (taking.folder.input / name).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if name.endswith(".npz"):
            gate_zip.check_npz(file.fileno(), size, max_bytes=taking.limits.model_bytes)
        elif name.endswith(f"/{ARTIFACT_FILE}"):
            gate.refuse_by_content(file.fileno(), size)
            walk = protowalk.walk(file.fileno(), size, should_stop=taking.patience.should_stop)
            _check_model(name, walk, digests)


def _check_model(name: str, walk: protowalk.Walk, digests: dict[str, str]) -> None:
    folder = name.removesuffix(f"/{ARTIFACT_FILE}")
    data = f"{folder}/{ARTIFACT_DATA_FILE}"
    outside = {location for location, _ in walk.references}
    if strange := outside - {ARTIFACT_DATA_FILE}:
        raise UnsafeReference(
            f"the bundle's model {name} takes weights from {min(strange)!a:.100}",
            hint="Prepare the bundle again: only model.onnx.data may lie beside a model.",
        )
    if outside and data not in digests:
        raise BadBundle(f"the bundle lacks {data}, which {name} needs", hint="Prepare the bundle again.")
    files = [digests[each] for each in (name, data) if each in digests]
    if folder != f"{CANDIDATES_FOLDER}/{content_address(files)}":
        raise BadBundle(f"{name} in the bundle lies under another content's name", hint="Prepare the bundle again.")
