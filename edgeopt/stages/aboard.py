"""Engines for the GPU that is here: built, judged through the engine itself, and timed in turns with the original's own engine.

Stands in the place of ``measure`` where the target is TensorRT and its GPU is in this device; where it is not, ``ahead`` does. In comes a candidate that ONNX Runtime
opens, out goes its engine with a :class:`~edgeopt.records.Measurement`. What is right stays what the original said in ONNX Runtime, so the judge
holds the engine's answers against ONNX Runtime's; what is fast is held against the original's engine, by the GPU's clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from edgeopt.errors import MeasureFailed, UnsupportedModel
from edgeopt.protocols import EngineBuilder, Runtime, Samples
from edgeopt.records import Artifact, Measurement
from edgeopt.stages import ahead, attempt, baseline
from edgeopt.stages.attempt import Workbench


def aimed(
    bench: Workbench, builder: EngineBuilder, sets: Iterable[Samples], runners: ExitStack, *, stated: ahead.Stated = ()
) -> Workbench:
    """The bench whose candidates become engines that run here; its original is the original's own engine, open until ``runners`` closes.

    Raises :class:`~edgeopt.errors.UnsupportedModel` where TensorRT does not take the original, or its engine does not run.
    """
    engines, engine = ahead.original_engine(bench, builder, sets, stated)
    # not by definition as right as the original: it is another runtime on another processor
    judged = replace(bench.reference, own=False)
    try:
        original = runners.enter_context(bench.start(engine))
        original.hold(bench.timed)
        own = baseline.measured(original, engine, judged, bench.goal, seed=bench.seed)
    except MeasureFailed as error:
        raise UnsupportedModel(
            f"the original's engine does not run here: {error.message}", hint="Set target.name to cpu for this model."
        ) from error
    return replace(bench, reference=judged, original=original, baseline=own, examine=partial(examine, engines=engines))


def examine(artifact: Artifact, bench: Workbench, *, engines: Runtime) -> tuple[Artifact, Measurement]:
    """The engine of ``artifact``'s ONNX file, judged and timed as it will serve."""
    engine = ahead.candidate_engine(artifact, bench, engines)
    return engine, attempt.measured(engine, bench)
