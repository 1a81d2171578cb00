"""Which candidates to make: a pure function of what the model is, what the device can do and what the operator accepts.

Output: recipes in the order they are tried (the most promising first, since the budget may end), and what was left out
with the reason, so that the report can say why not. Every recipe starts with the clean-up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from edgeopt.policy import Policy, Techniques
from edgeopt.protocols import Pass
from edgeopt.records import Recipe, Scalar, Signature, Step, Target, Trial
from edgeopt.stages import asked

_EXACT_INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""Instruction sets of x86 that multiply int8 without an intermediate int16 that saturates."""
_ARM = ("aarch64", "arm")
_FP16_ARITHMETIC = frozenset({"asimdhp", "fphp", "avx512_fp16"})
_NO_SAMPLES = "no real samples were given, and without them only lossless and fp16 candidates may win. Drop NAME.calibration.npz beside the model."


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    recipes: tuple[Recipe, ...]
    left_out: tuple[Trial, ...]


def plan(
    signature: Signature, target: Target, policy: Policy, *, passes: Mapping[str, Pass], has_samples: bool
) -> Plan:
    """Candidates for this model on this device, at most ``policy.search.trials`` of them."""
    recipes, left_out = [], []
    for recipe in dict.fromkeys(_wishes(signature, target, policy, _clean_up(signature, target, passes))):
        reason = forbidden(recipe, policy.techniques) or _refusal(
            recipe, signature, target, passes, has_samples=has_samples
        )
        if reason:
            left_out.append(Trial(recipe=recipe, refused=reason))
        else:
            recipes.append(recipe)
    kept = recipes[: policy.search.trials]
    left_out += [Trial(recipe=recipe, refused="beyond search.trials") for recipe in recipes[len(kept) :]]
    return Plan(recipes=tuple(kept), left_out=tuple(left_out))


def _clean_up(signature: Signature, target: Target, passes: Mapping[str, Pass]) -> tuple[Step, ...]:
    """What every recipe begins with; float16 becomes float32 first where the target computes in that anyway."""
    steps = [Step.of("tidy")]
    if passes["cast_fp32"].refuse(signature, target) is None:
        steps.append(Step.of("cast_fp32"))
    if passes["fold_batch_norm"].refuse(signature, target) is None:
        steps.append(Step.of("fold_batch_norm"))
    return tuple(steps)


def _wishes(signature: Signature, target: Target, policy: Policy, clean: tuple[Step, ...]) -> Iterator[Recipe]:
    """All recipes worth a thought; refusals are sorted out afterwards."""
    fused = (*clean, Step.of("fuse_transformer"))
    if signature.half:
        yield Recipe(steps=tuple(step for step in clean if step.technique == "tidy"))
    yield Recipe(steps=clean)
    if target.name.startswith("tensorrt"):
        wished = asked.recipes(policy.techniques, Step.of("cast_fp16", mode="full"), unpacks=False)
        engines = _engine_steps(signature, policy.goal.objective)
        yield from (Recipe(steps=(*clean, *steps)) for steps in (*wished, *engines))
        return
    yield Recipe(steps=fused)
    first = next(_integer_steps(signature, target))
    yield from (Recipe(steps=(*clean, *steps)) for steps in asked.recipes(policy.techniques, first))
    packed = [Recipe(steps=(*clean, *steps)) for steps in _weight_steps(signature, policy.goal.objective)]
    if policy.goal.objective == "size":
        yield from packed
    repaired = [Recipe(steps=(*clean, *steps)) for steps in _repaired(signature, target)]
    # without outliers what needs no repair is right more often than not, and is there sooner
    sooner, later = (repaired, []) if _has_outliers(signature) else ([], repaired)
    yield from sooner
    if policy.goal.objective != "latency":
        yield Recipe(steps=(*clean, Step.of("cast_fp16", mode="weights")))
    if policy.goal.objective == "size":
        # no smaller than eight bits rounded to nearest: for models that lose too much in those and in six
        yield Recipe(steps=(*clean, Step.of("quantize_weights", bits=8, compensation="gptq")))
    if policy.goal.objective != "size":
        yield from packed
    if _FP16_ARITHMETIC & set(target.features):
        yield Recipe(steps=(*clean, Step.of("cast_fp16", mode="full")))
    for step in _integer_steps(signature, target):
        yield from (Recipe(steps=(*before, step)) for before in _before(step, clean, fused))
    yield from later


