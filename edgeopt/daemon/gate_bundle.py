"""What a dropped bundle may hold: an allow list of names, and nothing that grows when it is unpacked.

Inside ``intake``, for ``NAME.edgeopt``. An open descriptor goes in, the members with where their bytes lie come out. A bundle is a
zip whose members lie in it as they are, so it can never unpack to more than itself; what is compressed, linked, encrypted,
shared between two names or called anything else is refused. The version stands in the name of the first member, so a
newer bundle is told as such before anything else in it is found odd.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeopt.daemon import gate_zip
from edgeopt.daemon.gate_zip import Member
from edgeopt.errors import BadBundle, BadData, EmptyFile, TooLarge, UnsafeFile, UnsafeReference, UnsupportedModel
from edgeopt.layout import BUNDLE_FILE, BUNDLE_VERSION, CHECKSUMS_FILE

MOST_TEXT_BYTES = 16 << 20
"""Of the document, and of the checksums."""
_DOCUMENT = re.compile(r"edgeopt-bundle-([1-9][0-9]{0,5})\.json")
_NAMES = re.compile(
    rf"{re.escape(BUNDLE_FILE)}|{CHECKSUMS_FILE}|candidates/[0-9a-f]{{64}}/model\.onnx(\.data)?|samples/([0-9]{{5}}\.npz|labels\.npy)"
)
_MADE_BY = "Make bundles with `edgeopt optimize --prepare` and copy them unchanged."


@dataclass(frozen=True, slots=True)
class Part:
    """A member of the bundle: its bytes lie from ``start`` to ``stop``, as they are."""

    name: str
    start: int
    stop: int


def parts(fd: int, size_bytes: int, *, model_bytes: int) -> tuple[Part, ...]:
    """The members of a bundle, in the order they lie in.

    Raises :class:`~edgeopt.errors.BadBundle` for what is damaged or no bundle, :class:`~edgeopt.errors.UnsupportedModel` for one of a newer
    version, :class:`~edgeopt.errors.UnsafeReference` for a name that leads elsewhere, :class:`~edgeopt.errors.UnsafeFile` for a link,
    :class:`~edgeopt.errors.TooLarge` past the limits; ``model_bytes`` is the limit of each single model.
    """
    if size_bytes == 0:
        raise EmptyFile("the bundle is empty", hint="Copy the bundle again.")
    try:
        found, directory_offset = gate_zip.members(fd, size_bytes)
        _refuse_version(found)
        for member in found:
            _check(member, model_bytes)
        placed = gate_zip.placed(fd, size_bytes, found, directory_offset)
        laid = tuple(Part(member.name, start, start + member.size_bytes) for member, start in placed)
    except BadData as error:
        raise BadBundle(f"the bundle is damaged: {error.message}", hint="Copy the bundle again, whole.") from error
    if missing := {BUNDLE_FILE, CHECKSUMS_FILE} - {part.name for part in laid}:
        raise BadBundle(f"the bundle lacks {', '.join(sorted(missing))}", hint=_MADE_BY)
    return laid


def document(fd: int, size_bytes: int) -> dict[str, Any]:
    """What a bundle says of itself, for telling it; raises what :func:`parts` does, :class:`~edgeopt.errors.BadBundle` for no JSON object."""
    (part,) = (part for part in parts(fd, size_bytes, model_bytes=size_bytes) if part.name == BUNDLE_FILE)
    try:
        found = json.loads(os.pread(fd, part.stop - part.start, part.start))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadBundle(f"the bundle's {BUNDLE_FILE} is no JSON object", hint="Copy the bundle again, whole.")
    return found


def sums(text: bytes, names: Sequence[str]) -> dict[str, str]:
    """SHA256SUMS as digest by name; :class:`~edgeopt.errors.BadBundle` unless it lists exactly ``names``."""
    listed: dict[str, str] = {}
    for line in text.decode("ascii", "replace").splitlines():
        digest, _, name = line.partition("  ")
        listed[name] = digest
    if set(listed) != set(names):
        odd = min(set(listed) ^ set(names))
        raise BadBundle(
            f"the bundle's {CHECKSUMS_FILE} and its members differ in {odd!a:.100}",
            hint="Copy the bundle again, whole.",
        )
    return listed


def _refuse_version(found: Sequence[Member]) -> None:
    versions = [int(match[1]) for member in found if (match := _DOCUMENT.fullmatch(member.name))]
    if not versions:
        raise BadBundle(
            f"the archive holds no {BUNDLE_FILE}, so it is no bundle of edgeopt",
            hint=_MADE_BY,
        )
    if versions != [BUNDLE_VERSION]:
        raise UnsupportedModel(
            f"the bundle is of version {max(versions)}, and this edgeopt reads version {BUNDLE_VERSION}",
            hint="Install the release of edgeopt here that prepared the bundle, or prepare it again with this one.",
        )


def _check(member: Member, model_bytes: int) -> None:
    name = member.name
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise UnsafeReference(f"the bundle's member {name!a:.100} would lie outside of its folder", hint=_MADE_BY)
    if stat.S_ISLNK(member.mode):
        raise UnsafeFile(f"the bundle's member {name!a:.100} is a symbolic link", hint=_MADE_BY)
    if not _NAMES.fullmatch(name):
        raise BadBundle(f"the bundle holds {name!a:.100}, which no bundle does", hint=_MADE_BY)
    if member.method != 0 or member.packed_bytes != member.size_bytes:
        raise BadBundle(
            f"the bundle's member {name!a:.100} is compressed, from {member.size_bytes} bytes to {member.packed_bytes}",
            hint="Copy the bundle as it was made: its members are never compressed.",
        )
    most = model_bytes if "/" in name else MOST_TEXT_BYTES
    if member.size_bytes > most:
        raise TooLarge(
            f"the bundle's member {name!a:.100} has {member.size_bytes} bytes, more than {most}",
            hint="Raise limits.model_bytes, or prepare a smaller model.",
        )
