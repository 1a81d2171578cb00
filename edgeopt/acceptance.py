"""The life of a bundle on one screen: ingest > baseline > [ compile > measure ]* > select > report, and nothing is made.

Runs inside the sandboxed worker on the device that will serve. In: a staged job folder whose ``input/`` holds what another
machine prepared (``stages.bundle``). Out: the job's ``out/`` folder and a verdict, as ``pipeline`` leaves them. Every candidate is
opened, judged and timed here by the stages that judge and time what is made here; no pass, no training and no torch is
ever imported. What the bundle says of itself is told in the report and decides nothing but the order.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from edgeopt import catalogue, device, fingerprint, wire
from edgeopt.calibrate.samples import SampleSet
from edgeopt.errors import BadBundle, CandidateError, CompileFailed, MeasureFailed, UnsupportedTarget
from edgeopt.graph import check, endings
from edgeopt.graph.limits import GraphLimits
from edgeopt.graph.load import load_checked
from edgeopt.integrity import model_files
from edgeopt.layout import SAMPLES_FOLDER, JobFolder
from edgeopt.orders import Event, JobOrder
from edgeopt.protocols import Runtime
from edgeopt.records import Artifact, Recipe, Signature, Target, Trial, Verdict
from edgeopt.stages import ahead, attempt, baseline, bundle, ingest, reference, report, select, teachers
from edgeopt.stages.attempt import Workbench
from edgeopt.stages.bundle import Bundle, Candidate
from edgeopt.stages.cache import CandidateCache, conditions
from edgeopt.stages.data import Data
from edgeopt.stages.events import Emit, staged, tell_trial
from edgeopt.stages.evidence import CalibrationEvidence
from edgeopt.stages.ingest import Ingested
from edgeopt.stages.reference import Reference
from edgeopt.stages.runners import Runner
from edgeopt.stages.signature import signature_of

_HINT = "Follow `edgeopt doctor` on this device."


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What was handed over, checked."""

    order: JobOrder
    """With the bundle's policy. Its source is the bundle."""
    bundle: Bundle
    given: Ingested
    data: Data
    target: Target
    runtime: Runtime
    """What serves on this device: ONNX Runtime, or what builds engines here."""
    judge: Runtime | None
    """ONNX Runtime, which says what is right, where engines are served; None where what serves says it itself."""
    folder: JobFolder
    cache: Path

    @property
    def for_engines(self) -> bool:
        return catalogue.find_engines(self.target.name) is not None


def run(
    order: JobOrder, folder: JobFolder, cache_folder: Path, emit: Emit, *, host: device.Host = device.THIS_HOST
) -> Verdict:
    """Choose among a bundle's candidates. Raises an :class:`~edgeopt.errors.EdgeoptError` that says what becomes of the job."""
    with staged("ingest", emit):
        offer = _take_in(order, folder, cache_folder, host)
        for note in _notes(offer, order):
            emit(Event(kind="note", fields={"text": note}))
    with ExitStack() as runners:
        with staged("baseline", emit):
            bench = _workbench(offer, runners, emit)
        facts = {"bundle": order.source.sha256, "eval": offer.data.eval.origin, "target": offer.target}
        facts |= {"goal": bench.goal, "inputs": offer.order.policy.inputs, **conditions(offer.target, host=host)}
        trials = list(_trials(offer, bench, CandidateCache(cache_folder, facts)))
        with staged("select", emit):
            verdict = select.choose(
                trials,
                bench.baseline,
                bench.goal,
                harmless={each.recipe.id for each in offer.bundle.candidates if each.lossless},
                confirm=partial(attempt.confirm, bench=bench),
            )
    with staged("report", emit):
        findings = report.Findings(
            order=offer.order,
            target=offer.target,
            data=offer.data,
            verdict=verdict,
            prepared=bundle.provenance(offer.bundle),
        )
        report.write(findings, folder.out)
    return verdict


