"""The first stage: a staged job folder becomes a checked model, its signature, the job's policy and its samples.

Runs in the sandboxed worker, since everything here comes from whoever may write into the inbox. What cannot be used is
an :class:`~edgeopt.errors.InputError` with all that is wrong; what can, goes to ``plan``. docs/intake.md lists the
checks and what each guards against.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgeopt.calibrate import samples
from edgeopt.calibrate.samples import SampleSet
from edgeopt.config import reader
from edgeopt.errors import BadJobFile, ConfigError
from edgeopt.graph import edit, infer
from edgeopt.graph.limits import GraphLimits
from edgeopt.graph.load import load_checked
from edgeopt.layout import JobFolder
from edgeopt.orders import JobOrder
from edgeopt.policy import Dim, Policy, Span
from edgeopt.records import Signature
from edgeopt.stages.signature import UNKNOWN_DIM, dimensions, signature_of

if TYPE_CHECKING:
    from edgeopt.protocols import Model

__all__ = ["Ingested", "load", "signature_of"]

_JOB_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """All that a drop says, checked."""

    path: Path
    """The model file as it was dropped."""
    model: Model
    signature: Signature
    policy: Policy
    """The configuration's, with the drop's job.yaml laid over it."""
    calibration: SampleSet | None = None
    eval: SampleSet | None = None
    teacher: Model | None = None
    """The model that the job file names to learn from."""
    notes: tuple[str, ...] = ()
    """Sentences for the operator: shapes that are not known, labels that are of no use."""


def load(folder: JobFolder, order: JobOrder) -> Ingested:
    """Read and check everything in the job's ``input/``; uses ``work/`` for samples that must be unpacked."""
    policy = _policy(folder, order)
    path = folder.input / order.files.model
    given = GraphLimits(model_bytes=order.limits.model_bytes)
    model = load_checked(path, limits=given)
    _apply_shape_hints(model, policy)
    unknown_shapes = infer.infer_shapes(model, timeout_s=given.inference_s)
    signature = signature_of(model, format=order.source.format)
    calibration = _samples(folder, order.files.calibration, "calibration", signature, policy)
    judging = _samples(folder, order.files.eval, "eval", signature, policy)
    teacher = _teacher(folder, order, model)
    sets = [each for each in (calibration, judging) if each is not None]
    return Ingested(
        path=path,
        model=model,
        signature=signature,
        policy=policy,
        calibration=calibration,
        eval=judging,
        teacher=teacher,
        notes=(*([unknown_shapes] if unknown_shapes else []), *(note for each in sets for note in each.notes)),
    )


def _teacher(folder: JobFolder, order: JobOrder, model: Model) -> Model | None:
    """The dropped teacher, checked like the model itself; it must answer the same questions."""
    if order.files.teacher is None:
        return None
    teacher = load_checked(folder.input / order.files.teacher, limits=GraphLimits(model_bytes=order.limits.model_bytes))
    ours, theirs = (_interface(each) for each in (model, teacher))
    if ours != theirs:
        raise BadJobFile(
            f"the teacher has the inputs {theirs[0]} and the outputs {theirs[1]}, the model {ours[0]} and {ours[1]}",
            hint="Export the teacher with the model's names of inputs and outputs.",
        )
    return teacher


def _interface(model: Model) -> tuple[list[str], list[str]]:
    inputs = sorted(str(value.name) for value in edit.required_inputs(model))
    return inputs, [str(value.name) for value in model.graph.outputs]


def _policy(folder: JobFolder, order: JobOrder) -> Policy:
    if order.files.job_file is None:
        return order.policy
    with (folder.input / order.files.job_file).open("rb") as file:
        text = file.read(_JOB_FILE_BYTES)
    try:
        return reader.overlay_job(order.policy, text)
    except ConfigError as error:
        listed = "; ".join(error.mistakes) or error.message
        raise BadJobFile(f"the job file has mistakes: {listed}", hint=error.hint) from error


def _apply_shape_hints(model: Model, policy: Policy) -> None:
    """Check ``inputs.NAME.shape`` against the model, and take it over where the model gives no rank at all."""
    inputs = {value.name: value for value in model.graph.inputs if value.name not in model.graph.initializers}
    spans: dict[str, Span] = {}
    mistakes = [f"inputs.{name} is not an input of the model" for name, _ in policy.inputs if name not in inputs]
    for name, hint in policy.inputs:
        value = inputs.get(name)
        if value is None or hint.shape is None:
            continue
        if value.shape is None:
            value.shape = ir.Shape([None if isinstance(dim, Span) else dim for dim in hint.shape])
            continue
        declared = dimensions(value.shape)
        if len(declared) != len(hint.shape) or not all(map(_agree, declared, hint.shape)):
            stated = [str(dim) if isinstance(dim, Span) else dim for dim in hint.shape]
            mistakes.append(f"inputs.{name}.shape is {stated}, but the model says {list(declared)}")
        mistakes += _contradictions(name, zip(declared, hint.shape, strict=False), spans)
    if mistakes:
        raise BadJobFile(
            f"the job file has mistakes: {'; '.join(mistakes)}",
            hint=f"Use the model's inputs: {', '.join(map(str, inputs))}.",
        )


def _contradictions(name: str, pairs: Iterable[tuple[Dim, Dim | Span]], spans: dict[str, Span]) -> Iterator[str]:
    """Dimensions of one name have one length, so what is stated of one holds for all; ``spans`` is filled on the way."""
    for dim, hinted in pairs:
        if not isinstance(hinted, Span) or not isinstance(dim, str) or dim == UNKNOWN_DIM:
            continue
        if (other := spans.setdefault(dim, hinted)) != hinted:
            yield f"inputs.{name}.shape has {hinted} for {dim}, and another input {other}"


def _agree(declared: Dim, hinted: Dim | Span) -> bool:
    if not isinstance(declared, int) or isinstance(hinted, str):
        return True
    return hinted.least <= declared <= hinted.most if isinstance(hinted, Span) else declared == hinted


def _samples(folder: JobFolder, file: str | None, kind: str, signature: Signature, policy: Policy) -> SampleSet | None:
    if file is None:
        return None
    unpack_to = folder.work / "samples" / kind
    return samples.open_samples(folder.input / file, signature, unpack_to=unpack_to, hints=policy.inputs)
