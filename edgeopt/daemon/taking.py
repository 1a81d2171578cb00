"""Copying one drop into its job's folder, file by file, each judged before the next.

The work inside ``intake.stage``. The order matters: the model first, since only its bytes tell which external-data files
belong to the drop; then those; then the sidecars. What looks broken but is young raises
:class:`~edgeopt.daemon.take.NotReady`, and the drop is looked at again later.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from edgeopt.daemon import gate, protowalk, samples_folder, take
from edgeopt.daemon.drops import Drop, full_path
from edgeopt.daemon.names import escaped, model_format
from edgeopt.daemon.scan import Stamp, describe
from edgeopt.daemon.storage import storage_errors
from edgeopt.daemon.take import NotReady, Opened, Patience
from edgeopt.errors import (
    BadBundle,
    BadData,
    BadJobFile,
    ConfigError,
    DiskFull,
    EmptyFile,
    MissingExternalData,
    TooLarge,
    TruncatedModel,
    UnsafeFile,
    UnsafeReference,
)
from edgeopt.layout import JobFolder
from edgeopt.orders import StagedFiles
from edgeopt.policy import Policy, WorkerLimits

MODEL, JOB_FILE, CALIBRATION, EVAL, TEACHER = "model.onnx", "job.yaml", "calibration", "eval", "teacher.onnx"
OWN_NAMES = frozenset({MODEL, JOB_FILE, CALIBRATION, EVAL, TEACHER, f"{CALIBRATION}.npz", f"{EVAL}.npz"})
"""Names inside ``input/`` that no external data may take."""
JOB_FILE_BYTES = 64 << 10
RESERVE_BYTES = 64 << 20
RESERVE_TIMES = 3
"""Free space wanted for the copy, its candidates and what is published, in sizes of the drop."""
_SIDECAR_SUFFIXES = (".yaml", ".yml", ".npz")


@dataclass(slots=True)
class Taking:
    """The copy in progress."""

    drop: Drop
    folder: JobFolder
    limits: WorkerLimits
    patience: Patience
    stamps: dict[str, Stamp] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 by name inside ``input/``."""
    sizes: dict[str, int] = field(default_factory=lambda: {"model": 0, "data": 0})
    """Bytes of the model with its external data, and of the samples."""
    needs: tuple[tuple[str, int], ...] = ()
    external: list[str] = field(default_factory=list)
    files: StagedFiles = field(default_factory=lambda: StagedFiles(model=MODEL))

    def take_model(self) -> None:
        path = self.drop.model or ""
        with self.opened(path) as opened:
            self.count(opened, "model")
            gate.refuse_by_content(opened.fd, opened.size_bytes)
            # once on the source, so that a broken file is not copied first, and once on the copy, which is the truth
            protowalk.walk(opened.fd, opened.size_bytes, should_stop=self.patience.should_stop)
            self.wait_for_writer(opened)
            self.copy(opened, MODEL)
        with storage_errors("reading the staged model"), (self.folder.input / MODEL).open("rb") as staged:
            size = os.fstat(staged.fileno()).st_size
            walk = protowalk.walk(staged.fileno(), size, should_stop=self.patience.should_stop)
        self.needs = walk.references

    def take_external_data(self) -> None:
        """Copy every file the model refers to, under its own plain name beside the model."""
        beside = PurePosixPath(self.drop.model or "").parent
        for location, reach in self.needs:
            plain = gate.plain_location(location)
            if plain.split("/")[0] in OWN_NAMES or plain.endswith(_SIDECAR_SUFFIXES) or model_format(plain):
                raise UnsafeReference(
                    f"the external data {escaped(plain)} is named like another file of the drop",
                    hint="Export the model again with external data called like NAME.onnx.data.",
                )
            self.take_one_external(str(beside / plain), plain, reach)

    def take_one_external(self, path: str, plain: str, reach: int) -> None:
        try:
            with self.opened(path) as opened:
                if opened.size_bytes < reach:
                    raise TruncatedModel(
                        f"the external data {escaped(plain)} has {opened.size_bytes} bytes, the model needs {reach}",
                        hint="Copy the whole data file again.",
                    )
                self.wait_until_settled(path)
                if plain not in self.digests:
                    self.count(opened, "model")
                    self.wait_for_writer(opened)
                    self.copy(opened, plain)
                    self.external.append(path)
        except FileNotFoundError:
            self.wait_for(self.drop.model or "", f"the external data {escaped(plain)} has not come yet")
            raise MissingExternalData(
                f"the model refers to {escaped(plain)}, which is not beside it",
                hint="Drop that file together with the model.",
            ) from None

    def take_sidecars(self) -> None:
        if self.drop.job_file is not None:
            self.take_job_file(self.drop.job_file)
        calibration = self.take_data(self.drop.calibration, CALIBRATION)
        evaluation = self.take_data(self.drop.eval, EVAL)
        self.files = replace(self.files, calibration=calibration, eval=evaluation or self.files.eval)
        path = self.drop.teacher or self.named_teacher()
        if path is not None:
            self.take_teacher(path)

    def take_job_file(self, path: str) -> None:
        with self.opened(path) as opened:
            if opened.size_bytes > JOB_FILE_BYTES:
                raise BadJobFile(
                    f"{escaped(path)} has {opened.size_bytes} bytes, more than {JOB_FILE_BYTES}",
                    hint="Keep to the settings that docs/configuration lists.",
                )
            self.copy(opened, JOB_FILE)
        self.files = replace(self.files, job_file=JOB_FILE)

    def named_teacher(self) -> str | None:
        """Where the model lies that the job file calls ``teacher``; what else is wrong with that file, the worker tells."""
        from edgeopt.config import reader  # YAML, which a drop without a job file does not need

        if self.files.job_file is None:
            return None
        with storage_errors("reading the staged job file"):
            text = (self.folder.input / JOB_FILE).read_bytes()
        try:
            name = reader.overlay_job(Policy(), text).teacher
        except ConfigError:
            return None
        if name is None:
            return None
        if not self.drop.folder:
            # beside it in the inbox lies another drop, which leaves when its own turn is over
            raise BadJobFile(
                f"{escaped(self.drop.job_file or '')} names the teacher {escaped(name)}, and this drop is no folder",
                hint="Drop a folder with model.onnx, job.yaml and the teacher in it.",
            )
        path = f"{self.drop.path}/{name}"
        if path == self.drop.model:
            raise BadJobFile(
                f"the job file names the model itself, {escaped(name)}, as its teacher",
                hint="Name the file of a larger model in the same folder, or leave teacher out.",
            )
        if path not in self.drop.members:
            raise BadJobFile(
                f"the job file names the teacher {escaped(name)}, which is not beside the model",
                hint="Put that file into the dropped folder, or leave teacher out.",
            )
        return path

    def take_teacher(self, path: str) -> None:
        """Copy the model to learn from; it must be one ONNX file with its weights inside."""
        if model_format(PurePosixPath(path).name) != "onnx":
            raise BadJobFile(f"the teacher {escaped(path)} is no ONNX model", hint="Export the teacher to ONNX.")
        with self.opened(path) as opened:
            self.count(opened, "data")
            gate.refuse_by_content(opened.fd, opened.size_bytes)
            walk = protowalk.walk(opened.fd, opened.size_bytes, should_stop=self.patience.should_stop)
            if walk.references:
                raise BadJobFile(
                    f"the teacher {escaped(path)} keeps weights in another file",
                    hint="Save the teacher with its weights inside.",
                )
            self.wait_for_writer(opened)
            self.copy(opened, TEACHER)
        self.files = replace(self.files, teacher=TEACHER)

    def take_data(self, path: str | None, role: str) -> str | None:
        """Copy calibration or eval data; the name it has inside ``input/``."""
        if path is None:
            return None
        if samples_folder.is_folder(self.drop, path):
            names = samples_folder.staged_names(self.drop, path, role)
            if not names:
                raise BadData(
                    f"the folder {escaped(path)} holds no samples", hint="Put the samples in, or leave it out."
                )
            for member, name in names.items():
                with self.opened(member) as opened:
                    self.count(opened, "data")
                    self.copy(opened, name)
            return role
        with self.opened(path) as opened:
            self.count(opened, "data")
            gate.refuse_data(opened.fd, opened.size_bytes, name=path, max_bytes=self.limits.model_bytes)
            self.wait_for_writer(opened)
            self.copy(opened, f"{role}.npz")
        return f"{role}.npz"

    def look_at_the_rest(self) -> None:
        """Stamp what else lies in a folder drop, which leaves the inbox with it; nothing but files and folders may."""
        for member in self.drop.members:
            if member in self.stamps:
                continue
            kind, stamp = describe(os.lstat(full_path(self.drop, member)))
            if kind == "file":
                self.stamps[member] = stamp
            elif kind != "dir":
                raise UnsafeFile(f"{escaped(member)} is a {kind}, not a plain file", hint="Drop plain files only.")

    @contextmanager
    def opened(self, path: str) -> Iterator[Opened]:
        """The file, open; what looks broken but is still young becomes :class:`NotReady`."""
        try:
            with take.open_regular(self.drop, path) as opened, storage_errors(f"reading {escaped(path)}"):
                yield opened
        except (EmptyFile, TruncatedModel, BadData, BadBundle) as error:
            self.wait_for(path, error.message)
            raise

    def wait_for(self, path: str, message: str) -> None:
        wait_s = self.patience.wait_s(path)
        if wait_s > 0:
            raise NotReady(f"{message}; it is given {wait_s:.0f} s more", retry_s=min(wait_s, 5.0))

    def wait_until_settled(self, path: str) -> None:
        """External data is known only now, so its own quiet time is asked for here."""
        left_s = self.patience.settle_s - self.patience.quiet_for(path)
        if left_s > 0:
            raise NotReady(f"{escaped(path)} is still changing", retry_s=left_s)

    def wait_for_writer(self, opened: Opened) -> None:
        wait_s = self.patience.wait_s(opened.path, written=True)
        if wait_s > 0 and take.is_written(opened):
            raise NotReady(f"{escaped(opened.path)} is still open for writing", retry_s=5.0)

    def count(self, opened: Opened, part: str, *, times: int = 1) -> None:
        """Add a file to its part's size, and hold the sum against the limit (``times`` as much) and the free space."""
        self.sizes[part] += opened.size_bytes
        most, told = self.limits.model_bytes * times, "" if times == 1 else f" times {times}"
        if self.sizes[part] > most:
            raise TooLarge(
                f"the {part} has {self.sizes[part]} bytes, limits.model_bytes{told} is {most}",
                hint=f"Raise limits.model_bytes or drop a smaller {part}.",
            )
        need = RESERVE_TIMES * sum(self.sizes.values()) + RESERVE_BYTES
        room = os.statvfs(self.folder.root)
        if room.f_bavail * room.f_frsize < need or (room.f_files and not room.f_favail):
            raise DiskFull(
                f"{room.f_bavail * room.f_frsize} bytes are free and the drop needs {need}",
                hint="Free some disk space; the drop stays where it is and goes on by itself.",
            )

    def copy(self, opened: Opened, name: str) -> None:
        target = self.folder.input / name
        if "/" in name:
            with storage_errors("making a folder for the copy"):
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.digests[name] = take.copy(opened, target, should_stop=self.patience.should_stop)
        self.stamps[opened.path] = opened.stamp
