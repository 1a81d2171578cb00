"""Second step: every tool's artifact, made once, with what it cost; a failure is a value like any other.

::

    artifacts/MODEL/TOOL-RECIPE/KEY/out/model.onnx     the artifact (external data beside it)
                                    record.json        written last: what came of it
                                    log.txt            what the tool said

KEY is the hash of all that the artifact depends on (model, samples, script, pinned versions), so what exists is not made
again and what changed is. Time is measured on the tool's whole process tree. The machine is shared, so the limit and the
fair figure are CPU seconds; wall seconds are reported beside them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeopt.integrity import sha256_of

from .field import HERE, OWN, Entry
from .prepare import Prepared

ROOT = HERE.parent.parent
_IDLE_S, _LEAST_CPU_S = 180.0, 0.5
"""What computes less than this in so long hangs and must end, too. Polls are counted, no clock is read: at low priority,
or with all of this stopped for somebody's measurement, wall time passes that the tool did not have."""
_POLL_S, _GRACE_S = 0.5, 10.0
_RECORD, _LOG = "record.json", "log.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What came of one entry on one model; ``failure`` is empty where there is an artifact."""

    model: str
    """Path of the artifact's ONNX file."""
    wall_s: float
    cpu_s: float
    peak_memory_bytes: int
    """The largest of the tool's processes."""
    limit_s: float = 0.0
    failure: str = ""
    notes: tuple[str, ...] = ()

    @property
    def is_from_lack_of_time(self) -> bool:
        return self.failure.startswith("no result within")


# ---------------------------------------------------------------- where things lie
def key_of(entry: Entry, given: Prepared) -> str:
    """Hash of everything that the artifact depends on."""
    parts = [entry.key, *(sha256_of(file) for file in (given.model, given.calibration, *_sources(entry)))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _sources(entry: Entry) -> Iterable[Path]:
    if entry.tool == OWN:
        return sorted((ROOT / "edgeopt").rglob("*.py"))
    return (entry.requirements, entry.script)


def find(entry: Entry, given: Prepared, work: Path) -> tuple[Record | None, bool]:
    """The record of an entry's artifact, and whether it was made from what lies here now.

    Without one for the present sources the newest older one counts, so that measuring never depends on making again.
    """
    home = work / "artifacts" / given.name / entry.key
    exact = home / key_of(entry, given) / _RECORD
    if exact.exists():
        return _read(exact), True
    older = sorted(home.glob(f"*/{_RECORD}"), key=lambda file: file.stat().st_mtime)
    return (_read(older[-1]), False) if older else (None, False)


def _read(file: Path) -> Record:
    fields = json.loads(file.read_text())
    return Record(**{**fields, "notes": tuple(fields["notes"])})


# ---------------------------------------------------------------- environments
def environment(entry: Entry, venvs: Path) -> str:
    """Make the tool's virtual environment where it is missing; the reason where it cannot be made, else nothing."""
    home = venvs / entry.tool
    stamp, wanted = home / "installed.txt", entry.requirements.read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return ""
    print(f"installing {entry.tool}", file=sys.stderr, flush=True)
    if not (home / "bin" / "python").exists():
        venv.create(home, with_pip=True)
    install = [home / "bin" / "python", "-m", "pip", "install", "--quiet", "--requirement", entry.requirements]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"does not install: {_last_line(done.stderr)}"
    stamp.write_text(wanted)
    return ""


# ---------------------------------------------------------------- making
def produce(entry: Entry, given: Prepared, work: Path, *, limit_s: float, again: bool) -> Record:
    """The entry's artifact for a model, made if it is not there.

    ``again`` tries what failed once more; what ran out of time is tried again only with a longer limit.
    """
    record, is_present = find(entry, given, work)
    if record is not None and is_present and not _is_worth_another_try(record, limit_s, again=again):
        return record
    home = work / "artifacts" / given.name / entry.key / key_of(entry, given)
    (home / "out").mkdir(parents=True, exist_ok=True)
    if entry.tool != OWN and (reason := environment(entry, work / "venvs")):
        made = Record(model="", wall_s=0.0, cpu_s=0.0, peak_memory_bytes=0, limit_s=limit_s, failure=reason)
    else:
        made = _run(entry, _command(entry, given, home, work), home, limit_s)
    (home / _RECORD).write_text(json.dumps(asdict(made), indent=1))
    return made


def _is_worth_another_try(record: Record, limit_s: float, *, again: bool) -> bool:
    if record.is_from_lack_of_time:
        return record.limit_s < limit_s
    return again and bool(record.failure)


_WISHES = """search: {budget: 2m}
"""


def _command(entry: Entry, given: Prepared, home: Path, work: Path) -> list[str]:
    out = home / "out"
    if entry.tool != OWN:
        python = work / "venvs" / entry.tool / "bin" / "python"
        return [str(python), str(entry.script), entry.recipe, str(_private(given, home)), str(out / "model.onnx")]
    samples = ["--calibration", str(given.calibration), "--eval", str(given.eval)]
    (home / "job.yaml").write_text(_WISHES)
    wishes = ["--objective", entry.recipe, "--job", str(home / "job.yaml"), "--out", str(out)]
    return [sys.executable, "-m", "edgeopt", "optimize", str(given.model), *samples, *wishes]


def _private(given: Prepared, home: Path) -> Path:
    """A copy of the model's folder: one of the tools writes into the model that it is given."""
    return Path(shutil.copytree(given.folder, home / "in", dirs_exist_ok=True))


def _run(entry: Entry, command: list[str], home: Path, limit_s: float) -> Record:
    started = time.monotonic()
    with (home / _LOG).open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=home,
            start_new_session=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""},
        )
        status, usage, is_late = wait_for(process, limit_s)
    shutil.rmtree(home / "in", ignore_errors=True)
    said = (home / _LOG).read_text(errors="replace")
    model = _artifact(entry, home / "out")
    if is_late:
        failure = f"no result within {limit_s:.0f} s"
    elif status:
        failure = failure_in(said) or f"ended with status {status}"
    else:
        failure = "" if model else "left no model, without an error"
    return Record(
        model=str(model) if model and not failure else "",
        wall_s=time.monotonic() - started,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_memory_bytes=usage.ru_maxrss * 1024,
        limit_s=limit_s,
        failure=failure,
        notes=tuple(dict.fromkeys(re.findall(r"^NOTE (.{1,160})", said, re.MULTILINE))),
    )


