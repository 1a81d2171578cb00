"""Evidence as a job has it: models are observed with all of the runtime's optimizations, on the integer kernels of this machine."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import builders
import onnx_ir as ir

from edgeopt.device import features
from edgeopt.records import DataOrigin
from edgeopt.runtimes.ort import OnnxRuntime
from edgeopt.stages.evidence import CalibrationEvidence

SATURATES = platform.machine() == "x86_64" and not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(features())
"""x86 kernels without VNNI add two 8-bit products in 16 bits."""


class OnKernels(builders.FakeEvidence):
    """Keeps what was observed, too."""

    def __init__(self, model: ir.Model, folder: Path, *, samples: int = 8) -> None:
        super().__init__(model, samples=samples)
        self.folder = folder
        self.seen: list[ir.Model] = []

    def observe(self, model: ir.Model, names: Sequence[str]) -> Iterator[builders.Arrays]:
        self.seen.append(model)
        return self._job().observe(model, names)

    def run(
        self, model: ir.Model, inputs: Iterable[builders.Arrays], names: Sequence[str]
    ) -> Iterator[builders.Arrays]:
        return self._job().run(model, inputs, names)

    def _job(self) -> CalibrationEvidence:
        assert self.folder is not None
        return CalibrationEvidence(
            calibration=Rows(self._samples),
            signature=self.signature,
            target=self.target,
            observer=lambda file, feeds, names: OnnxRuntime().observe(file, feeds, names, threads=1),
            folder=self.folder,
            seed=0,
        )


class Rows:
    """Samples held in memory."""

    labels = None

    def __init__(self, rows: list[builders.Arrays]) -> None:
        self._rows = rows
        self.origin = DataOrigin(sha256="", samples=len(rows), origin="drop")

    def __len__(self) -> int:
        return len(self._rows)

    def feeds(self, index: int) -> builders.Arrays:
        return self._rows[index]
