"""The life of a model on one screen: ingest > plan > [ compress > compile > measure ]* > select > report.

Runs inside the sandboxed worker. In: a staged job folder and its order. Out: the job's ``out/`` folder and a verdict.
Every candidate is measured on this device against the original; the original is a candidate too.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgeopt import catalogue, device
from edgeopt.calibrate import samples as sample_sets
from edgeopt.calibrate.collect import fingerprint
from edgeopt.errors import UnsupportedTarget
from edgeopt.graph import endings
from edgeopt.layout import JobFolder
from edgeopt.orders import Event, JobOrder
from edgeopt.protocols import EngineBuilder, Pass, Runtime, Samples
from edgeopt.records import Artifact, Recipe, Step, Target, Trial, Verdict
from edgeopt.stages import (
    aboard,
    ahead,
    attempt,
    baseline,
    bundling,
    elsewhere,
    ingest,
    planner,
    reference,
    report,
    select,
    teachers,
)
from edgeopt.stages import data as assignment
from edgeopt.stages.attempt import Workbench
from edgeopt.stages.cache import CandidateCache, conditions
from edgeopt.stages.data import Data
from edgeopt.stages.events import Emit, staged
from edgeopt.stages.evidence import CalibrationEvidence
from edgeopt.stages.ingest import Ingested
from edgeopt.stages.reference import Reference
from edgeopt.stages.runners import Runner
from edgeopt.stages.search import Search

_MADE_UP_SAMPLES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is known before anything is measured."""

    order: JobOrder
    given: Ingested
    data: Data
    target: Target
    runtime: Runtime
    engines: EngineBuilder | None
    """Builds what the target serves, where that is no ONNX file."""
    passes: dict[str, Pass]
    folder: JobFolder


def run(
    order: JobOrder, folder: JobFolder, cache_folder: Path, emit: Emit, *, host: device.Host = device.THIS_HOST
) -> Verdict:
    """Work off one job. Raises an :class:`~edgeopt.errors.EdgeoptError` that says what becomes of it.

    ``host`` is where the conditions are read from that finished candidates are found again under.
    """
    with staged("ingest", emit):
        job = _take_in(order, folder)
        for note in job.given.notes:
            emit(Event(kind="note", fields={"text": note}))
    with staged("plan", emit):
        recipes, left_out = _plan(job)
    with ExitStack() as runners:
        with staged("baseline", emit):
            artifact, original = _open_original(job, runners)
            job = _with_inputs_that_run(job, original)
            bench = _workbench(job, artifact, original, emit)
            if job.engines is not None:
                builder = ahead.within(job.engines, job.order.limits, cache_folder, evidence=bench.evidence, emit=emit)
                bench = _with_engines(builder, job, bench, runners)
            elif not device.is_here(job.target) or _is_for_engines(job.target):
                bench = elsewhere.aimed(bench)
        policy = job.order.policy
        cache = CandidateCache(cache_folder, _facts(job, host))
        search = Search(bench, cache, policy.search, techniques=policy.techniques)
        trials = search.fixed(recipes) if job.order.only_recipe else search.run(recipes)
        if order.prepare:
            return _bundled(job, bench, trials, _harmless(recipes, job.passes), emit)
        with staged("select", emit):
            verdict = select.choose(
                [*trials, *left_out],
                bench.baseline,
                bench.goal,
                harmless=_harmless(recipes, job.passes),
                confirm=partial(attempt.confirm, bench=bench),
            )
    with staged("report", emit):
        judged_in = ahead.judged(artifact) if job.engines is not None else None
        findings = report.Findings(
            order=job.order,
            target=job.target,
            data=job.data,
            verdict=verdict,
            frailty=search.frailty,
            judged_in=judged_in,
        )
        report.write(findings, folder.out)
    return verdict


