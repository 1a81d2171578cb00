"""The report of a published version: its manifest as one page that a person can read anywhere.

Last step of the ``report`` stage. In: the manifest (docs/contract.md, schema 1) as a plain dict. Out: ``report.html``,
one file without scripts and without a single reference to anything outside of it, so that it can be opened on a device
without a network, mailed, or kept. It says first what was gained and how sure that is, then why this candidate and not
the others, then how to make it again.

Names in a manifest come from whoever dropped the model. jinja2 escapes them; characters that would hide or reorder
text are made visible on the way (:func:`~edgeopt.stages.report_words.visible`), and every page forbids scripts to the browser as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeopt import wire
from edgeopt.records import EngineFacts
from edgeopt.stages import frailty, report_chart
from edgeopt.stages import report_words as words

if TYPE_CHECKING:
    from jinja2 import Template

Json: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A row of the before-and-after table."""

    label: str
    before: str
    after: str
    change: str
    better: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A row of the candidates' table; ``state`` is ``winner``, ``original``, ``allowed`` or ``refused``."""

    number: int
    steps: tuple[str, ...]
    latency: str
    speedup: str
    speedup_range: str
    size: str
    drop: str
    drop_bound: str
    outcome: str
    state: str


def render(manifest: Json) -> str:
    """The page for ``manifest``. What the manifest leaves out is shown as not measured, never guessed."""
    rows = candidates(manifest)
    return _template().render(
        manifest=manifest,
        headline=headline(manifest),
        gain=gain_sentence(manifest),
        quality=quality_sentence(manifest),
        reason=str(manifest.get("verdict") or ""),
        warning=engine_warning(manifest),
        changes=changes(manifest),
        candidates=rows,
        chart=report_chart.chart(manifest, [row.state for row in rows]),
        frail=frailty.table(manifest),
        recipe=[words.step_label(step) for step in manifest.get("recipe", ())],
        recipe_json=json.dumps(manifest.get("recipe", []), ensure_ascii=True),
        facts=facts(manifest),
    )


def headline(manifest: Json) -> str:
    """What was gained, in one line."""
    name, objective = manifest.get("name", "The model"), _objective(manifest)
    if manifest.get("status") == "unverified":
        return f"{name} is built for {_device(manifest)} and waits for such a device"
    gain = report_chart.gain(manifest.get("result", {}), manifest.get("baseline", {}), objective)
    if gain is None or not manifest.get("recipe"):
        return f"{name} is published as it came"
    if gain[1] <= 1.0:
        return f"{name} is published cleaned up; nothing proved better"
    words = {
        "latency": "runs {:.2f} times as fast",
        "size": "is {:.2f} times smaller",
        "memory": "needs {:.2f} times less memory",
    }
    return f"{name} {words[objective].format(gain[0])}"


def _device(manifest: Json) -> str:
    """``compute capability 8.6, 8.9``, or ``an ARM processor with asimd``."""
    if words.dig(manifest, "artifact", "format") == "onnx":
        return str(words.dig(manifest, "target", "device"))
    listed = ", ".join(f"{value:g}" for value in words.dig(manifest, "target", "compute_capability") or ())
    return f"compute capability {listed}" if listed else "a GPU"


def gain_sentence(manifest: Json) -> str:
    """The numbers behind the headline."""
    result, baseline = manifest.get("result", {}), manifest.get("baseline", {})
    if manifest.get("status") == "unverified":
        if words.dig(manifest, "artifact", "format") == "onnx":
            return "No latency is known: it has not run on its device, and its quality is that in ONNX Runtime on another processor."
        return "No latency is known: the engine has not run, and its quality is that of the same model in ONNX Runtime."
    before, after = words.dig(baseline, "latency_ms", "p50"), words.dig(result, "latency_ms", "p50")
    if before is None or after is None:
        return ""
    threads = words.dig(manifest, "target", "threads")
    where = f" with {threads} thread{'s' if threads != 1 else ''}" if threads else ""
    text = f"One inference takes {words.milliseconds(after)} instead of {words.milliseconds(before)} at the median on this device{where}"
    if interval := words.dig(result, "speedup", "ci95"):
        text += f"; with 95 % confidence the speedup lies between {interval[0]:.2f} and {interval[1]:.2f}"
    return f"{text}."


def quality_sentence(manifest: Json) -> str:
    """How right the published version is, how sure that is, and what that was found on."""
    quality = words.dig(manifest, "result", "quality")
    if not quality:
        return "Its quality was not measured."
    kind, samples = quality.get("kind"), quality.get("samples")
    bound, budget = (quality.get("ci95") or [None, None])[1], words.dig(manifest, "goal", "max_drop")
    if kind == "synthetic":
        return (
            f"No real samples were dropped with it: on {samples} made-up inputs its outputs agree with the original's "
            f"({quality.get('metric')}), which shows that nothing broke and proves nothing about accuracy."
        )
    subject = (
        "Accuracy with the labels of"
        if kind == "accuracy"
        else "Agreement with the original (no labels were dropped) on"
    )
    text = f"{subject} {samples} samples: {quality.get('metric')} {words.number(quality.get('value'))}"
    if bound is not None:
        text += f", a drop of at most {words.percent(bound)} at 95 % confidence"
    return f"{text}; allowed was {words.percent(budget)}." if budget is not None else f"{text}."


