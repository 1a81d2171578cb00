"""Olive's command line ``quantize``, and a run with its static quantization pass on the calibration samples."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from job import Job, run

_HERE = Path(__file__).parent
_OLIVE = Path(sys.executable).parent / "olive"


def quantize(job: Job) -> None:
    work = _work(job)
    choice = ["-m", job.model, "--precision", "int8", "--implementation", "ort", "-o", str(work)]
    _run(job, "quantize", *choice, "--disable_telemetry")


def static(job: Job) -> None:
    work = _work(job)
    samples = {
        "name": "calibration",
        "type": "DataContainer",
        "user_script": str(_HERE / "olive_samples.py"),
        "load_dataset_config": {"type": "calibration_samples"},
        "dataloader_config": {"type": "no_auto_batch_dataloader"},
    }
    device = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    configuration = {
        "input_model": {"type": "OnnxModel", "model_path": job.model},
        "systems": {"here": {"type": "LocalSystem", "accelerators": [device]}},
        "data_configs": [samples],
        "passes": {"quantize": {"type": "OnnxStaticQuantization", "data_config": "calibration"}},
        "host": "here",
        "target": "here",
        "output_dir": str(work),
        "cache_dir": str(work / "cache"),
    }
    (work / "configuration.json").write_text(json.dumps(configuration))
    _run(job, "run", "--config", str(work / "configuration.json"), "--disable_telemetry")


def _work(job: Job) -> Path:
    work = Path(job.out).parent.parent / "olive"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    return work


def _run(job: Job, *arguments: str) -> None:
    """Run Olive and take over the one model that it leaves."""
    work, out = Path(job.out).parent.parent / "olive", Path(job.out)
    feeds = str(Path(job.model).with_name("feeds.npz"))
    environment = {**os.environ, "PEERS_FEEDS": feeds, "OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([str(_OLIVE), *arguments], check=True, cwd=work, env=environment)
    made = [file for file in work.rglob("*.onnx") if "cache" not in file.relative_to(work).parts]
    if not made:
        raise RuntimeError("RuntimeError: Olive ended without an error and left no model")
    shutil.copyfile(made[0], out)
    for data in made[0].parent.glob("*.data"):
        shutil.copyfile(data, out.with_name(data.name))
    shutil.rmtree(work)


if __name__ == "__main__":
    run({"quantize": quantize, "static": static})