def _with_engines(builder: EngineBuilder, job: Job, bench: Workbench, runners: ExitStack) -> Workbench:
    """The bench whose candidates become engines: measured where their GPU is here, else built ahead of time."""
    sets, stated = (job.data.calibration, job.data.eval), job.order.policy.inputs
    if job.target.compute_capability or not device.gpu_present():
        return ahead.aimed(bench, builder, sets, stated=stated)
    return aboard.aimed(bench, builder, sets, runners, stated=stated)


def _bundled(job: Job, bench: Workbench, trials: list[Trial], harmless: set[str], emit: Emit) -> Verdict:
    """Hand the choice on: what is right goes into a bundle, and the device that it is for decides."""
    order, teacher = job.order, job.order.files.teacher
    original = bench.baseline.artifact
    assert original is not None  # noqa: S101  # the baseline always has one
    with staged("bundle", emit):
        made = bundling.write(
            bundling.Prepared(
                order=order,
                target=job.target,
                calibration=job.data.calibration.origin,
                reference=bench.reference,
                baseline=original,
                trials=trials,
                goal=bench.goal,
                harmless=harmless,
                teacher=None if teacher is None else job.folder.input / teacher,
            ),
            job.folder.out,
            scratch=job.folder.work,
        )
    reason = (
        f"{len(made.candidates)} of {len(trials)} candidates are right enough; the device that accepts them decides."
    )
    return Verdict(winner=bench.baseline, baseline=bench.baseline, trials=(bench.baseline, *trials), reason=reason)


def _take_in(order: JobOrder, folder: JobFolder) -> Job:
    given = ingest.load(folder, order)
    policy = given.policy
    order = replace(order, policy=policy)
    target = device.detect(policy.target)
    engines = catalogue.find_engines(policy.target.name)
    if order.prepare and engines is not None and engines.refuse(given.signature, target):
        engines = None  # the device builds its own; here the ONNX files that they are made of are found
    made_up = _made_up(order, given, sample_sets.GUESSES[0])
    return Job(
        order=order,
        given=given,
        data=assignment.assign(given.calibration, given.eval, made_up, ordered=bool(given.signature.states)),
        target=target,
        runtime=catalogue.find_runtime("onnxruntime"),
        engines=engines,
        passes={name: catalogue.find_pass(name) for name in catalogue.PASSES},
        folder=folder,
    )


def _made_up(order: JobOrder, given: Ingested, guess: sample_sets.Guess) -> Samples:
    policy = order.policy
    return sample_sets.synthetic(
        given.signature, policy.inputs, seed=policy.search.seed, count=_MADE_UP_SAMPLES, guess=guess
    )


def _plan(job: Job) -> tuple[tuple[Recipe, ...], tuple[Trial, ...]]:
    """What to try and what not; :class:`UnsupportedTarget` where no runtime here serves the target."""
    left_to_device = job.order.prepare and job.engines is None and _is_for_engines(job.target)
    if not left_to_device and (reason := (job.engines or job.runtime).refuse(job.given.signature, job.target)):
        raise UnsupportedTarget(reason, hint="Set target.name to auto, or follow `edgeopt doctor`.")
    if (only := job.order.only_recipe) is not None:
        for step in only.steps:
            catalogue.find_pass(step.technique)  # an unknown one is the caller's mistake
        return (only,), ()
    plan = _plan_for_others(job) if job.order.prepare else _plan_for(job, job.target)
    if job.given.teacher is None:
        return plan.recipes, plan.left_out
    reason = job.passes["distill"].refuse(job.given.signature, job.target)
    if reason := "there are no samples to learn from" if job.data.synthetic else reason:
        untaught = Trial(recipe=Recipe(steps=(Step.of("distill"),)), refused=reason)
        return plan.recipes, (*plan.left_out, untaught)
    return teachers.taught(plan.recipes, job.order.policy), plan.left_out


def _plan_for(job: Job, target: Target) -> planner.Plan:
    return planner.plan(
        job.given.signature, target, job.order.policy, passes=job.passes, has_samples=not job.data.synthetic
    )


