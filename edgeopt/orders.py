"""What the daemon and the worker say to each other: the order that starts a job, and the events that come back.

Stands on ``records``. The daemon, the one-shot and the command line write a :class:`JobOrder` into the job's folder;
the worker reads it and answers with one :class:`Event` a line. Standard library only. Units end the name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgeopt.policy import Policy, WorkerLimits
from edgeopt.records import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The model file as it was dropped."""

    file: str
    format: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedFiles:
    """Server-made names inside the job's ``input/`` folder; the names of the drop never reach a path.

    External-data files keep their (checked, plain) names beside the model, since the model refers to them.
    """

    model: str
    job_file: str | None = None
    calibration: str | None = None
    eval: str | None = None
    teacher: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Healing:
    """The published version that a job makes anew, and why it no longer holds (``fingerprint.REASONS``, ``damaged``)."""

    version: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOrder:
    """Everything the worker needs to know; written as ``order.json`` into the staging folder."""

    job_id: str
    name: str
    source: Source
    files: StagedFiles
    policy: Policy
    limits: WorkerLimits
    only_recipe: Recipe | None = None
    """Replay this one recipe (``optimize --recipe``) instead of planning."""
    heals: Healing | None = None
    """None for a drop."""
    prepare: bool = False
    """Write a bundle of candidates (``optimize --prepare``) for another device to choose from, instead of choosing here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line from the worker to its supervisor.

    kind and fields:
      ``stage``      stage
      ``stage_done`` stage, seconds
      ``progress``   ratio (0..1), trial, trials, text
      ``candidate``  trial (a Trial as JSON), outcome (``measured`` | ``refused`` | ``failed``)
      ``cache``      result (``hit`` | ``miss``)
      ``note``       text: one sentence for the operator
      ``failed``     code, message, hint, stage, disposition
      ``finished``   reason: one sentence; the artifact lies in ``out/``
    """

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
