"""Candidates for a processor that is not here, such as ARM on an x86 machine: judged in ONNX Runtime on this one, and not timed.

Stands in the place of ``measure`` where the target's artifact is the ONNX file but its instructions are others. In comes a candidate that opens here, out
goes a :class:`~edgeopt.records.Measurement` whose ``measured`` is False. What decides instead of latency is the bytes that one inference moves, summed over
the nodes that ONNX Runtime made of the model, as ``ahead`` does over an engine's layers: an order, and no promise. The memory is what it took here.

Candidates are opened in the graph that ARM runs, by portable kernels that sum the same products (docs/targets.md); these are slow, so that variants are
rehearsed without, where x86 computes layers of signed codes in float on the same codes. The version waits as unverified for its device all the same.
"""

from __future__ import annotations

from dataclasses import replace

from edgeopt.records import Artifact, Interval, Latency, Measurement, Quality, Recipe, Scalar, Trial
from edgeopt.stages import quality
from edgeopt.stages.attempt import Workbench

_AS_THERE: tuple[str, Scalar] = ("fuse_int8_activations", True)
_NOT_TIMED = Latency(p50_ms=0.0, p90_ms=0.0, p99_ms=0.0)


def aimed(bench: Workbench) -> Workbench:
    """The bench whose candidates are judged and not timed; its baseline is the original's, with the bytes that it moves."""
    artifact, judged = bench.baseline.artifact, bench.baseline.measurement
    assert artifact is not None and judged is not None  # noqa: S101, PT018  # the original was opened and judged before
    traffic_bytes = _traffic_bytes(artifact, bench)

    def examine(candidate: Artifact, bench: Workbench) -> tuple[Artifact, Measurement]:
        there = replace(candidate, session=tuple(sorted((*candidate.session, _AS_THERE))))
        return there, _examined(there, bench, traffic_bytes)

    found = _unmeasured(artifact, judged.quality, judged, peak_bytes=judged.peak_memory_bytes, gain=1.0)
    # the searches ask the baseline what one inference costs, and theirs run here
    baseline = Trial(recipe=Recipe(), artifact=artifact, measurement=replace(found, latency=judged.latency))
    return replace(bench, baseline=baseline, examine=examine)


def _examined(artifact: Artifact, bench: Workbench, original_traffic_bytes: int) -> Measurement:
    with bench.start(artifact) as candidate:
        verdict = quality.judge(bench.reference, candidate.run, bench.goal, seed=bench.seed)
        candidate.hold(bench.timed)
        candidate.durations_s(1)
        peak_bytes = candidate.peak_memory_bytes()
    gain = original_traffic_bytes / max(1, _traffic_bytes(artifact, bench))
    original = bench.baseline.measurement
    assert original is not None  # noqa: S101  # see aimed
    return _unmeasured(artifact, verdict, original, peak_bytes=peak_bytes, gain=gain)


def _traffic_bytes(artifact: Artifact, bench: Workbench) -> int:
    return sum(bench.runtime.node_bytes(artifact, bench.timed).values())


def _unmeasured(
    artifact: Artifact, verdict: Quality, original: Measurement, *, peak_bytes: int, gain: float
) -> Measurement:
    return Measurement(
        latency=_NOT_TIMED,
        speedup=Interval(value=gain, low=gain, high=gain),
        bytes=artifact.bytes,
        bytes_ratio=original.bytes / max(1, artifact.bytes),
        peak_memory_bytes=peak_bytes,
        memory_ratio=original.peak_memory_bytes / max(1, peak_bytes),
        quality=verdict,
        measured=False,
    )
