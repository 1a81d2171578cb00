"""A version that nobody has run on its device becomes a bundle of one candidate, for that device to accept.

Beside ``bundling``, which writes bundles out of a search. What was made for another device is published as ``unverified``, and its folder
holds the model but neither what it was made of nor samples: whoever accepts it brings these along. From there on it is a bundle like any
other: taken apart by the same gate, opened, judged and timed by ``acceptance`` against the original, in the sandbox.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeopt import wire
from edgeopt.errors import BrokenArtifact, UsageError
from edgeopt.integrity import model_files, sha256_of
from edgeopt.layout import ARTIFACT_FILE, BUNDLE_FILE, BUNDLE_SUFFIX
from edgeopt.orders import Source
from edgeopt.policy import Goal, Policy, TargetRequest
from edgeopt.published import PublishedVersion, check_files
from edgeopt.records import DataOrigin, Quality, Recipe, Step, Target
from edgeopt.stages import bundling
from edgeopt.stages.bundle import Bundle, Candidate
from edgeopt.stages.bundling import Content


def write(version: PublishedVersion, *, original: Path | None, samples: Path | None, out: Path) -> Path:
    """Write ``out/NAME.edgeopt``. ``samples`` only have to be there: they go along beside the bundle.

    Raises :class:`~edgeopt.errors.UsageError` where there is nothing to accept, or what it takes is missing or another model's, and
    :class:`~edgeopt.errors.BrokenArtifact` where the folder is not what its manifest says.
    """
    target = _part(version.manifest, "target").get("name")
    prepare = f"edgeopt optimize MODEL --target {target} --prepare"
    _refuse_version(version)
    if original is None or samples is None:
        missing = [
            *(["the model it was made of (--original)"] if original is None else []),
            *(["samples to judge it by (--eval)"] if samples is None else []),
        ]
        raise UsageError(
            f"the folder of a version does not hold {' nor '.join(missing)}",
            hint=f"Give them, or run `{prepare}` where they are and accept the bundle, which holds everything.",
        )
    _refuse_original(version, original, prepare)
    contents: dict[str, Content] = {}
    try:
        bundle = _bundle(version, original, contents)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenArtifact(
            f"the manifest of {version.folder} does not say how it was made: {error!r:.200}", hint=f"Run `{prepare}`."
        ) from error
    contents[BUNDLE_FILE] = bundling.document(bundle)
    file = out / f"{bundle.name}{BUNDLE_SUFFIX}"
    bundling.pack(contents, file)
    return file


def _refuse_version(version: PublishedVersion) -> None:
    if version.manifest.get("status") != "unverified":
        raise UsageError(
            f"{version.folder} was measured on its device already",
            hint="Run edgeopt.load with it; where it does not fit any more, the daemon makes it anew.",
        )
    if problems := check_files(version):
        raise BrokenArtifact(
            f"{version.folder} is not what its manifest says: {problems[0]}", hint="Copy it again, whole."
        )


def _refuse_original(version: PublishedVersion, original: Path, prepare: str) -> None:
    """It must be the very file: quality and speedup are ratios to it."""
    stated = _part(version.manifest, "source")
    found = sha256_of(original) if original.is_file() else ""
    if found != stated.get("sha256"):
        raise UsageError(
            f"{original} {f'has sha256 {found:.12}' if found else 'is no file'}; "
            f"the version was made of {stated.get('file')!s:.80}, sha256 {stated.get('sha256')!s:.12}",
            hint=f"Name that file. One with weights in other files has to be prepared: `{prepare}`.",
        )


def _bundle(version: PublishedVersion, original: Path, contents: dict[str, Content]) -> Bundle:
    """The document; the models go into ``contents``. ValueError, KeyError, TypeError or AttributeError where the manifest lacks something."""
    manifest = version.manifest
    target = wire.decode(Target, manifest["target"] | {"memory_bytes": 0})
    result, environment = manifest["result"], manifest["environment"]
    # an engine fits one release and one GPU: the device builds its own out of the model beside it
    model = version.folder / ARTIFACT_FILE
    candidate = Candidate(
        recipe=Recipe(steps=tuple(_step(dict(step)) for step in manifest["recipe"])),
        address=bundling.add_model(model, contents),
        bytes=sum(file.stat().st_size for file in model_files(model)),
        lossless=False,
        quality=_quality(result["quality"]),
        traffic_ratio=result.get("traffic_ratio"),
    )
    return Bundle(
        edgeopt=manifest["edgeopt"],
        name=manifest["name"],
        source=wire.decode(Source, manifest["source"]),
        target=target,
        machine=str(environment["cpu"]),
        policy=Policy(
            target=wire.decode(TargetRequest, {"name": target.name}), goal=wire.decode(Goal, manifest["goal"])
        ),
        calibration=wire.decode(DataOrigin, manifest["data"]["calibration"]),
        eval=wire.decode(DataOrigin, manifest["data"]["eval"]),
        original=bundling.add_model(original, contents),
        candidates=(candidate,),
        environment={name: text for name, text in environment.items() if isinstance(text, str)},
    )


def _step(fields: dict[str, Any]) -> Step:
    return Step.of(str(fields.pop("technique")), **fields)


def _quality(told: dict[str, Any]) -> Quality:
    return wire.decode(Quality, told | {"details": list(told["details"].items())})


def _part(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    value = manifest.get(name)
    return value if isinstance(value, dict) else {}
