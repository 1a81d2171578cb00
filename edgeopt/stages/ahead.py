"""Engines for a GPU that is not here: really built, judged through the same ONNX file in ONNX Runtime, and not timed.

Stands in the place of ``measure`` where the target is TensorRT. In comes a candidate that ONNX Runtime opens, out goes its engine with a
:class:`~edgeopt.records.Measurement` whose ``measured`` is False. What decides instead of latency is the bytes that one inference moves, summed over the engine's
own layer table: it orders candidates where memory is the limit, and it is no promise; the version is published as unverified until a device has timed it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from edgeopt.errors import CompileFailed, UnsupportedModel
from edgeopt.graph import save
from edgeopt.layout import ARTIFACT_FILE
from edgeopt.orders import Event
from edgeopt.policy import InputHint, WorkerLimits
from edgeopt.protocols import EngineBuilder, Evidence, Runtime, Samples
from edgeopt.records import Artifact, Interval, Latency, Measurement, Quality, Recipe, Scalar, Target, TensorSpec, Trial
from edgeopt.stages import quality
from edgeopt.stages.attempt import Workbench
from edgeopt.stages.events import Emit, staged

_NOT_TIMED = Latency(p50_ms=0.0, p90_ms=0.0, p99_ms=0.0)
_SHAPES_LOOKED_AT = 256
_AS_THERE: tuple[str, Scalar] = ("float_codes", True)
Stated = Sequence[tuple[str, InputHint]]
"""What a job file says of inputs, by name."""
_ENGINES_FOLDER = "engines"
_BUILD_SHARE = 0.5
"""Of the job's time, for one engine at most: whoever takes longer leaves nothing to compare it with."""


def aimed(bench: Workbench, builder: EngineBuilder, sets: Iterable[Samples], *, stated: Stated = ()) -> Workbench:
    """The bench whose candidates become engines; its baseline is the original's own engine.

    Raises :class:`~edgeopt.errors.UnsupportedModel` where TensorRT does not take the original.
    """
    engines, engine = original_engine(bench, builder, sets, stated)
    judged = bench.baseline.measurement
    assert judged is not None  # noqa: S101  # the original was judged before
    # the searches ask the baseline what one inference costs, and theirs run in ONNX Runtime
    measurement = replace(_unmeasured(engine, judged.quality, engine), latency=judged.latency)
    baseline = Trial(recipe=Recipe(), artifact=engine, measurement=measurement)
    return replace(bench, baseline=baseline, examine=partial(examine, engines=engines))


def original_engine(
    bench: Workbench, builder: EngineBuilder, sets: Iterable[Samples], stated: Stated
) -> tuple[Runtime, Artifact]:
    """The builder for the shapes that the samples have, and the engine of the model as dropped.

    Raises :class:`~edgeopt.errors.UnsupportedModel` where TensorRT does not take it.
    """
    try:
        engines = taking(builder, bench.signature.inputs, sets, stated=stated)
        file = bench.folder / "candidates" / Recipe().id / ARTIFACT_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        save.save(bench.model, file)
        with staged("build", bench.emit, inside="baseline"):
            return engines, built(file, engines, Recipe(), target=bench.target, emit=bench.emit)
    except CompileFailed as error:
        raise UnsupportedModel(error.message, hint=error.hint) from error


def taking(
    builder: EngineBuilder, inputs: Sequence[TensorSpec], sets: Iterable[Samples], *, stated: Stated = ()
) -> Runtime:
    """The builder for the shapes that ``sets`` have and a job file has ``stated``; raises :class:`~edgeopt.errors.CompileFailed`."""
    return builder.taking(inputs, [shapes for samples in sets for shapes in _shapes(samples)], stated=stated)


def candidate_engine(artifact: Artifact, bench: Workbench, engines: Runtime) -> Artifact:
    """The engine of ``artifact``'s ONNX file, beside it; raises :class:`~edgeopt.errors.CompileFailed`."""
    with staged("build", bench.emit, inside="measure"):
        return built(Path(artifact.path), engines, Recipe(), target=bench.target, emit=bench.emit)