def _before(step: Step, clean: tuple[Step, ...], fused: tuple[Step, ...]) -> tuple[tuple[Step, ...], ...]:
    """What may stand before a quantization: dynamic int8 knows the product in a fused attention."""
    return (clean, fused) if step.technique == "quantize_dynamic" else (clean,)


def _engine_steps(signature: Signature, objective: str) -> Iterator[tuple[Step, ...]]:
    """What TensorRT takes: float16, symmetric int8 with float depthwise convolutions, packed weights where bytes count."""
    yield (Step.of("cast_fp16", mode="full"),)
    static = partial(Step.of, "quantize_static", activation="int8", symmetric=True, depthwise=False, per_channel=True)
    for method, corrects in _CONVOLUTION_RANGES if signature.count("Conv", "ConvTranspose") else _MATRIX_RANGES:
        yield (static(method=method, bias_correction=corrects),)
    if _has_outliers(signature):
        yield (Step.of("migrate_outliers"), static(method="min_max", bias_correction=True))
    if objective != "latency":
        yield (Step.of("quantize_weights", form="portable", bits=8),)
        yield (Step.of("quantize_weights", form="portable", bits=4, block=32, compensation="gptq"),)


_ZEROS = 0.3
"""Share of zeros from which a mask and what is left is smaller than packed zeros."""


def _weight_steps(signature: Signature, objective: str) -> Iterator[tuple[Step, ...]]:
    """Packed weights, the most careful first. Only kernels on packed weights have a say in speed and memory."""
    packed = partial(Step.of, "quantize_weights")
    if objective == "size":
        palette = partial(packed, levels="palette", compensation="gptq")
        if signature.zeros >= _ZEROS:
            # Making zeros loses to fewer bits on nearly every layer measured; zeros that are there cost nothing.
            found = partial(Step.of, "prune_weights", method="found")
            yield (found(bits=8),)
            yield (found(bits=8), packed(bits=8))
            yield (found(bits=6), palette(bits=6))
            yield (found(bits=4), palette(bits=4))
        yield (packed(bits=8),)
        yield (palette(bits=6),)  # fewer are found by bisection, see ``bits``
    elif signature.count("MatMul") >= (_FEWEST_PRODUCTS if signature.count("Conv", "ConvTranspose") else 1):
        kernel = partial(packed, form="kernel", accuracy_level=4)
        yield (kernel(bits=8),)
        yield (kernel(bits=4, compensation="gptq", table_bits=8),)


def _integer_steps(signature: Signature, target: Target) -> Iterator[Step]:
    exact = adds_exactly(target)
    convolutions = signature.count("Conv", "ConvTranspose")
    variants = _CONVOLUTION_RANGES if convolutions else _MATRIX_RANGES
    static = list(_static_steps(target, variants, convolutions=bool(convolutions)))
    dynamic = [Step.of("quantize_dynamic", per_channel=True, reduced_range=narrow) for narrow in _ranges(exact=exact)]
    # a transformer's activations have outliers that a static range cuts; a CNN has no fast dynamic kernels
    yield from (*static, *dynamic) if convolutions else (*dynamic, *static)


_FEWEST_PRODUCTS = 4
"""Of a transformer's block: query, key, value and output. A classifier that ends in Softmax has one or two."""