def engine_warning(manifest: Json) -> str:
    """That TensorRT quietly computes a quantized model in float; empty where it does not, or where there is no engine."""
    facts = _engine(manifest)
    return f"{facts.undone}." if facts is not None and facts.undone else ""


def changes(manifest: Json) -> list[Change]:
    """Before and after, row by row; rows without both numbers say so."""
    baseline, result = manifest.get("baseline", {}), manifest.get("result", {})
    rows = [
        _change(
            f"Latency, {name}",
            (words.dig(baseline, "latency_ms", key), words.dig(result, "latency_ms", key)),
            words.milliseconds,
        )
        for key, name in (("p50", "median"), ("p90", "90th percentile"), ("p99", "99th percentile"))
    ]
    rows.append(
        _change("Size on disk", (baseline.get("bytes"), words.dig(manifest, "artifact", "bytes")), words.size_of)
    )
    rows.append(
        _change("Peak memory", (baseline.get("peak_memory_bytes"), result.get("peak_memory_bytes")), words.size_of)
    )
    if coverage := _engine(manifest):
        rows.append(
            Change(label="Layers that multiply in int8", before=words.NOT_MEASURED, after=_int8(coverage), change="")
        )
    before, after = baseline.get("quality") or {}, result.get("quality") or {}
    if after:
        rows.append(
            Change(
                label=f"Quality ({after.get('metric', after.get('kind'))})",
                before=words.number(before.get("value")),
                after=words.number(after.get("value")),
                change=f"drop {words.percent(after.get('drop'))}",
            )
        )
    return rows


def candidates(manifest: Json) -> list[Candidate]:
    """Every candidate with what was measured and what became of it, in the order they were tried."""
    winner = _key(manifest.get("recipe"))
    rows, taken = [], False
    for number, candidate in enumerate(manifest.get("candidates", ()), start=1):
        won = not taken and not candidate.get("refused") and _key(candidate.get("recipe")) == winner
        taken = taken or won
        rows.append(_candidate(number, candidate, won=won))
    return rows


def facts(manifest: Json) -> list[tuple[str, list[tuple[str, str]]]]:
    """Everything else the manifest holds, as titled lists of name and value."""
    sections = (
        ("Source", "source"), ("Artifact", "artifact"), ("Target", "target"), ("Goal", "goal"),
        ("Prepared elsewhere", "prepared"), ("Data", "data"), ("Environment", "environment"),
    )  # fmt: skip
    made = [(key, str(manifest[key])) for key in ("edgeopt", "created") if manifest.get(key)]
    told = [(title, words.flatten(manifest.get(key) or {})) for title, key in sections if manifest.get(key)]
    return [("Made by", made), *told] if made else told


def _engine(manifest: Json) -> EngineFacts | None:
    """The engine's facts; None where the artifact is none, or where another release of edgeopt wrote them."""
    try:
        return wire.decode(EngineFacts, words.dig(manifest, "artifact", "engine"))
    except ValueError:
        return None


def _int8(facts: EngineFacts) -> str:
    return words.NOT_MEASURED if facts.products is None else f"{facts.int8_products} of {facts.products}"


@cache
def _template() -> Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgeopt.stages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=words.visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _candidate(number: int, candidate: Json, *, won: bool) -> Candidate:
    recipe, result, refused = candidate.get("recipe") or [], candidate.get("result") or {}, candidate.get("refused")
    speedup, quality = result.get("speedup") or {}, result.get("quality") or {}
    interval, bounds = speedup.get("ci95"), quality.get("ci95")
    state = "refused" if refused else "winner" if won else "allowed" if recipe else "original"
    outcomes = {"winner": "published", "original": "the original as dropped", "allowed": "allowed, but not the best"}
    return Candidate(
        number=number,
        steps=tuple(words.step_label(step) for step in _steps(recipe)) or ("original",),
        latency=words.milliseconds(words.dig(result, "latency_ms", "p50")),
        speedup=f"{speedup['value']:.2f}" if interval else words.NOT_MEASURED,
        speedup_range=f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "",
        size=words.smaller(result.get("bytes_ratio"), interval, sparse=_is_sparse(recipe)),
        drop=words.percent(quality.get("drop")),
        drop_bound=f"at most {words.percent(bounds[1])}" if bounds else "",
        outcome=str(refused) if refused else outcomes[state],
        state=state,
    )


def _change(label: str, values: tuple[float | None, float | None], show: Any) -> Change:
    before, after = values
    if not before or not after:
        return Change(label=label, before=show(before), after=show(after), change=words.NOT_MEASURED)
    ratio = before / after
    change = f"{ratio:.2f} times less" if ratio >= 1.0 else f"{1 / ratio:.2f} times more"
    unchanged = abs(ratio - 1.0) < 0.005
    return Change(
        label=label,
        before=show(before),
        after=show(after),
        change="the same" if unchanged else change,
        better=None if unchanged else ratio > 1.0,
    )


def _steps(recipe: Any) -> Sequence[Any]:
    return recipe if isinstance(recipe, list | tuple) else (recipe,)


def _is_sparse(recipe: Any) -> bool:
    return any(words.dig(step, "technique") == "prune_weights" for step in _steps(recipe))


def _key(recipe: Any) -> str:
    return json.dumps(recipe or [], sort_keys=True, default=str)


def _objective(manifest: Json) -> str:
    objective = words.dig(manifest, "goal", "objective")
    return objective if objective in report_chart.OBJECTIVES else "latency"
