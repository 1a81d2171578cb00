"""``edgeopt inspect`` of an engine: its first bytes, the model beside it, what its manifest says of precision. No TensorRT needed."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import builders
import onnx_ir as ir
import pytest

from edgeopt.cli import optimize
from edgeopt.cli.inspect import describe
from edgeopt.worker.inspect import inspect

ENGINE = {"key": "k", "gpus": ["SM75"], "build_s": 1.0, "products": 4, "int8_products": 0, "quantized_products": 4}
MANIFEST = {"name": "net", "version": 1, "edgeopt": "0", "recipe": [], "artifact": {"engine": ENGINE}}


def engine_file(folder: Path, content: bytes | None = None, name: str = "model.engine") -> Path:
    head = b"vtrt".ljust(16, b"\0") + struct.pack("<Q", 100) + bytes([1, 7, 1, 116]) + b"\0" * 4 + struct.pack("<I", 12)
    file = folder / name
    file.write_bytes(head.ljust(100, b"\0") if content is None else content)
    return file


def said(path: Path) -> str:
    return "\n".join(describe(inspect(path)))


def test_engine_alone_tells_its_release_and_gpus(tmp_path: Path) -> None:
    assert said(engine_file(tmp_path)) == "engine      TensorRT for RTX 1.7.1.116 for SM86, SM89, 100 B"


def test_engine_of_another_layout_tells_its_size(tmp_path: Path) -> None:
    found = said(engine_file(tmp_path, b"ftrt" + bytes(60), "other.engine"))
    assert found == "engine      its first bytes are of no layout that is known, 64 B"


@pytest.mark.parametrize("name", ["", "model.engine"])
def test_engine_of_a_version_tells_its_coverage_and_the_model_beside_it(tmp_path: Path, name: str) -> None:
    engine_file(tmp_path)
    ir.save(builders.mlp(), tmp_path / "model.onnx")
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    lines = said(tmp_path / name).splitlines()
    assert lines[:3] == [
        "engine      TensorRT for RTX 1.7.1.116 for SM86, SM89, 100 B",
        "            0 of 4 layers multiply in int8 on SM75",
        "            warning: 0 of 4 layers run in int8 on SM75: TensorRT undid the quantization of 4, since this GPU has no kernels for it",
    ]
    assert lines[3].startswith("format      onnx")
    assert "provenance" in lines


@pytest.mark.parametrize(("count", "lines"), [(0, 2), (4, 1)])
def test_summary_of_a_job_tells_coverage_and_warns(
    tmp_path: Path, count: int, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest: dict[str, Any] = {**MANIFEST, "artifact": {"engine": {**ENGINE, "int8_products": count}}}
    optimize.print_result(manifest, folder=tmp_path, reason="because")
    told = [line for line in capsys.readouterr().out.splitlines() if "int8" in line]
    assert len(told) == lines
    assert told[0] == f"engine  {count} of 4 layers multiply in int8 on SM75"
    assert all(line.startswith("        warning: 0 of 4") for line in told[1:])
