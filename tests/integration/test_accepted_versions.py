"""A version that nobody has run on its device, accepted there: made for another processor for real, then carried to this one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt import device, oneshot
from edgeopt.cli import main
from edgeopt.cli.optimize import read_recipe
from edgeopt.errors import UnfitArtifact
from edgeopt.policy import Goal, Policy, Search, TargetRequest
from tests.published import check_whole

SHIPPED = Path(edgeopt.__file__).parent / "demo"
MODEL, SAMPLES = SHIPPED / "digits.onnx", SHIPPED / "digits.eval.npz"
INT8 = '[{"technique": "tidy"}, {"technique": "quantize_static", "method": "min_max", "per_channel": true}]'

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(device.THIS_HOST.machine == "aarch64", reason="made for the processor that is here"),
]


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits model made for ARM on a machine that is none, for size, which is sure to gain."""
    request = oneshot.Request(
        model=MODEL,
        calibration=SHIPPED / "digits.calibration.npz",
        eval=SAMPLES,
        policy=Policy(
            target=TargetRequest(name="arm", threads=1),
            goal=Goal(objective="size", max_drop=0.02),
            search=Search(budget_s=20.0),
        ),
        recipe=read_recipe(INT8),
        out=tmp_path_factory.mktemp("made"),
    )
    return oneshot.run(request, on_event=lambda _event: None).folder


def carried(version: Path, to: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy whose manifest says something else, with checksums that fit."""
    copied = Path(shutil.copytree(version, to / version.name))
    copied.chmod(0o755)
    manifest = json.loads((copied / "manifest.json").read_text())
    change(manifest)
    for name in ("manifest.json", "SHA256SUMS"):
        (copied / name).chmod(0o644)
    (copied / "manifest.json").write_text(json.dumps(manifest))
    lines = []
    for line in (copied / "SHA256SUMS").read_text().splitlines():
        name = line.split("  ")[1]
        lines.append(f"{hashlib.sha256((copied / name).read_bytes()).hexdigest()}  {name}\n")
    (copied / "SHA256SUMS").write_text("".join(lines))
    return copied


def for_this_device(manifest: dict[str, Any]) -> None:
    here = device.detect(TargetRequest())
    manifest["target"] |= {"name": here.name, "arch": here.arch, "features": list(here.features)}


def test_version_made_elsewhere_is_measured_here_and_may_then_be_loaded(version: Path, tmp_path: Path) -> None:
    copied = carried(version, tmp_path, for_this_device)
    with pytest.raises(UnfitArtifact, match="nobody has run it") as refused:
        edgeopt.load(copied)
    assert "edgeopt accept" in refused.value.hint
    words = ["accept", str(copied), "--original", str(MODEL), "--eval", str(SAMPLES), "--budget", "20s"]
    assert main.main([*words, "--out", str(tmp_path / "published")]) == 0
    manifest = check_whole(tmp_path / "published" / "digits" / "1")
    assert "status" not in manifest
    assert [step["technique"] for step in manifest["recipe"]] == ["tidy", "quantize_static"]
    assert manifest["result"]["latency_ms"]["p50"] > 0
    assert manifest["result"]["quality"]["kind"] == "accuracy"
    assert manifest["prepared"]["source"]["file"] == "digits.onnx"
    with edgeopt.load(tmp_path / "published" / "digits") as model:
        (answer,) = model.run({"image": np.zeros((1, 1, 8, 8), np.float32)})
        assert answer.sum() == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "does not hold the model it was made of (--original) nor samples to judge it by (--eval)"),
        (["--original", str(MODEL)], "does not hold samples to judge it by (--eval)"),
        (["--original", str(SAMPLES), "--eval", str(SAMPLES)], "the version was made of digits.onnx, sha256"),
        (["--original", str(MODEL), "--eval", str(SAMPLES)], "prepared for arm (aarch64), and this device is"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_named_with_the_way_out(
    version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main.main(["accept", str(version), *words, "--out", str(tmp_path / "published")]) != 0
    said = capsys.readouterr().err
    assert told in said
    assert "--prepare" in said or "edgeopt" in said
    assert not (tmp_path / "published").exists()


def test_damaged_and_measured_versions_are_refused(
    version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--original", str(MODEL), "--eval", str(SAMPLES), "--out", str(tmp_path / "published")]
    measured = carried(version, tmp_path / "measured", lambda manifest: manifest.pop("status"))
    assert main.main(["accept", str(measured), *words]) == 2
    assert "was measured on its device already" in capsys.readouterr().err
    damaged = carried(version, tmp_path / "damaged", for_this_device)
    (damaged / "model.onnx").chmod(0o644)
    (damaged / "model.onnx").write_bytes((damaged / "model.onnx").read_bytes() + b"\0")
    assert main.main(["accept", str(damaged), *words]) == 1
    assert "is not what its manifest says" in capsys.readouterr().err
    silent = carried(version, tmp_path / "silent", lambda manifest: manifest["result"].pop("quality"))
    assert main.main(["accept", str(silent), *words]) == 1
    assert "does not say how it was made" in capsys.readouterr().err