def built(model: Path, engines: Runtime, recipe: Recipe, *, target: Target, emit: Emit) -> Artifact:
    """The engine of ``model``, with a note where TensorRT quietly undid its quantization; raises :class:`~edgeopt.errors.CompileFailed`."""
    engine = engines.compile(model, recipe, target)
    if engine.engine is not None and engine.engine.undone:
        emit(Event(kind="note", fields={"text": engine.engine.undone}))
    return engine


def within(
    builder: EngineBuilder, limits: WorkerLimits, cache: Path, *, evidence: Evidence, emit: Emit
) -> EngineBuilder:
    """The builder with its share of the job's time for each engine, which tells how far it is as events and keeps engines in the model's ``cache``."""
    tell, limit_s = partial(_tell, evidence, emit), _BUILD_SHARE * limits.job_timeout_s
    return builder.under(limit_s=limit_s, tell=tell, cache=cache / _ENGINES_FOLDER)


def _tell(evidence: Evidence, emit: Emit, share: float, words: str) -> None:
    """Pass a build's progress on: as part of the candidate that it is for, or of the original before there is one."""
    if (progress := evidence.progress) is not None:
        progress(share, words)
        return
    emit(Event(kind="progress", fields={"ratio": 0.0, "trial": 0, "trials": 0, "text": f"original: {words}"}))


def examine(artifact: Artifact, bench: Workbench, *, engines: Runtime) -> tuple[Artifact, Measurement]:
    """The engine of ``artifact``'s ONNX file, and how right that file is in ONNX Runtime."""
    with bench.start(judged(artifact)) as candidate:
        verdict = quality.judge(bench.reference, candidate.run, bench.goal, seed=bench.seed)
    engine = candidate_engine(artifact, bench, engines)
    original = bench.baseline.artifact
    return engine, _unmeasured(engine, verdict, original or engine)


def judged(artifact: Artifact) -> Artifact:
    """``artifact`` as it is opened to be judged in its engine's place: float arithmetic on the same codes.

    TensorRT adds products of codes up in 32 bits. Kernels of x86 without VNNI saturate at 16, which costs EfficientNet-lite0 15 dB, and no engine does.
    """
    return replace(artifact, session=tuple(sorted((*artifact.session, _AS_THERE))))


def _unmeasured(engine: Artifact, verdict: Quality, original: Artifact) -> Measurement:
    gain = _ratio(_traffic_bytes(original), _traffic_bytes(engine))
    return Measurement(
        latency=_NOT_TIMED,
        speedup=Interval(value=gain, low=gain, high=gain),
        bytes=engine.bytes,
        bytes_ratio=_ratio(original.bytes, engine.bytes),
        peak_memory_bytes=_memory_bytes(engine),
        memory_ratio=_ratio(_memory_bytes(original), _memory_bytes(engine)),
        quality=verdict,
        measured=False,
    )


def _traffic_bytes(engine: Artifact) -> int:
    """What one inference reads and writes; weights and activations once where the builder's table was not readable."""
    facts = engine.engine
    return (facts.traffic_bytes if facts is not None else None) or _memory_bytes(engine)


def _memory_bytes(engine: Artifact) -> int:
    facts = engine.engine
    known = ((facts.weights_bytes or 0) + (facts.activation_bytes or 0)) if facts is not None else 0
    return known or engine.bytes


def _ratio(original: int, own: int) -> float:
    return original / max(1, own)


def _shapes(samples: Samples) -> list[dict[str, tuple[int, ...]]]:
    step = max(1, len(samples) // _SHAPES_LOOKED_AT)
    feeds = (samples.feeds(index) for index in range(0, len(samples), step))
    return [{name: tuple(array.shape) for name, array in each.items()} for each in feeds]
