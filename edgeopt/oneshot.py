"""``edgeopt.optimize``: one model in the foreground, through the same staging, worker and publisher as the daemon's.

Paths (or, for library use, arrays) and wishes come in; a :class:`Result` goes out, whose folder is what the daemon would
have published. Staging and the candidates' cache lie in a temporary folder that is gone afterwards, whatever happens.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeopt import wire
from edgeopt.errors import (
    EdgeoptError,
    InputError,
    JobCancelled,
    OutOfMemory,
    StorageFault,
    UsageError,
)
from edgeopt.integrity import sha256_of
from edgeopt.layout import BUNDLE_FILE, BUNDLE_SUFFIX, MANIFEST_FILE, JobFolder, cache_folder
from edgeopt.orders import Event, JobOrder
from edgeopt.policy import Goal, Policy, Search, TargetRequest, WorkerLimits
from edgeopt.records import Recipe

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from edgeopt.daemon.publish import Published
    from edgeopt.daemon.supervise import Outcome

    Data: TypeAlias = "str | os.PathLike[str] | Mapping[str, ArrayLike]"

OnEvent: TypeAlias = Callable[[Event], None]
TARGETS = ("auto", "cpu", "arm", "tensorrt", "tensorrt-rtx")
_MEMORY_SHARE = 0.75
_KEEP_ALL = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came out. ``manifest`` is the published manifest.json, ``reason`` says why this candidate won."""

    name: str
    version: int
    folder: Path
    reason: str
    manifest: dict[str, Any]
    fresh: bool = True
    """False where this very outcome was published already; then that version is named."""

    @property
    def speedup(self) -> float:
        """The original's median latency over the published one's; 1.0 where the original won."""
        return float(((self.manifest.get("result") or {}).get("speedup") or {"value": 1.0})["value"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One run: the files, what is wished of them, and where the result goes."""

    model: Path
    calibration: Path | None = None
    eval: Path | None = None
    teacher: Path | None = None
    """What the model learns from instead of itself: a bigger model with the same inputs and outputs."""
    policy: Policy = field(default_factory=Policy)
    limits: WorkerLimits = field(default_factory=WorkerLimits)
    recipe: Recipe | None = None
    """Replay this recipe instead of searching."""
    out: Path = Path("published")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundled:
    """A bundle that was written. ``document`` is what it says of its candidates; see ``stages.bundle``."""

    name: str
    file: Path
    sha256: str
    bytes: int
    reason: str
    document: dict[str, Any]


def optimize(  # noqa: PLR0913 - the public face: the contract names these
    model: str | os.PathLike[str],
    *,
    calibration: Data | None = None,
    eval: Data | None = None,  # noqa: A002 - the contract's name
    goal: Goal | None = None,
    target: TargetRequest | str | None = None,
    search: Search | None = None,
    out: str | os.PathLike[str] = "published",
    on_event: OnEvent | None = None,
) -> Result:
    """Make the fastest version of ``model`` that is still right on this device; written to ``out/NAME/VERSION/``.

    ``calibration`` and ``eval`` are an .npz file, a folder, or a dict of arrays by input name with the sample as the
    first axis; ``labels`` in ``eval`` holds class indices (n,). ``target`` may be just a name such as ``cpu``.
    ``on_event`` is called with every event of the worker. Raises :class:`~edgeopt.errors.InputError` where the model or
    its data cannot be used, :class:`~edgeopt.errors.ResourceError` where a limit was met.
    """
    request_target = TargetRequest(name=target) if isinstance(target, str) else target  # type: ignore[arg-type]  # run checks it
    policy = Policy(target=request_target or TargetRequest(), goal=goal or Goal(), search=search or Search())
    with tempfile.TemporaryDirectory(prefix="edgeopt-data-") as folder:
        request = Request(
            model=Path(model),
            calibration=_as_path(calibration, Path(folder) / "calibration.npz"),
            eval=_as_path(eval, Path(folder) / "eval.npz"),
            policy=policy,
            limits=default_limits(),
            out=Path(out),
        )
        return run(request, on_event=on_event or (lambda _event: None))


def run(request: Request, *, on_event: OnEvent, state: Path | None = None) -> Result:
    """Stage, work, publish; ``state`` is a folder for staging and cache (default: a temporary one).

    KeyboardInterrupt ends the worker and leaves nothing behind.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as temporary, _output_folder(request.out):
        return _run(request, on_event, state or Path(temporary))


def prepare(request: Request, *, on_event: OnEvent, state: Path | None = None) -> Bundled:
    """Search as :func:`run` does, and write ``out/NAME.edgeopt`` for another device to choose from; replaces an older one."""
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as temporary, _output_folder(request.out):
        folder, order, reason = _worked(request, on_event, state or Path(temporary), prepare=True)
        made = folder.out / f"{order.name}{BUNDLE_SUFFIX}"
        file = request.out / made.name
        _put(made, file)
        return Bundled(
            name=order.name,
            file=file,
            sha256=sha256_of(file),
            bytes=file.stat().st_size,
            reason=reason,
            document=json.loads((folder.out / BUNDLE_FILE).read_text()),
        )


def default_limits() -> WorkerLimits:
    """Limits of a foreground job: three quarters of the memory, at ordinary priority, since somebody waits for it."""
    from edgeopt import device

    return WorkerLimits(memory_bytes=int(device.memory_bytes() * _MEMORY_SHARE), nice=0)


def _run(request: Request, on_event: OnEvent, state: Path) -> Result:
    folder, order, reason = _worked(request, on_event, state, prepare=False)
    published = _publish(folder, order.name, request.out)
    manifest = json.loads((published.folder / MANIFEST_FILE).read_text())
    return Result(
        name=order.name,
        version=published.version,
        folder=published.folder,
        reason=str(manifest.get("verdict", reason)),
        manifest=manifest,
        fresh=published.fresh,
    )


def _worked(request: Request, on_event: OnEvent, state: Path, *, prepare: bool) -> tuple[JobFolder, JobOrder, str]:
    """Stage and run the worker to a good end: its folder, its order, and its reason in one sentence."""
    from edgeopt.daemon import drops, intake, supervise

    _check(request, builds=not prepare)
    drop = drops.of_paths(request.model, calibration=request.calibration, eval_=request.eval, teacher=request.teacher)
    staged = intake.stage(drop, staging_root=state / "staging", policy=request.policy, limits=request.limits)
    order = replace(staged.order, only_recipe=request.recipe, prepare=prepare)
    folder = JobFolder(staged.folder.root)
    folder.order.write_text(wire.dumps(order))
    outcome = supervise.run_worker(
        folder,
        cache_folder(state, order.source.sha256),
        request.limits,
        on_event=on_event,
        should_stop=lambda: None,
    )
    if outcome.kind != "finished":
        raise error_of(outcome)
    return folder, order, outcome.message


def _put(made: Path, file: Path) -> None:
    """Copy a finished file to its place in one rename, so that whoever waits for it never sees a part."""
    temporary = file.with_name(f".{file.name}.part")
    try:
        shutil.copyfile(made, temporary)
        temporary.replace(file)
    except OSError as error:
        raise StorageFault(
            f"{file} cannot be written: {error.strerror}", hint="Make room, or name another --out."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _publish(folder: JobFolder, name: str, out: Path) -> Published:
    from edgeopt.config.schema import Publish
    from edgeopt.daemon import publish

    try:
        # the caller's own folder: nothing in it is removed for being old
        return publish.publish(folder.out, name, out, settings=Publish(keep=_KEEP_ALL))
    except KeyboardInterrupt:
        publish.recover(out)
        raise


def error_of(outcome: Outcome) -> EdgeoptError:
    """The error that an unhappy outcome stands for, in the class of its code; a caller's exit code is 1 for all."""
    if outcome.kind in ("cancelled", "stopped"):
        return JobCancelled("the job was cancelled")
    if outcome.kind == "out-of-memory":
        return OutOfMemory(outcome.message, hint=outcome.hint)
    kind = _class_of(outcome.code)
    message = outcome.message
    if outcome.kind == "crashed" and outcome.tail:
        message = f"{message}; it last said: {outcome.tail.rpartition('|')[2].strip()}"
    return kind(message, hint=outcome.hint)


def _class_of(code: str) -> type[EdgeoptError]:
    waiting: list[type[EdgeoptError]] = [EdgeoptError]
    while waiting:
        kind = waiting.pop()
        if kind.code == code and not issubclass(kind, UsageError):
            return kind
        waiting += kind.__subclasses__()
    return InputError


def _check(request: Request, *, builds: bool) -> None:
    """Refuse before any work what cannot come to anything; ``builds`` says that the target's engines are made here."""
    from edgeopt import catalogue
    from edgeopt.runtimes.trt import flavours

    for path in (request.model, request.calibration, request.eval, request.teacher):
        if path is not None and not path.exists():
            raise UsageError(f"there is no file or folder {str(path)!r}", hint="Name an existing one.")
    target = request.policy.target.name
    if target not in TARGETS:
        raise UsageError(f"there is no target {target!r}", hint=f"Use one of {', '.join(TARGETS)}.")
    flavour = flavours.FLAVOURS.get(target)
    if builds and flavour is not None and flavours.module_of(flavour) is None:
        raise UsageError(f"{target} is not installed here", hint=f"Run {flavour.install}.")
    for step in request.recipe.steps if request.recipe else ():
        if step.technique not in catalogue.PASSES:
            known = ", ".join(sorted(catalogue.PASSES))
            raise UsageError(f"there is no technique {step.technique!r:.80}", hint=f"Use some of {known}.")


@contextmanager
def _output_folder(out: Path) -> Iterator[None]:
    """Make ``out`` before the work, so that a folder that cannot be made costs no search; take it back if unused."""
    made = [path for path in (out, *out.parents) if not path.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageFault(f"{out} cannot be made: {error.strerror}", hint="Name another folder with --out.") from error
    try:
        yield
    except BaseException:
        for path in made:
            with suppress(OSError):  # it is not empty: somebody uses it
                path.rmdir()
        raise


def _as_path(data: Data | None, file: Path) -> Path | None:
    """A path as it is; arrays written to ``file``."""
    if data is None or not isinstance(data, Mapping):
        return None if data is None else Path(data)
    import numpy as np

    arrays = {name: np.asarray(array) for name, array in data.items()}
    np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes every keyword for allow_pickle
    return file
