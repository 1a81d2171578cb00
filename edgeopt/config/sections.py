"""Every key of the configuration and of a job file: how it is spelled, where it goes, what it may hold.

This table is the one place that knows the keys. ``reader`` reads by it, ``show`` prints by it, and the tests hold it
against the contract, the documentation and the commented example. The records and ``schema`` say what a value means
inside, in units; the words of a choice come from their annotations.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import yaml

from edgeopt.config import entries, schema, settings
from edgeopt.config import fields as kinds
from edgeopt.config.fields import Kind
from edgeopt.policy import Goal, InputHint, Preprocess, Search, TargetRequest, Techniques

FOLDERS = ("inbox", "published", "rejected", "state")

_MINUTE_OF_DAY = r"([01]?\d|2[0-3]):[0-5]\d"
QUANTIZERS = ("quantize_static", "quantize_dynamic", "quantize_weights", "cast_fp16")
"""What ``techniques.quantize`` may name; a test holds it against the catalogue, which lies on a higher floor."""
ARM_FEATURES = ("asimd", "asimddp", "i8mm", "sve", "fphp", "asimdhp")
"""What ``target.features`` may name; a test holds it against what ``device`` knows."""
_PASS = kinds.text("the name of a pass", pattern=r"[a-z][a-z0-9_]{0,63}")
SettingsOf = Callable[[yaml.MappingNode], Mapping[str, Kind]]
"""Which settings a mapping may hold: some decide about others."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the file: the field it fills and the kind of its value."""

    field: str
    kind: Kind
    settings: SettingsOf | None = None
    """Where the value may be a mapping that is read key by key; else ``kind`` reads mappings, too."""


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping of keys that becomes one dataclass."""

    record: type
    keys: Mapping[str, Key]


def _words(record: type, field: str) -> Kind:
    """A choice between the words of the field's ``Literal`` annotation."""
    return kinds.choice(*typing.get_args(typing.get_type_hints(record)[field]))


def _technique(names: Kind) -> Kind:
    return kinds.either(kinds.choice("auto", "off"), entries.names_or_settings(names))