def _repaired(signature: Signature, target: Target) -> Iterator[tuple[Step, ...]]:
    """Int8 with what the model and the kernels make necessary repaired first; see docs/techniques for what it gains."""
    exact = adds_exactly(target)
    outliers = _has_outliers(signature)
    migrated = (Step.of("migrate_outliers"),) if outliers else ()
    # where eight bits do not fit, choosing the way to round pays for the seconds it takes
    rounded = () if exact else (Step.of("round_weights", reduced_range=True),)
    narrow = not exact
    if outliers:
        dynamic = Step.of("quantize_dynamic", per_channel=True, reduced_range=narrow)
        # fused last: the repairs know products, and the quantizer knows the one in a fused attention
        yield (*migrated, *rounded, Step.of("fuse_transformer"), dynamic)
        yield (*migrated, *rounded, dynamic)
    convolutions = bool(signature.count("Conv"))
    if outliers or (rounded and convolutions):
        # clipping cuts what migration left of the outliers; convolutions alone want it
        ranges = _CONVOLUTION_RANGES if convolutions and not outliers else _MATRIX_RANGES[:1]
        for step in _static_steps(target, ranges, convolutions=convolutions, narrow=narrow):
            yield (*migrated, *rounded, step)


def _has_outliers(signature: Signature) -> bool:
    """Attention makes outliers, and products of matrices can shed them."""
    return bool(signature.count("Softmax", "Attention")) and signature.count("MatMul", "Gemm") >= _FEWEST_PRODUCTS


_CONVOLUTION_RANGES = (
    ("mse", True),
    ("percentile", True),
    ("min_max", True),
    ("mse", False),
    ("entropy", True),
    ("moving_average", True),
)
_MATRIX_RANGES = (("min_max", True), ("moving_average", True), ("min_max", False))
"""(method, bias_correction) worth trying; clipping a transformer's outliers costs more than it gains."""


def _static_steps(
    target: Target, variants: Sequence[tuple[str, bool]], *, convolutions: bool, narrow: bool | None = None
) -> Iterator[Step]:
    """Variants of one type of activations run the same kernels: the search times only the one that is least wrong.

    ``narrow`` is the one width of weights that is wanted; None for all that may be best here.
    """
    for activation in _activations(target, convolutions=convolutions):
        for width in _ranges(exact=adds_exactly(target)) if narrow is None else (narrow,):
            common: dict[str, Scalar] = {"activation": activation, "per_channel": True, "reduced_range": width}
            for method, corrects in variants:
                yield Step.of("quantize_static", method=method, bias_correction=corrects, **common)


def adds_exactly(target: Target) -> bool:
    """Whether the target's kernels sum products of any 8-bit codes without saturating. Every ARM kernel does: two products of codes from -127 fit 16 bits."""
    return target.arch.startswith(_ARM) or bool(_EXACT_INT8 & set(target.features))


def _activations(target: Target, *, convolutions: bool) -> tuple[str, ...]:
    """Types of the activations' codes, the one with the better kernels first; docs/targets.md says which kernels these are."""
    if not target.arch.startswith(_ARM):
        return ("uint8",)
    # convolutions of signed codes run on dot products even where there are matrix instructions, those of unsigned ones on ummla
    return ("uint8", "int8") if convolutions and "i8mm" in target.features else ("int8",)


def _ranges(*, exact: bool) -> tuple[bool, ...]:
    """Weights as wide as the kernel adds up exactly first where wider ones saturate; full range alone where nothing does."""
    return (False,) if exact else (True, False)


def _refusal(
    recipe: Recipe,
    signature: Signature,
    target: Target,
    passes: Mapping[str, Pass],
    *,
    has_samples: bool,
) -> str | None:
    for step in recipe.steps:
        own = passes[step.technique]
        if reason := own.refuse(signature, target):
            return reason
        needs_samples = not own.lossless and step.technique != "cast_fp16"
        if not has_samples and needs_samples and not asked.is_from_weights_alone(step):
            return _NO_SAMPLES
    return None


def forbidden(recipe: Recipe, techniques: Techniques) -> str | None:
    """Why the operator does not want ``recipe``; None where nothing speaks against it."""
    wanted = techniques.quantize
    quantizers = [step.technique for step in recipe.steps if step.technique.startswith("quantize")]
    if wanted == "auto" or not quantizers:
        return None
    if wanted == "off":
        return "techniques.quantize is off"
    allowed = (wanted,) if isinstance(wanted, str) else wanted
    if any(name not in allowed and name.removeprefix("quantize_") not in allowed for name in quantizers):
        return f"techniques.quantize allows only {', '.join(allowed)}"
    return None
