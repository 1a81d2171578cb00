"""What a published version's folder says of itself, and whether that still holds: manifest, hashes, conditions.

Read by ``runtime`` before it opens anything, and by the commands that look at a version. Nothing is opened or run here. A
manifest comes in, the artifact that it describes goes out, with whatever speaks against running it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt import device, fingerprint
from edgeopt.errors import BrokenArtifact, UsageError
from edgeopt.fingerprint import Fingerprint
from edgeopt.integrity import listed_sums, sha256_of
from edgeopt.layout import CHECKSUMS_FILE, MANIFEST_FILE
from edgeopt.records import Artifact

_SCHEMA = 1
_MANIFEST_LIMIT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """One version's folder as its manifest describes it."""

    folder: Path
    manifest: dict[str, Any]
    artifact: Artifact
    fallback: Artifact | None = None
    """What may stand in for an engine where that does not run; None where the manifest allows nothing."""


def read_version(folder: Path) -> PublishedVersion:
    """The manifest of a version's folder; :class:`BrokenArtifact` where it is none of schema 1."""
    file = folder / MANIFEST_FILE
    try:
        with file.open("rb") as stream:
            manifest = json.loads(stream.read(_MANIFEST_LIMIT_BYTES))
        artifact = _artifact(folder, manifest["artifact"])
        fallback = manifest["artifact"].get("fallback")
        stand_in = None if fallback is None else _artifact(folder, fallback)
        schema = manifest["schema"]
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder} holds no {MANIFEST_FILE}", hint="Name the folder of a published version."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenArtifact(f"{file} is no manifest: {error!r}", hint="Publish the model again.") from error
    if schema != _SCHEMA:
        raise BrokenArtifact(
            f"{file} has schema {schema!r}, this edgeopt reads schema {_SCHEMA}", hint="Use a matching edgeopt."
        )
    return PublishedVersion(folder, manifest, artifact, stand_in)


def unfit(version: PublishedVersion) -> str:
    """Why an artifact should not be run here, in one clause; empty where its conditions are those here.

    More instruction sets than it was measured with, or another name of the device, make nothing wrong.
    """
    if version.manifest.get("status") == "unverified":
        return "nobody has run it on its device yet"
    if version.artifact.format != "onnx" and not device.gpu_present():
        return f"{Path(version.artifact.path).name} runs on an NVIDIA GPU, and there is none here"
    return changed(fingerprint.of_manifest(version.manifest))


def changed(then: Fingerprint) -> str:
    """What of these conditions is otherwise in this process and makes an artifact doubtful to run; empty for nothing."""
    now = fingerprint.here(then.runtime)
    return "; ".join(change.text for change in fingerprint.misfits(then, now))


def _artifact(folder: Path, described: Mapping[str, Any]) -> Artifact:
    """An artifact as a manifest describes it; KeyError, TypeError or AttributeError where it does not."""
    return Artifact(
        path=str(folder / Path(described["file"]).name),
        format=described["format"],
        sha256=described["sha256"],
        bytes=described["bytes"],
        runtime=described["runtime"],
        runtime_version=described["runtime_version"],
        session=tuple(sorted(described["session"].items())),
    )


def check_files(version: PublishedVersion) -> list[str]:
    """What is wrong with the files of a version, one sentence each: the artifact's hash, then every line of SHA256SUMS."""
    artifacts = (version.artifact, version.fallback)
    expected = {Path(artifact.path).name: artifact.sha256 for artifact in artifacts if artifact is not None}
    problems = []
    try:
        sums = listed_sums(version.folder / CHECKSUMS_FILE)
    except FileNotFoundError:
        problems.append(f"{CHECKSUMS_FILE} is missing")
    except ValueError as error:
        problems.append(str(error))
    else:
        problems += [
            f"{CHECKSUMS_FILE} and {MANIFEST_FILE} disagree on {name}"
            for name, digest in sums.items()
            if expected.setdefault(name, digest) != digest
        ]
    for name, digest in expected.items():
        file = version.folder / Path(name).name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif (found := sha256_of(file)) != digest:
            problems.append(f"{name} has sha256 {found[:12]}, not {digest[:12]}")
    return problems
