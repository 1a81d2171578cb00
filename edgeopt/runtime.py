"""``edgeopt.load``: a session on a published version, opened exactly as it was measured, that follows ``current``.

Stands at the far end of the pipeline, in the process of whoever serves the model. A name or a folder comes in; out goes
a :class:`LoadedModel` that checks the artifact against its manifest before opening it, and reopens when the daemon
publishes a newer version. A version that does not open is reported once and the old one goes on serving.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from edgeopt.errors import BrokenArtifact, EdgeoptError, UsageError
from edgeopt.integrity import sha256_of
from edgeopt.layout import CHECKSUMS_FILE, CURRENT_LINK, MANIFEST_FILE
from edgeopt.records import Artifact

if TYPE_CHECKING:
    from edgeopt.protocols import Array, Feeds, Session


_SCHEMA = 1
_MANIFEST_LIMIT_BYTES = 16 << 20
_log = logging.getLogger("edgeopt.runtime")


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """One version's folder as its manifest describes it."""

    folder: Path
    manifest: dict[str, Any]
    artifact: Artifact


class LoadedModel:
    """A published model, ready to run; safe to share between threads. Close it or use it as a context manager."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._follows = not (root / MANIFEST_FILE).is_file()
        self._lock = threading.Lock()
        self._reopening = threading.Lock()
        self._opened = _Opened(_resolve(root) if self._follows else root)
        self._failed: Path | None = None

    @property
    def version(self) -> PublishedVersion:
        """The version that the next :meth:`run` uses, unless a newer one is published before."""
        return self._opened.version

    @property
    def input_names(self) -> tuple[str, ...]:
        return self._opened.session.input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        return self._opened.session.output_names

    def run(self, feeds: Feeds) -> list[Array]:
        """One inference: input name to array in, arrays in the order of ``output_names`` out."""
        if self._follows:
            self._follow()
        with self._lock:
            opened = self._opened
            opened.users += 1
        try:
            return opened.session.run(feeds)
        finally:
            with self._lock:
                opened.users -= 1
                opened.close_when_idle()

    def close(self) -> None:
        """Let the session go; a run that is under way ends first."""
        with self._lock:
            self._opened.retired = True
            self._opened.close_when_idle()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _follow(self) -> None:
        """Reopen where ``current`` points elsewhere now. One thread does it; the others keep the old version meanwhile."""
        try:
            target = _resolve(self._root)
        except UsageError:
            return  # an unmounted or emptied folder takes nothing away from a running session
        if target in (self._opened.version.folder, self._failed) or not self._reopening.acquire(blocking=False):
            return
        try:
            opened = _Opened(target)
        except EdgeoptError as error:
            self._failed = target
            _log.warning("published version %s does not open, the old one goes on: %s", target, error)
        else:
            with self._lock:
                old, self._opened = self._opened, opened
                old.retired = True
                old.close_when_idle()
        finally:
            self._reopening.release()


class _Opened:
    """An open session with the number of runs under way, so that it is closed by whoever leaves last."""

    def __init__(self, folder: Path) -> None:
        from edgeopt import catalogue

        self.version = read_version(folder)
        if problems := check_files(self.version):
            raise BrokenArtifact(
                f"{folder} is not what its manifest says: {problems[0]}", hint="Publish the model again."
            )
        self.users = 0
        self.retired = False
        self._stack = ExitStack()
        runtime = catalogue.find_runtime(self.version.artifact.runtime)
        self.session: Session = self._stack.enter_context(runtime.open(self.version.artifact))

    def close_when_idle(self) -> None:
        if self.retired and not self.users:
            self._stack.close()


def load(name_or_dir: str | os.PathLike[str], *, published: str | os.PathLike[str] | None = None) -> LoadedModel:
    """Open a published model with the settings it was measured with.

    ``name_or_dir`` is the name of a model under ``published`` (default: the configured folder), its folder, or the
    folder of one version. The first two follow ``current``; a version's folder stays as it is.
    Raises :class:`UsageError` where there is nothing, :class:`BrokenArtifact` where files differ from the manifest.
    """
    folder = Path(name_or_dir)
    if not folder.is_dir():
        folder = _published_root(published) / folder.name
    if not folder.is_dir():
        raise UsageError(f"there is no published model {str(name_or_dir)!r}", hint=f"Look into {folder.parent}.")
    return LoadedModel(folder.absolute())


def read_version(folder: Path) -> PublishedVersion:
    """The manifest of a version's folder; :class:`BrokenArtifact` where it is none of schema 1."""
    file = folder / MANIFEST_FILE
    try:
        with file.open("rb") as stream:
            manifest = json.loads(stream.read(_MANIFEST_LIMIT_BYTES))
        described = manifest["artifact"]
        artifact = Artifact(
            path=str(folder / Path(described["file"]).name),
            format=described["format"],
            sha256=described["sha256"],
            bytes=described["bytes"],
            runtime=described["runtime"],
            runtime_version=described["runtime_version"],
            session=tuple(sorted(described["session"].items())),
        )
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
    return PublishedVersion(folder, manifest, artifact)


def check_files(version: PublishedVersion) -> list[str]:
    """What is wrong with the files of a version, one sentence each: the artifact's hash, then every line of SHA256SUMS."""
    expected = {Path(version.artifact.path).name: version.artifact.sha256}
    sums = version.folder / CHECKSUMS_FILE
    problems = []
    if sums.is_file():
        for line in sums.read_text().splitlines():
            digest, _, name = line.partition("  ")
            if expected.setdefault(name, digest) != digest:
                problems.append(f"{CHECKSUMS_FILE} and {MANIFEST_FILE} disagree on {name}")
    else:
        problems.append(f"{CHECKSUMS_FILE} is missing")
    for name, digest in expected.items():
        file = version.folder / Path(name).name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif (found := sha256_of(file)) != digest:
            problems.append(f"{name} has sha256 {found[:12]}, not {digest[:12]}")
    return problems


def _resolve(root: Path) -> Path:
    try:
        return root / (root / CURRENT_LINK).readlink()
    except OSError as error:
        raise UsageError(
            f"{root} has no version published: {CURRENT_LINK} is missing", hint="Drop the model into the inbox first."
        ) from error


def _published_root(given: str | os.PathLike[str] | None) -> Path:
    if given is not None:
        return Path(given)
    from edgeopt.config import reader
    from edgeopt.config.schema import Config

    chosen = reader.find_default()
    return Path((reader.load(chosen) if chosen else Config()).published)
