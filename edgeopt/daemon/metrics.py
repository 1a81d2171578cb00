"""What /metrics says: the daemon's state, its workers' events and its published models, in Prometheus' words.

Counters and histograms grow with events; everything that has a present value (states, models, progress) is written down
anew at each scrape from what the loop set last, so a model that is gone takes its series along by itself. Labels never
come from a drop unbounded: ``model`` is a slug and capped, ``reason`` and ``stage`` come out of fixed sets.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from edgeopt.daemon import storage
from edgeopt.daemon.jobs import STATES
from edgeopt.daemon.neighbour import REASONS
from edgeopt.errors import EdgeoptError

MODEL_SERIES = 500
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STAGE_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_JOB_BUCKETS_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)
_STAGES = frozenset(
    {
        "sandbox",
        "ingest",
        "plan",
        "baseline",
        "compress",
        "calibrate",
        "compile",
        "measure",
        "search",
        "select",
        "report",
    }
)
_OUTCOMES = frozenset({"measured", "refused", "failed"})
_VERSION = re.compile(r"[A-Za-z0-9.+_-]{1,64}")


def _all_codes(root: type[EdgeoptError]) -> Iterator[str]:
    yield root.code
    for child in root.__subclasses__():
        yield from _all_codes(child)


CODES = frozenset(_all_codes(EdgeoptError))
"""Every ``reason`` there can be; another one is counted as ``other``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What is published under one name. Latencies map the quantile (``0.5``) to seconds."""

    name: str
    version: int
    latency_s: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """``original`` and ``published``."""
    size_bytes: Mapping[str, float] = field(default_factory=dict)
    speedup_ratio: float | None = None
    quality_ratio: float | None = None
    quality_kind: str = ""
    stale: tuple[str, ...] = ()
    seen_stale: tuple[str, ...] = ()
    """Reasons that held at some time since the start: their series fall to 0 instead of going away."""


@dataclass(slots=True, kw_only=True)
class Present:
    """The values of now; the loop replaces the parts, a scrape reads them."""

    jobs: Mapping[str, int] = field(default_factory=dict)
    oldest_enqueued_s: float | None = None
    progress: Mapping[str, float] = field(default_factory=dict)
    models: Mapping[str, ModelFacts] = field(default_factory=dict)
    paused: str | None = None
    backend: str = ""


class Metrics:
    """The registry; every method may be called from any thread."""

    def __init__(self, *, build: Mapping[str, str], target: Mapping[str, str]) -> None:
        self.present = Present()
        self._lock = threading.Lock()
        self._registry = registry = CollectorRegistry(auto_describe=False)
        self._infos = {"build": dict(build), "target": dict(target)}
        self._jobs = Counter(
            "edgeopt_jobs", "Jobs that ended, by result and reason.", ["result", "reason"], registry=registry
        )
        self._stages = Histogram(
            "edgeopt_stage_duration_seconds",
            "Time spent in each stage of a job.",
            ["stage"],
            buckets=_STAGE_BUCKETS_S,
            registry=registry,
        )
        self._durations = Histogram(
            "edgeopt_job_duration_seconds",
            "Time from the start of a job's worker to its outcome.",
            buckets=_JOB_BUCKETS_S,
            registry=registry,
        )
        self._success = Gauge(
            "edgeopt_job_last_success_timestamp_seconds",
            "When a job last ended with a published version.",
            registry=registry,
        )
        self._candidates = Counter(
            "edgeopt_candidates", "Candidates that jobs have tried, by outcome.", ["outcome"], registry=registry
        )
        self._cache = Counter(
            "edgeopt_cache_requests", "Look-ups of finished candidates.", ["result"], registry=registry
        )
        self._overflows = Counter(
            "edgeopt_watch_overflows",
            "Times the kernel dropped file events; each one starts a full scan.",
            registry=registry,
        )
        self._scan = Gauge(
            "edgeopt_watch_scan_timestamp_seconds", "When the inbox was last scanned.", registry=registry
        )
        self._reload = Gauge(
            "edgeopt_config_last_reload_successful",
            "Whether the last reload of the configuration worked.",
            registry=registry,
        )
        self._reload.set(1)
        # a series that is born with its first count hides that count from increase()
        for outcome in sorted(_OUTCOMES):
            self._candidates.labels(outcome=outcome)
        for result in ("hit", "miss"):
            self._cache.labels(result=result)
        registry.register(_PresentCollector(self))

    # ------------------------------------------------------------ events
    def job_ended(self, result: str, reason: str, *, seconds: float | None = None, at_s: float = 0.0) -> None:
        """Count an outcome; ``reason`` is an error code or empty. ``at_s`` is the wall clock of a success."""
        self._jobs.labels(result=result, reason=reason if reason in CODES else "other" if reason else "none").inc()
        if seconds is not None:
            self._durations.observe(seconds)
        if result == "published":
            self._success.set(at_s)

    def stage_ended(self, stage: str, seconds: float) -> None:
        self._stages.labels(stage=stage if stage in _STAGES else "other").observe(max(0.0, seconds))

    def candidate(self, outcome: str) -> None:
        self._candidates.labels(outcome=outcome if outcome in _OUTCOMES else "failed").inc()

    def cache_asked(self, *, hit: bool) -> None:
        self._cache.labels(result="hit" if hit else "miss").inc()

    def scanned(self, at_s: float) -> None:
        self._scan.set(at_s)

    def overflowed(self, times: int) -> None:
        self._overflows.inc(times)

    def reloaded(self, *, successful: bool) -> None:
        self._reload.set(1 if successful else 0)

    # ------------------------------------------------------------ output
    def text(self) -> bytes:
        """The whole exposition, text format 0.0.4."""
        with self._lock:
            return generate_latest(self._registry)

    def write_textfile(self, path: Path) -> None:
        """For node_exporter's textfile collector; raises :class:`~edgeopt.errors.EnvironmentFault`."""
        with storage.storage_errors(f"writing {path.name}"):
            storage.replace_file(path, self.text())

    def infos(self) -> Iterator[Metric]:
        yield InfoMetricFamily("edgeopt_build", "The running edgeopt.", value=self._infos["build"])
        yield InfoMetricFamily("edgeopt_target", "The device that models are made for.", value=self._infos["target"])


