"""Structured pruning: channels, neurons and heads go for good, and whoever read them is refitted.

Runs on the float graph, before distillation and quantization; before or behind batch-norm folding. In comes a model, out goes one with the same inputs and outputs
and smaller constants, so every runtime gains. What must go together comes from ``graph.groups``, what is worth least from ``calibrate.importance``,
what makes good for it from ``calibrate.reconstruct``.

Settings (all optional):

- ``criterion``  obs | l1 | l2 | group_l2 | batch_norm | entropy | apoz | variance | taylor (needs the train extra) | random, see ``calibrate.importance``
- ``ratio``      share of each family's units that go
- ``removed``    JSON object of counts by family, instead of ``ratio``; taken as they are
- ``scope``      local: every family loses its share; global: ranked across families of the same structure; kind: of the same kind
- ``multiple``   what is left is a multiple of this; 0: by the family's size, ``largest`` at most, 1 for heads
- ``largest``    of these multiples; 0: what the target's kernels work in (32, 16 or 8)
- ``refit``      least squares for who read what goes; needs calibration samples
- ``direction``  low: the least important go; high: the most important, to see what a criterion is worth
- ``families``   all | channels | heads | neurons | hidden | inner (all but channels that several layers add to)
- ``seed``       of criterion random
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeopt.calibrate import importance, readers, removal
from edgeopt.calibrate.consumers import losing, with_biases
from edgeopt.calibrate.importance import Ranking
from edgeopt.calibrate.real import has_real_samples
from edgeopt.calibrate.reconstruct import Course, refit
from edgeopt.calibrate.removal import PruneScheme, Removed
from edgeopt.calibrate.scheme import read_settings
from edgeopt.calibrate.shapes import observed_shapes
from edgeopt.errors import PassFailed
from edgeopt.graph import groups, shrink
from edgeopt.graph.groups import ChannelGroups
from edgeopt.protocols import Evidence, Settings
from edgeopt.records import Signature, Target

if TYPE_CHECKING:
    from edgeopt.protocols import Model

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU")


class PruneChannels:
    """A model in, the same model with fewer channels out."""

    name = "prune_channels"
    lossless = False
    needs_data = False

    def refuse(self, signature: Signature, target: Target) -> str | None:
        """A quantized model, or one without layers that have channels."""
        del target
        if signature.quantized:
            return "the model is quantized already"
        if not signature.count(*_LAYERS):
            return "the model has no layer whose channels could go"
        return None

    def apply(self, model: Model, settings: Settings, evidence: Evidence) -> Model:
        """The smaller model; raises :class:`~edgeopt.errors.PassFailed` where no unit can go, or what the criterion needs is missing."""
        scheme = read_settings(PruneScheme, settings, technique=self.name)
        scheme.check()
        scheme = scheme.fitted(evidence.target)
        if scheme.refit and not has_real_samples(evidence):
            raise PassFailed(
                "refit needs real calibration samples, and there are none",
                hint="Drop samples, or set refit=false and criterion=l1.",
            )
        own = shrink.unshared(model)
        shapes = observed_shapes(own, evidence)
        found = groups.find(own, shapes)
        removed = _removed(own, found, scheme, evidence)
        if not scheme.refit:
            return shrink.shrink(own, found, removed)
        # A reader without a bias could not take up the mean of what it loses.
        biased = with_biases(own, losing(found, removed))
        found = groups.find(biased, shapes)
        refitted, _ = refit(biased, found, removed, evidence, how=Course(shapes=shapes, apart=scheme.apart))
        return shrink.shrink(refitted, found, removed)


def _removed(model: Model, found: ChannelGroups, scheme: PruneScheme, evidence: Evidence) -> Removed:
    families = removal.candidates(found.families, scheme)
    if not families:
        reasons = "; ".join(f"{frozen.name}: {frozen.reason}" for frozen in found.frozen[:3])
        raise PassFailed(
            f"no family of {scheme.families} units can be pruned ({reasons or 'there is none'})",
            hint="Leave this technique out for this model.",
        )
    depths = removal.depths(families, scheme)
    ranking = Ranking(criterion=scheme.criterion, depths=depths, seed=scheme.seed)
    scores = importance.scores(model, families, ranking, evidence)
    missing = next((family for family in families if family.name not in scores), None)
    why = readers.unjudged(model, missing, scheme.criterion) if missing is not None else ""
    if missing is not None and scheme.counts():
        raise PassFailed(
            f"removed names {missing.name!r}, which {scheme.criterion} cannot judge{f': {why}' if why else ''}",
            hint="Leave it out of removed, or use another criterion, such as l2.",
        )
    removed = removal.choose(families, scores, scheme)
    if not removed:
        raise PassFailed(
            f"nothing goes: {len(scores)} of {len(families)} families can be judged by {scheme.criterion}, "
            f"and a ratio of {scheme.ratio:g} rounds to no unit in any{f'; {missing.name}: {why}' if missing and why else ''}",
            hint="Give a larger ratio, a smaller multiple or another criterion.",
        )
    return removed