def _plan_for_others(job: Job) -> planner.Plan:
    """What may be best on some device of the target's kind: this one's instruction sets, none of them, all of them."""
    kinds = [job.target, *(replace(job.target, features=features) for features in ((), tuple(device.FEATURES)))]
    plans = [_plan_for(job, target) for target in kinds]
    recipes = tuple(dict.fromkeys(recipe for plan in plans for recipe in plan.recipes))
    return planner.Plan(recipes=recipes[: job.order.policy.search.trials], left_out=plans[0].left_out)


def _is_for_engines(target: Target) -> bool:
    return target.name in catalogue.RUNTIMES


def _open_original(job: Job, runners: ExitStack) -> tuple[Artifact, Runner]:
    file = baseline.whole(job.folder.input / job.order.files.model, job.given.model, job.folder.work)
    artifact = job.runtime.compile(file, Recipe(), job.target)
    return artifact, runners.enter_context(Runner(artifact))


def _with_inputs_that_run(job: Job, original: Runner) -> Job:
    """The job; where nothing was dropped beside the model, with made-up inputs of a shape that the model takes."""
    if not job.data.synthetic:
        return job
    made_up = baseline.made_up(original, [_made_up(job.order, job.given, guess) for guess in sample_sets.GUESSES])
    return replace(job, data=Data(calibration=made_up, eval=made_up))


def _workbench(job: Job, artifact: Artifact, original: Runner, emit: Emit) -> Workbench:
    """Run the original over the eval samples and measure it; everything is held against that."""
    policy, signature = job.order.policy, job.given.signature
    ends = endings.final_operators(job.given.model)
    judged = _reference(job, original, ends)
    own = baseline.held(original, artifact, judged, policy)
    return Workbench(
        model=job.given.model,
        signature=signature,
        ends=ends,
        evidence=CalibrationEvidence(
            calibration=job.data.calibration,
            signature=signature,
            target=job.target,
            observer=partial(job.runtime.observe, threads=job.target.threads),
            folder=job.folder.work,
            seed=policy.search.seed,
            teacher=job.given.teacher or job.given.model,
            gradients=catalogue.find_gradients(),
            # a recipe that is replayed must give what it gave, however long that takes
            deadline_s=None if job.order.only_recipe else time.monotonic() + policy.search.budget_s,
        ),
        passes=job.passes,
        runtime=job.runtime,
        target=job.target,
        goal=own.goal,
        reference=judged,
        original=original,
        baseline=own.trial,
        timed=own.timed,
        folder=job.folder.work,
        emit=emit,
        seed=policy.search.seed,
        # what is timed again elsewhere needs no more than an idea of it here
        look_s=attempt.look_s(0.0 if job.order.prepare else policy.search.budget_s),
    )


def _reference(job: Job, original: Runner, ends: dict[str, tuple[str, ...]]) -> Reference:
    """What is right: the original's answers, or those of the teacher that was dropped with it."""
    signature, folder = job.given.signature, job.folder.work
    if job.order.files.teacher is None:
        return reference.make(original, job.data.eval, signature, ends, folder)
    teacher = job.folder.input / job.order.files.teacher
    made_for = (signature, ends, folder)
    return teachers.answers(teacher, job.data.eval, runtime=job.runtime, target=job.target, made_for=made_for)


def _harmless(recipes: tuple[Recipe, ...], passes: dict[str, Pass]) -> set[str]:
    """Ids of the recipes whose every step is lossless."""
    return {recipe.id for recipe in recipes if all(passes[step.technique].lossless for step in recipe.steps)}


def _facts(job: Job, host: device.Host) -> dict[str, Any]:
    """What a candidate's result depends on besides its recipe."""
    return {
        "model": job.order.source.sha256,
        "teacher": "" if job.given.teacher is None else fingerprint(job.given.teacher),
        "calibration": job.data.calibration.origin,
        "eval": job.data.eval.origin,
        "target": job.target,
        "metric": job.order.policy.goal.metric,
        "inputs": job.order.policy.inputs,  # the shapes that an engine takes
        "seed": job.order.policy.search.seed,
        **conditions(job.target, host=host),
    }