class _PresentCollector(Collector):
    """Writes :class:`Present` down at each scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        now = self._metrics.present
        yield from self._metrics.infos()
        yield _gauge(
            "edgeopt_jobs", "Jobs by state.", ("state",), (((state,), now.jobs.get(state, 0)) for state in STATES)
        )
        oldest = [] if now.oldest_enqueued_s is None else [((), now.oldest_enqueued_s)]
        yield _gauge(
            "edgeopt_queue_oldest_enqueued_timestamp_seconds",
            "When the oldest waiting job came; absent without one.",
            (),
            oldest,
        )
        yield _gauge(
            "edgeopt_job_progress_ratio",
            "How far the running job of a model is.",
            ("model",),
            (((model,), ratio) for model, ratio in sorted(now.progress.items())[:MODEL_SERIES]),
        )
        yield _gauge(
            "edgeopt_paused",
            "Whether no job may start, by reason.",
            ("reason",),
            (((reason,), float(reason == now.paused)) for reason in REASONS),
        )
        backends = [((now.backend,), 1.0)] if now.backend else []
        yield _gauge("edgeopt_watch_backend_info", "How the inbox is watched.", ("backend",), backends)
        yield from _models([now.models[name] for name in sorted(now.models)[:MODEL_SERIES]])


def _models(models: list[ModelFacts]) -> Iterator[Metric]:
    yield _gauge(
        "edgeopt_model_version",
        "The version that current points to.",
        ("model",),
        (((model.name,), model.version) for model in models),
    )
    yield _latencies(models)
    yield _gauge(
        "edgeopt_model_speedup_ratio",
        "Latency of the original over that of the published version.",
        ("model",),
        (((model.name,), model.speedup_ratio) for model in models if model.speedup_ratio is not None),
    )
    yield _gauge(
        "edgeopt_model_size_bytes",
        "Size on disk.",
        ("model", "variant"),
        (((model.name, variant), size) for model in models for variant, size in model.size_bytes.items()),
    )
    yield _gauge(
        "edgeopt_model_quality_ratio",
        "Quality of the published version, by the kind of evidence.",
        ("model", "kind"),
        (
            ((model.name, model.quality_kind), model.quality_ratio)
            for model in models
            if model.quality_ratio is not None
        ),
    )
    yield _gauge(
        "edgeopt_artifact_stale",
        "Published under other conditions than today's, by what changed.",
        ("model", "reason"),
        (
            ((model.name, reason), float(reason in model.stale))
            for model in models
            for reason in dict.fromkeys((*model.stale, *model.seen_stale))
        ),
    )


def _latencies(models: list[ModelFacts]) -> Metric:
    # ``quantile`` belongs to summaries: as a gauge's label it would be a finding of promtool
    family = Metric("edgeopt_model_latency_seconds", "Latency of one inference as measured by its job.", "summary")
    for model in models:
        for variant, quantiles in model.latency_s.items():
            for quantile, seconds in quantiles.items():
                labels = {"model": model.name, "variant": variant, "quantile": quantile}
                family.add_sample("edgeopt_model_latency_seconds", labels, seconds)
    return family


def _gauge(
    name: str, text: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def label(text: str) -> str:
    """A version or device text fit for an info label."""
    return (
        text if _VERSION.fullmatch(text) else "".join(character for character in text if character.isprintable())[:100]
    )