def wait_for(process: subprocess.Popen[bytes], limit_s: float) -> tuple[int, os.struct_rusage, bool]:
    """(exit status, what its process tree used, whether it had to be ended)."""
    polls, busy_at, busy_cpu_s, ended_at = 0, 0, 0.0, None
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage, ended_at is not None
        used_s = cpu_seconds(process.pid)
        if used_s - busy_cpu_s >= _LEAST_CPU_S:
            busy_at, busy_cpu_s = polls, used_s
        if ended_at is None and (used_s > limit_s or (polls - busy_at) * _POLL_S > _IDLE_S):
            ended_at = polls
            os.killpg(process.pid, signal.SIGTERM)
        elif ended_at is not None and (polls - ended_at) * _POLL_S > _GRACE_S:
            os.killpg(process.pid, signal.SIGKILL)
        polls += 1
        time.sleep(_POLL_S)


def cpu_seconds(session: int) -> float:
    """User and system seconds of a session's processes and of those they have waited for."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(") ")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[3]) == session:
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def _artifact(entry: Entry, out: Path) -> Path | None:
    """The ONNX file that was left: by a tool under the name it was given, by edgeopt as the current version."""
    found = sorted(out.glob("*/current/model.onnx")) if entry.tool == OWN else [out / "model.onnx"]
    return found[-1] if found and found[-1].exists() else None


def failure_in(said: str) -> str:
    """The last error that a tool's output names, on one line."""
    errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Fail|InvalidGraph|NotImplemented)\b.*", said, re.MULTILINE)
    return " ".join((errors[-1] if errors else _last_line(said)).split())[:240]


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:240] if lines else ""
