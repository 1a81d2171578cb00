"""The worker process: sandbox first, then the pipeline; one job, events on a pipe, an exit code.

``python -m edgeopt.worker --job DIR --cache DIR --events-fd N`` is started by ``daemon.supervise``. It exits 0 after a
``finished`` event and 1 after a ``failed`` one; anything else is a crash to the supervisor. This is the second of the
three places that catch errors: whatever ends the job is told once, as an event.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path

from edgeopt import device, wire
from edgeopt.errors import EdgeoptError, OutOfMemory, StorageFault, WorkerCrashed
from edgeopt.layout import BUNDLE_FORMAT, JobFolder
from edgeopt.orders import Event, JobOrder
from edgeopt.worker import sandbox


class EventPipe:
    """Writes events to the supervisor and remembers the stage, so that a failure can name it."""

    def __init__(self, descriptor: int) -> None:
        self._stream = os.fdopen(descriptor, "w", encoding="utf-8")
        self.stage = "start"

    def __call__(self, event: Event) -> None:
        if event.kind == "stage":
            self.stage = event.fields["stage"]
        self._stream.write(wire.dumps(event) + "\n")
        self._stream.flush()

    def failed(self, error: EdgeoptError) -> None:
        """The job's last word."""
        fields = {
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
            "stage": self.stage,
            "disposition": error.disposition.value,
        }
        self(Event(kind="failed", fields=fields))


def main(arguments: list[str] | None = None) -> int:
    """Run one job; the exit code of the process."""
    parser = argparse.ArgumentParser(prog="edgeopt.worker", description=__doc__)
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--events-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    emit = EventPipe(options.events_fd)
    try:
        return _work(JobFolder(options.job), options.cache, emit)
    except EdgeoptError as error:
        emit.failed(error)
    except MemoryError as error:
        emit.failed(OutOfMemory(f"the worker ran out of memory: {error}", hint="Raise limits.memory."))
    except OSError as error:
        emit.failed(StorageFault(f"{error.strerror or error} ({error.filename or 'no file'})"))
    except Exception as error:  # noqa: BLE001  # the job's last line of defence; the traceback goes to the worker's log
        traceback.print_exc()
        emit.failed(_unforeseen(error))
    return 1


def _work(folder: JobFolder, cache: Path, emit: EventPipe) -> int:
    order = wire.loads(JobOrder, folder.order.read_bytes())
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    write = [folder.work, folder.out, cache]
    report = sandbox.apply(read=[folder.root], write=write, limits=order.limits, gpu=_gpu(order))
    for note in report.notes:
        emit(Event(kind="note", fields={"text": note}))
    # after the sandbox: from here on a hostile model may be in charge
    if order.source.format == BUNDLE_FORMAT:
        from edgeopt import acceptance  # what is accepted was made elsewhere: nothing that makes is imported

        verdict = acceptance.run(order, folder, cache, emit)
    else:
        from edgeopt import pipeline

        verdict = pipeline.run(order, folder, cache, emit)
    emit(Event(kind="finished", fields={"reason": verdict.reason}))
    return 0


def _gpu(order: JobOrder) -> tuple[Path, ...]:
    """The GPU's device files, for a job that may run there: by its policy, or by a job file or a bundle, which are read in the sandbox."""
    told_later = order.files.job_file is not None or order.source.format == BUNDLE_FORMAT
    return device.gpu_nodes() if told_later or order.policy.target.name.startswith("tensorrt") else ()


def _unforeseen(error: Exception) -> EdgeoptError:
    return WorkerCrashed(
        f"{type(error).__name__}: {str(error)[:500]}", hint="Report this with the model: edgeopt did not expect it."
    )


if __name__ == "__main__":
    sys.exit(main())
