"""The life of a bundle on one screen: ingest > baseline > [ compile > measure ]* > select > report, and nothing is made.

Runs inside the sandboxed worker on the device that will serve. In: a staged job folder whose ``input/`` holds what another
machine prepared (``stages.bundle``). Out: the job's ``out/`` folder and a verdict, as ``pipeline`` leaves them. Every candidate is
opened, judged and timed here by the stages that judge and time what is made here; no pass, no training and no torch is
ever imported. What the bundle says of itself is told in the report and decides nothing but the order.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from edgeopt import catalogue, device, wire
from edgeopt.calibrate.samples import SampleSet
from edgeopt.errors import BadBundle, CandidateError, CompileFailed, UnsupportedTarget
from edgeopt.graph import check, endings
from edgeopt.graph.limits import GraphLimits
from edgeopt.graph.load import load_checked
from edgeopt.integrity import model_files
from edgeopt.layout import SAMPLES_FOLDER, JobFolder
from edgeopt.orders import Event, JobOrder, StagedFiles
from edgeopt.protocols import Runtime
from edgeopt.records import Artifact, Recipe, Target, Trial, Verdict
from edgeopt.stages import attempt, baseline, bundle, ingest, reference, report, select, teachers
from edgeopt.stages.attempt import Workbench
from edgeopt.stages.bundle import Bundle, Candidate
from edgeopt.stages.cache import CandidateCache, conditions
from edgeopt.stages.data import Data
from edgeopt.stages.events import Emit, staged
from edgeopt.stages.evidence import CalibrationEvidence
from edgeopt.stages.ingest import Ingested
from edgeopt.stages.reference import Reference
from edgeopt.stages.runners import Runner


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
    folder: JobFolder


def run(
    order: JobOrder, folder: JobFolder, cache_folder: Path, emit: Emit, *, host: device.Host = device.THIS_HOST
) -> Verdict:
    """Choose among a bundle's candidates. Raises an :class:`~edgeopt.errors.EdgeoptError` that says what becomes of the job."""
    with staged("ingest", emit):
        offer = _take_in(order, folder, host)
        for note in _notes(offer, order):
            emit(Event(kind="note", fields={"text": note}))
    with ExitStack() as runners:
        with staged("baseline", emit):
            bench = _workbench(offer, runners, emit)
        facts = {"bundle": order.source.sha256, "eval": offer.data.eval.origin, "target": offer.target}
        facts |= {"goal": bench.goal, **conditions(offer.target, host=host)}
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
            prepared=_provenance(offer.bundle),
        )
        report.write(findings, folder.out)
    return verdict


# ---------------------------------------------------------------- what came
def _take_in(order: JobOrder, folder: JobFolder, host: device.Host) -> Offer:
    offered = bundle.read(folder.input / order.files.model)
    order = with_policy(order, offered)
    target = device.detect(order.policy.target, host=host)
    runtime = runtime_for(offered, target, host=host)
    original = bundle.model_in(folder.input, offered.original)
    files = StagedFiles(
        model=str(original.relative_to(folder.input)), job_file=order.files.job_file, eval=order.files.eval
    )
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
        folder=folder,
    )


def with_policy(order: JobOrder, offered: Bundle) -> JobOrder:
    """The bundle's policy; how many threads and how long, this device's configuration says."""
    here, there = order.policy, offered.policy
    target = replace(there.target, threads=here.target.threads, compute_capability=())
    search = replace(there.search, budget_s=here.search.budget_s, trials=None)
    return replace(order, policy=replace(there, target=target, search=search, teacher=None))


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
    yield from offer.given.notes


def _provenance(made: Bundle) -> dict[str, object]:
    """Where the version was prepared, out of which model, and how right its candidates were there."""
    keys = ("name", "device", "arch", "features", "threads")
    return {
        "source": wire.encode(made.source),
        "edgeopt": made.edgeopt,
        "on": made.machine,
        "for": {key: value for key, value in wire.encode(made.target).items() if key in keys},
        "environment": dict(made.environment),
        "eval": wire.encode(made.eval),
        "found": [
            f"{each.recipe.label}: {each.quality.metric} drops by {each.quality.drop:.4g}, at most {each.quality.ci95[1]:.4g}"
            f" (95 %) on {each.quality.samples} samples"
            for each in made.candidates
        ],
    }