# ---------------------------------------------------------------- what came
def _take_in(order: JobOrder, folder: JobFolder, cache_folder: Path, host: device.Host) -> Offer:
    offered = bundle.read(folder.input / order.files.model)
    order = bundle.with_policy(order, offered)
    target = device.detect(order.policy.target, host=host)
    runtime = runtime_for(offered, target, host=host)
    # engines that were judged by the original's own would be right by what both of them get wrong
    has_judge = catalogue.find_engines(target.name) is not None and fingerprint.installed("onnxruntime") is not None
    original = bundle.model_in(folder.input, offered.original)
    files = replace(order.files, model=str(original.relative_to(folder.input)), calibration=None, teacher=None)
    if offered.teacher is not None:
        teacher = bundle.model_in(folder.input, offered.teacher)
        files = replace(files, teacher=str(teacher.relative_to(folder.input)))
    given = ingest.load(folder, replace(order, files=files, source=offered.source))
    if given.eval is None:
        raise BadBundle("the bundle holds no samples to judge by", hint="Drop NAME.eval.npz beside it.")
    if order.files.eval == SAMPLES_FOLDER:
        given.eval.origin = replace(given.eval.origin, origin=offered.eval.origin)
    return Offer(
        order=replace(order, files=files, policy=given.policy),
        bundle=offered,
        given=given,
        # the samples that calibrated stayed where they were; only their hash came along
        data=Data(calibration=SampleSet({}, origin=offered.calibration), eval=given.eval),
        target=target,
        runtime=runtime,
        judge=catalogue.find_runtime("onnxruntime") if has_judge else None,
        folder=folder,
        cache=cache_folder,
    )


def runtime_for(offered: Bundle, target: Target, *, host: device.Host = device.THIS_HOST) -> Runtime:
    """What serves the candidates here; :class:`~edgeopt.errors.UnsupportedTarget` where this is not the device they are for."""
    wanted, engines = offered.target, catalogue.find_engines(target.name)
    told = f"the bundle was prepared for {wanted.name} ({wanted.arch})"
    if engines is not None:
        if not device.gpu_present(host=host):
            raise UnsupportedTarget(
                f"{told}, and there is no NVIDIA GPU here or its driver is not loaded",
                hint="Accept it on the device with the GPU, or prepare it with --target cpu.",
            )
        return engines
    here = device.detect(replace(offered.policy.target, name="auto"), host=host)
    if wanted.name != here.name or (wanted.name == "cpu" and wanted.arch != here.arch):
        raise UnsupportedTarget(
            f"{told}, and this device is {here.name} ({here.arch})",
            hint=f"Accept it on such a device, or prepare the model with --target {here.name}.",
        )
    return catalogue.find_runtime("onnxruntime")


def _notes(offer: Offer, order: JobOrder) -> Iterator[str]:
    made = offer.bundle
    yield (
        f"prepared by edgeopt {made.edgeopt} on {made.machine}: "
        f"{len(made.candidates)} candidates, none of them timed for this device yet"
    )
    if offer.data.eval.origin.samples < made.eval.samples and order.files.eval == SAMPLES_FOLDER:
        yield f"{offer.data.eval.origin.samples} of the {made.eval.samples} samples that judged there came along"
    if order.files.calibration is not None:
        yield "the calibration samples beside the bundle are not used: nothing is quantized here"
    if offer.for_engines and offer.judge is None:
        yield "onnxruntime is not installed here: what is right is what the original's own engine answers"
    yield from offer.given.notes


# ---------------------------------------------------------------- the original
def _workbench(offer: Offer, runners: ExitStack, emit: Emit) -> Workbench:
    """Time the original as this device serves it, and let it answer the samples in ONNX Runtime; everything is held against that."""
    policy, signature = offer.order.policy, offer.given.signature
    ends = endings.final_operators(offer.given.model)
    evidence = _evidence(offer)
    runtime = _serving(offer, signature, evidence, emit)
    artifact = _compiled(offer, runtime, offer.bundle.original, Recipe(), emit=emit)
    try:
        original = runners.enter_context(Runner(artifact))
        judged = _reference(offer, original, ends, partial(_serving, evidence=evidence, emit=emit))
        own = baseline.held(original, artifact, judged, policy)
    except (CompileFailed, MeasureFailed) as error:
        raise BadBundle(f"the original does not run here: {error.message}", hint=error.hint or _HINT) from error
    return Workbench(
        model=offer.given.model,
        signature=signature,
        ends=ends,
        evidence=evidence,
        passes={},
        runtime=runtime,
        target=offer.target,
        goal=own.goal,
        reference=judged,
        original=original,
        baseline=own.trial,
        timed=own.timed,
        folder=offer.folder.work,
        emit=emit,
        seed=policy.search.seed,
        look_s=attempt.look_s(policy.search.budget_s),
    )


def _evidence(offer: Offer) -> CalibrationEvidence:
    return CalibrationEvidence(
        calibration=offer.data.calibration,
        signature=offer.given.signature,
        target=offer.target,
        observer=partial(offer.runtime.observe, threads=offer.target.threads),
        folder=offer.folder.work,
        seed=offer.order.policy.search.seed,
    )


