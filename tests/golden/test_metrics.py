"""/metrics against the committed text and against promtool; the names against the contract."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edgeopt.daemon.metrics import MODEL_SERIES, Metrics, ModelFacts, Present

GOLDEN = Path(__file__).parent / "metrics.txt"
_CREATED = re.compile(r"^(\S+_created(?:\{.*\})?) .*$", re.MULTILINE)

NAMES = {
    "edgeopt_build_info", "edgeopt_target_info", "edgeopt_jobs", "edgeopt_jobs_total",
    "edgeopt_queue_oldest_enqueued_timestamp_seconds", "edgeopt_stage_duration_seconds", "edgeopt_job_duration_seconds",
    "edgeopt_job_progress_ratio", "edgeopt_job_last_success_timestamp_seconds", "edgeopt_model_version",
    "edgeopt_model_latency_seconds", "edgeopt_model_speedup_ratio", "edgeopt_model_size_bytes", "edgeopt_model_quality_ratio",
    "edgeopt_candidates_total", "edgeopt_watch_backend_info", "edgeopt_watch_overflows_total",
    "edgeopt_watch_scan_timestamp_seconds", "edgeopt_cache_requests_total", "edgeopt_paused",
    "edgeopt_config_last_reload_successful", "edgeopt_artifact_stale",
}  # fmt: skip


def filled() -> Metrics:
    metrics = Metrics(build={"version": "0.1.0"}, target={"name": "cpu", "device": "Some CPU", "arch": "x86_64"})
    metrics.job_ended("published", "", seconds=42.0, at_s=1000.0)
    metrics.job_ended("rejected", "not-a-model")
    metrics.job_ended("rejected", "made up by somebody")
    metrics.stage_ended("measure", 3.0)
    metrics.stage_ended("made up\n", 1.0)
    metrics.candidate("measured")
    metrics.candidate("refused")
    metrics.cache_asked(hit=True)
    metrics.scanned(900.0)
    metrics.overflowed(2)
    metrics.reloaded(successful=True)
    metrics.present = Present(
        jobs={"queued": 2, "running": 1},
        oldest_enqueued_s=800.0,
        progress={"digits": 0.5},
        models={
            "digits": ModelFacts(
                name="digits",
                version=3,
                latency_s={"original": {"0.5": 0.002}, "published": {"0.5": 0.001, "0.9": 0.0011}},
                size_bytes={"original": 300, "published": 80},
                speedup_ratio=2.0,
                quality_ratio=0.98,
                quality_kind="accuracy",
                stale=("runtime",),
            )
        },
        paused="window",
        backend="inotify",
    )
    return metrics


def text_of(metrics: Metrics) -> str:
    return _CREATED.sub(r"\1 0", metrics.text().decode())


def test_exposition_is_the_committed_one() -> None:
    assert text_of(filled()) == GOLDEN.read_text()


def test_every_name_of_the_contract_is_there_and_no_other() -> None:
    for metrics in (filled(), Metrics(build={"version": "1"}, target={"name": "cpu"})):
        names = set(re.findall(r"^# TYPE (\S+)", metrics.text().decode(), re.MULTILINE))
        assert {name for name in names if not name.endswith("_created")} == NAMES


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing() -> None:
    for metrics in (filled(), Metrics(build={"version": "1"}, target={"name": "cpu"})):
        done = subprocess.run(["promtool", "check", "metrics"], input=metrics.text(), capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_models_are_capped_and_take_their_series_along() -> None:
    metrics = filled()
    metrics.present.models = {f"m{number}": ModelFacts(name=f"m{number}", version=1) for number in range(5000)}
    assert metrics.text().count(b"edgeopt_model_version{") == MODEL_SERIES
    metrics.present.models = {}
    assert b"edgeopt_model_version{" not in metrics.text()


def test_textfile_is_swapped_in_whole(tmp_path: Path) -> None:
    metrics = filled()
    metrics.write_textfile(tmp_path / "edgeopt.prom")
    metrics.write_textfile(tmp_path / "edgeopt.prom")
    assert text_of(metrics) == _CREATED.sub(r"\1 0", (tmp_path / "edgeopt.prom").read_text())
    assert [entry.name for entry in tmp_path.iterdir()] == ["edgeopt.prom"]
