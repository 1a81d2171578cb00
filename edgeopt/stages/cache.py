"""Finished candidates by content address: a restart, a repeated drop and a shared recipe never do the same work twice.

A trial holds under the conditions that it was made and measured in only, so that these are part of the key: a version
that is made anew because its GPU got another driver must not find what was measured under the old one.

``cache/<key>/trial.json`` beside the artifact's files; the key is the hash of everything the candidate depends on. A
folder appears in one rename, so a crash leaves no half of one. The folder belongs to one model: what runs in the worker
cannot reach another model's results.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeopt import __version__, fingerprint, wire
from edgeopt.device import THIS_HOST, Host
from edgeopt.integrity import link_or_copy, model_files, sha256_of
from edgeopt.records import Recipe, Target, Trial
from edgeopt.stages import report

_TRIAL_FILE = "trial.json"


def conditions(target: Target, *, host: Host = THIS_HOST) -> dict[str, Any]:
    """What a trial depends on besides its model, data and goal: this edgeopt, the libraries, and what serves ``target`` here."""
    runtime = target.name if target.name in fingerprint.DISTRIBUTIONS else "onnxruntime"
    return {
        "edgeopt": __version__,
        "versions": report.versions(),
        "fingerprint": fingerprint.here(runtime, host=host),
    }


class CandidateCache:
    """The cache of one model; ``facts`` is whatever else a candidate depends on: data, target, goal, :func:`conditions`."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self._folder = folder
        self._facts = json.dumps(wire.encode(facts), sort_keys=True)

    def find(self, recipe: Recipe) -> Trial | None:
        """The finished trial of ``recipe``; None where there is none or it is damaged."""
        entry = self._entry(recipe)
        try:
            trial = wire.loads(Trial, (entry / _TRIAL_FILE).read_bytes())
        except (OSError, ValueError):
            return None
        if trial.artifact is None:
            return trial
        model = entry / Path(trial.artifact.path).name
        if not model.exists() or sha256_of(model) != trial.artifact.sha256:
            return None
        return replace(trial, artifact=replace(trial.artifact, path=str(model)))

    def keep(self, trial: Trial) -> None:
        """Remember a trial and, where it has one, a copy (by hard link where possible) of its artifact."""
        entry = self._entry(trial.recipe)
        temporary = entry.with_name(f".{entry.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if trial.artifact is not None:
            made = Path(trial.artifact.path)
            for file in model_files(made):
                link_or_copy(file, temporary / file.name)
        (temporary / _TRIAL_FILE).write_text(wire.dumps(trial))
        shutil.rmtree(entry, ignore_errors=True)
        temporary.rename(entry)

    def _entry(self, recipe: Recipe) -> Path:
        key = hashlib.sha256(f"{recipe.id}\n{self._facts}".encode()).hexdigest()[:32]
        return self._folder / key
