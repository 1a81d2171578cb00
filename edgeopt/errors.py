"""The error tree: every class says what becomes of the job that met it.

::

    EdgeoptError
    ├── UsageError            the caller's mistake: exit code 2
    │   └── ConfigError       every mistake of a configuration or job file at once
    ├── InputError            the drop can never work as it is: quarantine
    │   ├── EmptyFile, NotAModel, TruncatedModel, ForbiddenFormat, TooLarge
    │   ├── UnsafeReference, MissingExternalData, UnsafeFile
    │   ├── UnsupportedModel, UnsupportedTarget, BadWeights
    │   ├── BadData, BadJobFile, BadBundle
    │   └── BrokenArtifact
    │       └── UnfitArtifact
    ├── CandidateError        this candidate is out, the next one is tried
    │   └── PassFailed, CompileFailed, MeasureFailed
    ├── ResourceError         the job met a limit: retried once, then quarantined
    │   └── OutOfMemory, JobTimeout, WorkerCrashed, BadOutput
    ├── EnvironmentFault      the device's trouble, not the drop's: the job is held and tried again later
    │   └── DiskFull, StorageFault
    ├── JobCancelled          somebody asked for it: nothing is quarantined
    └── DaemonError           the daemon cannot start or go on: it exits
        └── AlreadyRunning, PortInUse, CorruptState

A message is a fact with values. A hint is one imperative sentence. ``code`` is the stable name that goes into
reason.json and into the metric label ``reason``; it is never made out of user input.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import ClassVar


class Disposition(Enum):
    """What happens to the job (or the process) that met the error."""

    QUARANTINE = "quarantine"
    NEXT_CANDIDATE = "next-candidate"
    RETRY_ONCE = "retry-once"
    HOLD = "hold"
    CANCEL = "cancel"
    EXIT = "exit"


class EdgeoptError(Exception):
    """Root of everything edgeopt raises on purpose."""

    code: ClassVar[str] = "error"
    disposition: ClassVar[Disposition] = Disposition.EXIT

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgeoptError):
    """The command line or a call is wrong; exit code 2."""

    code = "usage"


class ConfigError(UsageError):
    """A configuration file is wrong; ``mistakes`` holds one line for every mistake in it."""

    code = "bad-config"

    def __init__(self, message: str, *, hint: str = "", mistakes: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.mistakes = tuple(mistakes)


class InputError(EdgeoptError):
    """The drop cannot be used as it is; it goes to rejected/ with the reason."""

    code = "bad-input"
    disposition = Disposition.QUARANTINE


class EmptyFile(InputError):
    code = "empty-file"


class NotAModel(InputError):
    code = "not-a-model"


class TruncatedModel(InputError):
    code = "truncated-model"


class ForbiddenFormat(InputError):
    """A format that runs code when it is opened (pickle, TorchScript without consent)."""

    code = "forbidden-format"


class TooLarge(InputError):
    code = "too-large"


class UnsafeReference(InputError):
    """External data that points outside of its drop."""

    code = "unsafe-reference"


class MissingExternalData(InputError):
    code = "missing-external-data"


class UnsafeFile(InputError):
    """A symlink, FIFO, device or hard link where a plain file is due."""

    code = "unsafe-file"


class UnsupportedModel(InputError):
    code = "unsupported-model"


class UnsupportedTarget(InputError):
    """A target that nothing on this device can build for."""

    code = "unsupported-target"


class BadWeights(InputError):
    """Weights that are not finite."""

    code = "bad-weights"


class BadData(InputError):
    """Calibration or eval arrays that do not fit the model's inputs."""

    code = "bad-data"


class BadJobFile(InputError):
    """A job.yaml with mistakes; the message lists all of them."""

    code = "bad-job-file"


class BadBundle(InputError):
    """A prepared bundle that is damaged, or that holds what no bundle may."""

    code = "bad-bundle"


class BrokenArtifact(InputError):
    """A published version whose files are not what its manifest says."""

    code = "broken-artifact"


class UnfitArtifact(BrokenArtifact):
    """A whole version that was made for other conditions than those here."""

    code = "unfit-artifact"


class CandidateError(EdgeoptError):
    """One candidate is out; the job goes on with the next."""

    code = "candidate-failed"
    disposition = Disposition.NEXT_CANDIDATE

    @property
    def refusal(self) -> str:
        """Why the candidate is out, in the words of its trial: the code, the fact, and what to do about it."""
        told = f"{self.code}: {self.message}"
        if not self.hint:
            return told
        # what a library said is at the end of some messages, with or without its full stop
        return f"{told}{'' if told.endswith(('.', '!', '?')) else '.'} {self.hint}"


class PassFailed(CandidateError):
    code = "pass-failed"


class CompileFailed(CandidateError):
    code = "compile-failed"


class MeasureFailed(CandidateError):
    code = "measure-failed"


class ResourceError(EdgeoptError):
    """A limit of the job was met; one retry, then quarantine."""

    code = "resource-limit"
    disposition = Disposition.RETRY_ONCE


class OutOfMemory(ResourceError):
    code = "out-of-memory"


class JobTimeout(ResourceError):
    code = "timeout"


class WorkerCrashed(ResourceError):
    """The worker died by a signal or without a last word."""

    code = "worker-crashed"


class BadOutput(ResourceError):
    """What a worker left to publish is not what its manifest says."""

    code = "bad-output"


class EnvironmentFault(EdgeoptError):
    """The device is in trouble; the job waits and its attempts are not counted."""

    code = "environment"
    disposition = Disposition.HOLD


class DiskFull(EnvironmentFault):
    code = "disk-full"


class StorageFault(EnvironmentFault):
    code = "storage-fault"


class JobCancelled(EdgeoptError):
    code = "cancelled"
    disposition = Disposition.CANCEL


class DaemonError(EdgeoptError):
    """The daemon cannot go on."""

    code = "daemon"


class AlreadyRunning(DaemonError):
    code = "already-running"


class PortInUse(DaemonError):
    code = "port-in-use"


class CorruptState(DaemonError):
    code = "corrupt-state"
