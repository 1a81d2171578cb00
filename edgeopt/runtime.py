"""``edgeopt.load``: a session on a published version, opened exactly as it was measured, that follows ``current``.

Stands at the far end of the pipeline, in the process of whoever serves the model. A name or a folder comes in; out goes
a :class:`LoadedModel` that holds the artifact against its manifest before opening it: its hash, and the conditions it was
measured under (``edgeopt.fingerprint``). It reopens when the daemon publishes another version; one that does not open is
reported and the old one goes on serving. Calls under way end on the session that they began on.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from edgeopt.errors import BrokenArtifact, CompileFailed, EdgeoptError, UnfitArtifact, UsageError
from edgeopt.fingerprint import Fingerprint
from edgeopt.layout import CURRENT_LINK, MANIFEST_FILE
from edgeopt.published import PublishedVersion, changed, check_files, read_version, unfit
from edgeopt.records import Artifact

if TYPE_CHECKING:
    from edgeopt.protocols import Array, Feeds, Session

__all__ = ["LoadedModel", "PublishedVersion", "check_files", "load", "read_version", "unfit"]

_AGAIN_S = 60.0
"""After which a version that did not open is tried once more: descriptors or memory may have been short."""
_log = logging.getLogger("edgeopt.runtime")


class LoadedModel:
    """A published model, ready to run; safe to share between threads. Close it or use it as a context manager."""

    def __init__(self, root: Path, *, accept_stale: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._accept_stale = accept_stale
        self._clock = clock
        self._follows = not (root / MANIFEST_FILE).is_file()
        self._lock = threading.Lock()
        self._reopening = threading.Lock()
        self._opened = _Opened(_resolve(root) if self._follows else root, accept_stale=accept_stale)
        self._failed: Path | None = None
        self._again_s = float("-inf")
        self._closed = False

    @property
    def version(self) -> PublishedVersion:
        """The version that the next :meth:`run` uses, unless a newer one is published before."""
        return self._opened.version

    @property
    def artifact(self) -> Artifact:
        """What is open of it: the version's artifact, or the one that stands in for it."""
        return self._opened.artifact

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
            if self._closed:
                raise UsageError(f"{self._root.name} was closed", hint="Load it again.")
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
            self._closed = True
            self._opened.retire()

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
        if target == self._opened.version.folder or (target == self._failed and self._clock() < self._again_s):
            return
        if not self._reopening.acquire(blocking=False):
            return
        try:
            opened = _Opened(target, accept_stale=self._accept_stale or self._is_rollback(target))
        except (EdgeoptError, OSError) as error:
            if target != self._failed:
                _log.warning("published version %s does not open, the old one goes on: %s", target, error)
            self._failed, self._again_s = target, self._clock() + _AGAIN_S
        else:
            self._swap(opened)
        finally:
            self._reopening.release()

    def _swap(self, opened: _Opened) -> None:
        with self._lock:
            old, self._opened = self._opened, opened
            old.retire()
            if self._closed:
                opened.retire()

    def _is_rollback(self, target: Path) -> bool:
        """Whether somebody leads back to an older version: that is obeyed, also where its conditions are gone.

        A newer one that does not fit is left alone instead: it was made for another process, and what is open fits.
        """
        return _number(target) < _number(self._opened.version.folder)


class _Opened:
    """An open session with the number of runs under way, so that it is closed by whoever leaves last."""

    def __init__(self, folder: Path, *, accept_stale: bool) -> None:
        self.version = read_version(folder)
        if problems := check_files(self.version):
            raise BrokenArtifact(
                f"{folder} is not what its manifest says: {problems[0]}", hint="Publish the model again."
            )
        self.users = 0
        self._retired = False
        self._stack = ExitStack()
        self.artifact, self.session = self._open(accept_stale=accept_stale)

    def retire(self) -> None:
        self._retired = True
        self.close_when_idle()

    def close_when_idle(self) -> None:
        if self._retired and not self.users:
            self._stack.close()

    def _open(self, *, accept_stale: bool) -> tuple[Artifact, Session]:
        """The artifact where it fits and opens, else what the manifest lets stand in for it."""
        version, fallback = self.version, self.version.fallback
        reason = unfit(version)
        if not reason or accept_stale:
            if reason:
                _log.warning("%s is served although it does not fit: %s", version.folder, reason)
            try:
                return version.artifact, self._enter(version.artifact)
            except CompileFailed as error:
                if fallback is None:
                    raise
                reason = error.message
        if fallback is None:
            unverified = version.manifest.get("status") == "unverified"
            raise UnfitArtifact(
                f"{version.folder} does not fit here: {reason}", hint=_ACCEPT if unverified else _WAYS_OUT
            )
        other = changed(Fingerprint(runtime=fallback.runtime, runtime_version=fallback.runtime_version))
        if other and not accept_stale:
            raise UnfitArtifact(
                f"{version.folder} does not fit here: {reason}; nor does its {Path(fallback.path).name}: {other}",
                hint=_WAYS_OUT,
            )
        _log.warning("%s is served by %s: %s", version.folder, Path(fallback.path).name, reason)
        return fallback, self._enter(fallback)

    def _enter(self, artifact: Artifact) -> Session:
        from edgeopt import catalogue

        return self._stack.enter_context(catalogue.find_runtime(artifact.runtime).open(artifact))


_WAYS_OUT = "Let the daemon make it anew here (see edgeopt status), or pass accept_stale=True."
_ACCEPT = "Run `edgeopt accept` with it on its device and load what that publishes, or pass accept_stale=True."


def load(
    name_or_dir: str | os.PathLike[str],
    *,
    published: str | os.PathLike[str] | None = None,
    accept_stale: bool = False,
) -> LoadedModel:
    """Open a published model with the settings it was measured with.

    ``name_or_dir`` is the name of a model under ``published`` (default: the configured folder), its folder, or the
    folder of one version. The first two follow ``current``; a version's folder stays as it is. With ``accept_stale``, a
    version that was measured under other conditions than those here is served all the same, with a warning in the log.
    Raises :class:`UsageError` where there is nothing, :class:`BrokenArtifact` where files differ from the manifest,
    :class:`UnfitArtifact` where conditions do, and :class:`CompileFailed` where the runtime does not open it.
    """
    folder = Path(name_or_dir)
    if not folder.is_dir():
        folder = _published_root(published) / folder.name
    if not folder.is_dir():
        raise UsageError(f"there is no published model {str(name_or_dir)!r}", hint=f"Look into {folder.parent}.")
    return LoadedModel(folder.absolute(), accept_stale=accept_stale)


def _number(folder: Path) -> int:
    return int(folder.name) if folder.name.isdecimal() else 0


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