def _serving(offer: Offer, signature: Signature, evidence: CalibrationEvidence, emit: Emit) -> Runtime:
    """The runtime for such a model; one that builds engines, for the samples' shapes, within the job's time, telling how far it is."""
    engines = catalogue.find_engines(offer.target.name)
    if engines is None:
        return offer.runtime
    engines = ahead.within(engines, offer.order.limits, offer.cache, evidence=evidence, emit=emit)
    return ahead.taking(engines, signature.inputs, [offer.data.eval], stated=offer.order.policy.inputs)


def _reference(
    offer: Offer, original: Runner, ends: dict[str, tuple[str, ...]], serving: Callable[[Offer, Signature], Runtime]
) -> Reference:
    """What is right: the answers of the original, or of its teacher, in ONNX Runtime; where that is not here, those of their engines."""
    made_for = (offer.given.signature, ends, offer.folder.work)
    samples, judge = offer.data.eval, offer.judge
    if offer.given.teacher is not None:
        teacher = offer.folder.input / str(offer.order.files.teacher)
        if judge is None and offer.for_engines:
            teacher = _copied(teacher, offer.folder.work / "teacher")
        judge = judge or serving(offer, signature_of(offer.given.teacher))
        return teachers.answers(teacher, samples, runtime=judge, target=offer.target, made_for=made_for)
    if judge is None:
        return reference.make(original, samples, *made_for)
    answering = judge.compile(offer.folder.input / offer.order.files.model, Recipe(), offer.target)
    with Runner(answering) as runner:
        return replace(reference.make(runner, samples, *made_for), own=False)


# ---------------------------------------------------------------- the candidates
def _trials(offer: Offer, bench: Workbench, cache: CandidateCache) -> Iterator[Trial]:
    """A trial of every candidate until the budget ends, the most promising first."""
    budget_s, started_s = offer.order.policy.search.budget_s, time.monotonic()
    count = len(offer.bundle.candidates)
    for number, candidate in enumerate(offer.bundle.candidates, start=1):
        bench.evidence.progress = partial(tell_trial, bench.emit, candidate.recipe.label, (number, count))
        bench.evidence.progress(0.0, "")
        trial = cache.find(candidate.recipe)
        bench.emit(Event(kind="cache", fields={"result": "hit" if trial else "miss"}))
        if trial is None and number > 1 and time.monotonic() - started_s > budget_s:
            yield Trial(recipe=candidate.recipe, refused=f"the budget of {budget_s:g} s was used up before its turn")
            continue
        if trial is None:
            trial = _trial(offer, candidate, bench)
            cache.keep(trial)
        outcome = "measured" if trial.measurement else "failed"
        bench.emit(Event(kind="candidate", fields={"outcome": outcome, "trial": wire.encode(trial)}))
        yield trial


def _trial(offer: Offer, candidate: Candidate, bench: Workbench) -> Trial:
    """Open, judge and time one candidate; what does not open or run here is refused with the reason."""
    started_s = time.monotonic()
    path = bundle.model_in(offer.folder.input, candidate.address)
    limits = GraphLimits(model_bytes=offer.order.limits.model_bytes)
    model = load_checked(path, limits=limits)  # a hostile one ends the job: a bundle is one piece
    try:
        check.verify(model, like=offer.given.model)
        del model
        with staged("compile", bench.emit):
            artifact = _compiled(offer, bench.runtime, candidate.address, candidate.recipe, emit=bench.emit)
        with staged("measure", bench.emit):
            artifact, measurement = bench.examine(artifact, bench)
    except CandidateError as error:
        return Trial(recipe=candidate.recipe, refused=error.refusal, seconds=time.monotonic() - started_s)
    seconds = time.monotonic() - started_s
    return Trial(recipe=candidate.recipe, artifact=artifact, measurement=measurement, seconds=seconds)


def _compiled(offer: Offer, runtime: Runtime, address: str, recipe: Recipe, *, emit: Emit) -> Artifact:
    path = bundle.model_in(offer.folder.input, address)
    if offer.for_engines:
        path = _copied(path, offer.folder.work / "candidates" / recipe.id)
    try:
        return ahead.built(path, runtime, recipe, target=offer.target, emit=emit)
    except CompileFailed as error:
        if recipe.steps:
            raise
        raise BadBundle(f"the original does not open here: {error.message}", hint=error.hint) from error


def _copied(model: Path, folder: Path) -> Path:
    """The model in a folder of the job's own: an engine is written beside its model, and the input is not ours to write to."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in model_files(model):
        shutil.copyfile(file, folder / file.name)
    return folder / model.name
