"""The configuration as frozen dataclasses, one for each section of the file; every key has a default.

The sections that travel with a job (target, goal, search, techniques) are the records' own classes; the others are
the daemon's. ``reader`` turns YAML into these, ``units`` reads sizes and times.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgeopt.policy import Goal, Search, TargetRequest, Techniques


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    backend: Literal["auto", "inotify", "poll"] = "auto"
    settle_s: float = 2.0
    rescan_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    torchscript: bool = False
    require_signature: bool = False
    keys: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    jobs: int = 1
    sandbox: Literal["auto", "required", "off"] = "auto"
    job_timeout_s: float = 3600.0
    memory: float | int = 0.75
    """A float is a share of the device's memory, an int is bytes."""
    threads: int | None = None
    nice: int = 10
    model_bytes: int = 4 << 30
    inbox_free_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """When to leave the device alone."""

    window: str | None = None
    max_temperature_c: float | None = None
    max_load: float | None = None
    pause_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    listen: str = "127.0.0.1:9188"
    status_page: bool = True
    textfile: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    basic_auth: str | None = None
    """Path of a file with ``user:password-hash`` lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    keep: int = 3
    to: tuple[str, ...] = ()
    signing_key: str | None = None
    mode: int = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json", "journal"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole effective configuration. Relative paths are relative to the configuration file's folder."""

    inbox: str = "/var/lib/edgeopt/inbox"
    published: str = "/var/lib/edgeopt/published"
    rejected: str = "/var/lib/edgeopt/rejected"
    state: str = "/var/lib/edgeopt/state"
    watch: Watch = field(default_factory=Watch)
    target: TargetRequest = field(default_factory=TargetRequest)
    goal: Goal = field(default_factory=Goal)
    search: Search = field(default_factory=Search)
    techniques: Techniques = field(default_factory=Techniques)
    intake: Intake = field(default_factory=Intake)
    limits: Limits = field(default_factory=Limits)
    neighbour: Neighbour = field(default_factory=Neighbour)
    http: Http = field(default_factory=Http)
    publish: Publish = field(default_factory=Publish)
    log: Log = field(default_factory=Log)