WATCH = Section(
    schema.Watch,
    {
        "backend": Key("backend", _words(schema.Watch, "backend")),
        "settle": Key("settle_s", kinds.duration(least_s=0.05, most_s=86_400)),
        "rescan": Key("rescan_s", kinds.duration(least_s=0.2, most_s=86_400)),
    },
)
TARGET = Section(
    TargetRequest,
    {
        "name": Key("name", _words(TargetRequest, "name")),
        "threads": Key("threads", kinds.or_else("auto", kinds.whole(1, 1024))),
        "compute_capability": Key("compute_capability", kinds.list_of(kinds.number(1, 99), most=16)),
        "features": Key("features", kinds.list_of(kinds.choice(*ARM_FEATURES), most=16)),
        "batch": Key("batch", kinds.whole(1, 65_536)),
    },
)
GOAL = Section(
    Goal,
    {
        "objective": Key("objective", _words(Goal, "objective")),
        "metric": Key("metric", _words(Goal, "metric")),
        "max_drop": Key("max_drop", kinds.number(0, 1)),
        "min_speedup": Key("min_speedup", kinds.number(1, 100)),
    },
)
SEARCH = Section(
    Search,
    {
        "strategy": Key("strategy", _words(Search, "strategy")),
        "budget": Key("budget_s", kinds.duration(least_s=1, most_s=30 * 86_400)),
        "trials": Key("trials", kinds.or_else("auto", kinds.whole(1, 100_000))),
        "seed": Key("seed", kinds.whole(0, 2**32 - 1)),
    },
)
TECHNIQUES = Section(
    Techniques,
    {
        "quantize": Key(
            "quantize", kinds.either(kinds.choice("auto", "off"), kinds.list_of(kinds.choice(*QUANTIZERS), most=16))
        ),
        "prune": Key("prune", _technique(kinds.choice(*settings.PRUNERS)), settings.of_prune),
        "distill": Key("distill", _technique(kinds.choice("distill")), settings.of_distill),
        "merge": Key("merge", _technique(_PASS)),
    },
)
INTAKE = Section(
    schema.Intake,
    {
        "torchscript": Key("torchscript", kinds.boolean()),
        "require_signature": Key("require_signature", kinds.boolean()),
        "keys": Key("keys", kinds.optional(kinds.secret_path())),
    },
)
LIMITS = Section(
    schema.Limits,
    {
        "jobs": Key("jobs", kinds.whole(1, 64)),
        "sandbox": Key("sandbox", _words(schema.Limits, "sandbox")),
        "job_timeout": Key("job_timeout_s", kinds.duration(least_s=1, most_s=30 * 86_400)),
        "memory": Key("memory", kinds.share_or_size(least=64 << 20)),
        "threads": Key("threads", kinds.or_else("auto", kinds.whole(1, 1024))),
        "nice": Key("nice", kinds.whole(-20, 19)),
        "model_bytes": Key("model_bytes", kinds.size(least=1024)),
        "inbox_free": Key("inbox_free_bytes", kinds.size()),
    },
)
NEIGHBOUR = Section(
    schema.Neighbour,
    {
        "window": Key(
            "window",
            kinds.optional(
                kinds.text('a time of day such as "01:00-05:00"', pattern=f"{_MINUTE_OF_DAY}-{_MINUTE_OF_DAY}")
            ),
        ),
        "max_temperature": Key("max_temperature_c", kinds.optional(kinds.number(1, 150))),
        "max_load": Key("max_load", kinds.optional(kinds.number(0, 10_000, above=True))),
        "pause_file": Key("pause_file", kinds.optional(kinds.path())),
    },
)
HTTP = Section(
    schema.Http,
    {
        "listen": Key("listen", entries.listen()),
        "status_page": Key("status_page", kinds.boolean()),
        "textfile": Key("textfile", kinds.optional(kinds.path())),
        "tls_certificate": Key("tls_certificate", kinds.optional(kinds.path())),
        "tls_key": Key("tls_key", kinds.optional(kinds.secret_path())),
        "basic_auth": Key("basic_auth", kinds.optional(kinds.secret_path())),
    },
)
PUBLISH = Section(
    schema.Publish,
    {
        "keep": Key("keep", kinds.whole(1, 1000)),
        "to": Key("to", kinds.list_of(entries.url(), most=16)),
        "signing_key": Key("signing_key", kinds.optional(kinds.secret_path())),
        "mode": Key("mode", kinds.mode()),
    },
)
LOG = Section(
    schema.Log,
    {
        "level": Key("level", _words(schema.Log, "level")),
        "format": Key("format", _words(schema.Log, "format")),
    },
)
PREPROCESS = Section(
    Preprocess,
    {
        "resize": Key("resize", kinds.optional(kinds.whole(1, 16_384))),
        "crop": Key("crop", kinds.optional(kinds.whole(1, 16_384))),
        "mean": Key("mean", kinds.list_of(kinds.number(-1e6, 1e6), most=16)),
        "std": Key("std", kinds.list_of(kinds.number(0, 1e6, above=True), most=16)),
        "layout": Key("layout", _words(Preprocess, "layout")),
        "color": Key("color", _words(Preprocess, "color")),
    },
)
INPUT = Section(
    InputHint,
    {
        "shape": Key("shape", kinds.list_of(entries.dimension(), most=16)),
        "range": Key("range", entries.span()),
    },
)

CONFIG: Mapping[str, Section] = {
    "watch": WATCH,
    "target": TARGET,
    "goal": GOAL,
    "search": SEARCH,
    "techniques": TECHNIQUES,
    "intake": INTAKE,
    "limits": LIMITS,
    "neighbour": NEIGHBOUR,
    "http": HTTP,
    "publish": PUBLISH,
    "log": LOG,
}
"""The sections of the configuration file, beside the four folders."""

JOB: Mapping[str, Section] = {name: CONFIG[name] for name in ("target", "goal", "search", "techniques")}
"""The sections that a job file may set, beside ``inputs``, ``teacher`` and ``merge``."""

FOLDER = kinds.path()
TEACHER = kinds.text("the name of a file beside the job file", pattern=r"(?!\.)[^/\\]{1,255}", limit=255)
MERGE = kinds.boolean()
