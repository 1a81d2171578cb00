"""What structured pruning could take from a model, and why it leaves the rest: the facts behind ``edgeopt inspect --channels``.

Called by ``edgeopt.worker.inspect``. The model is cleaned up as every pruning recipe does first, so that families have the names that recipes speak of, and run once or twice on made-up inputs: many
exporters' shapes are known from running alone. Where it does not run on those, the declared shapes have to do, and the document says so.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt import catalogue, device
from edgeopt.errors import CandidateError
from edgeopt.policy import TargetRequest

if TYPE_CHECKING:
    from edgeopt.graph.groups import ChannelGroups, Family
    from edgeopt.graph.links_ledger import Role
    from edgeopt.protocols import Model
    from edgeopt.records import Signature
    from edgeopt.stages.evidence import CalibrationEvidence

_CLEAN_UP = ("tidy", "cast_fp32", "fold_batch_norm")
_SAMPLES, _SEED = 2, 0
"""Two samples of the same lengths: they only have to show that the model runs."""


def channels(model: Model, signature: Signature, work: Path) -> dict[str, Any]:
    """Families and frozen layers of ``model``; ``work`` is a folder for the models that are run.

    ``{"families": [{name, kind, units, made_by, read_by, followed_by}], "frozen": [{name, reason}], "lengths": "observed" or "declared"}``, where a place is
    ``{constant, axis, operator}``. A quantized model is not looked at, since nothing prunes one: it has ``refused`` in place of families.
    """
    refused = catalogue.find_pass("prune_channels").refuse(signature, device.detect(TargetRequest()))
    if refused is not None:
        return {"families": [], "frozen": [], "refused": refused}
    found, lengths = _found(model, signature, work)
    return {
        "families": [_family(family) for family in found.families],
        "frozen": [{"name": frozen.name, "reason": frozen.reason} for frozen in found.frozen],
        "lengths": lengths,
    }


def _found(model: Model, signature: Signature, work: Path) -> tuple[ChannelGroups, str]:
    from edgeopt.calibrate import samples
    from edgeopt.calibrate.shapes import observed_shapes
    from edgeopt.graph import groups, shrink

    clean = None
    for guess in samples.GUESSES:
        evidence = _evidence(signature, work, guess)
        if clean is None:
            clean = shrink.unshared(_cleaned(model, signature, evidence))
        try:
            return groups.find(clean, observed_shapes(clean, evidence)), "observed"
        except CandidateError:
            continue  # it does not run at these lengths
    assert clean is not None  # noqa: S101  # there are guesses
    return groups.find(clean, {}), "declared"


def _cleaned(model: Model, signature: Signature, evidence: CalibrationEvidence) -> Model:
    for name in _CLEAN_UP:
        step = catalogue.find_pass(name)
        if step.refuse(signature, evidence.target) is None:
            model = step.apply(model, {}, evidence)
    return model


def _evidence(signature: Signature, work: Path, guess: Any) -> CalibrationEvidence:
    from edgeopt.calibrate import samples
    from edgeopt.stages.evidence import CalibrationEvidence

    target = device.detect(TargetRequest())
    return CalibrationEvidence(
        calibration=samples.synthetic(signature, seed=_SEED, count=_SAMPLES, guess=guess),
        signature=signature,
        target=target,
        observer=partial(catalogue.find_runtime("onnxruntime").observe, threads=target.threads),
        folder=work,
        seed=_SEED,
    )


def _family(family: Family) -> dict[str, Any]:
    def places(role: Role) -> list[dict[str, Any]]:
        slots = [slot for slot in family.slots if slot.role == role]
        return [{"constant": slot.constant, "axis": slot.axis, "operator": slot.operator} for slot in slots]

    return {
        "name": family.name,
        "kind": family.kind,
        "units": family.units,
        "made_by": places("producer"),
        "read_by": places("consumer"),
        "followed_by": places("follower"),
    }