# ---------------------------------------------------------------- the original
def _workbench(offer: Offer, runners: ExitStack, emit: Emit) -> Workbench:
    """Run the original over the samples and time it; everything is held against that."""
    policy, signature = offer.order.policy, offer.given.signature
    ends = endings.final_operators(offer.given.model)
    runtime = _for_shapes(offer)
    artifact = _compiled(offer, runtime, offer.bundle.original, Recipe())
    original = runners.enter_context(Runner(artifact))
    judged = _reference(offer, original, ends)
    own = baseline.held(original, artifact, judged, policy)
    return Workbench(
        model=offer.given.model,
        signature=signature,
        ends=ends,
        evidence=CalibrationEvidence(
            calibration=offer.data.calibration,
            signature=signature,
            target=offer.target,
            observer=partial(runtime.observe, threads=offer.target.threads),
            folder=offer.folder.work,
            seed=policy.search.seed,
        ),
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


def _for_shapes(offer: Offer) -> Runtime:
    """The runtime; one that builds engines, for the shapes of the samples."""
    engines = catalogue.find_engines(offer.target.name)
    if engines is None:
        return offer.runtime
    samples = offer.data.eval
    shapes = (
        {name: tuple(array.shape) for name, array in samples.feeds(index).items()} for index in range(len(samples))
    )
    return engines.taking(offer.given.signature.inputs, shapes)


def _reference(offer: Offer, original: Runner, ends: dict[str, tuple[str, ...]]) -> Reference:
    signature, work = offer.given.signature, offer.folder.work
    if offer.bundle.teacher is None:
        return reference.make(original, offer.data.eval, signature, ends, work)
    teacher = bundle.model_in(offer.folder.input, offer.bundle.teacher)
    return teachers.answers(
        teacher, offer.data.eval, runtime=offer.runtime, target=offer.target, made_for=(signature, ends, work)
    )


# ---------------------------------------------------------------- the candidates
def _trials(offer: Offer, bench: Workbench, cache: CandidateCache) -> Iterator[Trial]:
    """A trial of every candidate until the budget ends, the most promising first."""
    budget_s, started_s = offer.order.policy.search.budget_s, time.monotonic()
    count = len(offer.bundle.candidates)
    for number, candidate in enumerate(offer.bundle.candidates, start=1):
        fields = {"ratio": (number - 1) / count, "trial": number, "trials": count, "text": candidate.recipe.label}
        bench.emit(Event(kind="progress", fields=fields))
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
            artifact = _compiled(offer, bench.runtime, candidate.address, candidate.recipe)
        with staged("measure", bench.emit):
            artifact, measurement = bench.examine(artifact, bench)
    except CandidateError as error:
        refused = error.refusal
        return Trial(recipe=candidate.recipe, refused=refused, seconds=time.monotonic() - started_s)
    return Trial(
        recipe=candidate.recipe, artifact=artifact, measurement=measurement, seconds=time.monotonic() - started_s
    )


def _compiled(offer: Offer, runtime: Runtime, address: str, recipe: Recipe) -> Artifact:
    path = bundle.model_in(offer.folder.input, address)
    if catalogue.find_engines(offer.target.name) is not None:
        # an engine is written beside its model, and the input is not ours to write to
        folder = offer.folder.work / "candidates" / recipe.id
        folder.mkdir(parents=True, exist_ok=True)
        for file in model_files(path):
            shutil.copyfile(file, folder / file.name)
        path = folder / path.name
    try:
        return runtime.compile(path, recipe, offer.target)
    except CompileFailed as error:
        if recipe.steps:
            raise
        raise BadBundle(f"the original does not open here: {error.message}", hint=error.hint) from error
