"""torch-pruning's choice of units, for the same families and the same counts, from its own process and environment.

In goes the clean model and how many output channels each layer is to lose; out come the channels that torch-pruning takes, and what its own pruned torch model then computes, which
is held against the same removal on the ONNX graph: were the peer misread, the two would differ (``notes["outputs_differ"]``, relative to the largest output).
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.calibrate import removal
from edgeopt.calibrate.removal import PruneScheme, Removed
from edgeopt.errors import PassFailed
from edgeopt.graph import shrink
from edgeopt.graph.groups import Family
from edgeopt.integrity import sha256_of

from .questions import CLASSIFIERS, Question, Subject

CRITERIA = {"torch-pruning l2": "magnitude", "torch-pruning taylor": "taylor"}
"""``magnitude``: its default, the l2 norm of the whole group; ``taylor``: of the cross entropy with the model's own answers as labels, since there are no others."""
_HERE = Path(__file__).parent.parent / "peers"
_REQUIREMENTS, _SCRIPT = _HERE / "requirements" / "torch_pruning.txt", _HERE / "recipes" / "with_torch_pruning.py"
_SAMPLES, _SMALLEST = 32, 1e-2


def choose(question: Question, subject: Subject) -> tuple[Removed, dict[str, Any]]:
    """(units by family, notes); :class:`~edgeopt.errors.PassFailed` with the peer's last words where it fails."""
    if question.scope != "local":
        raise PassFailed(f"{question.criterion}: the peer chooses with the counts of scope local")
    if CRITERIA[question.criterion] == "taylor" and subject.name not in CLASSIFIERS:
        raise PassFailed("torch-pruning taylor: without class scores there is no loss to take gradients of here")
    _, found = subject.parts
    scheme = PruneScheme(ratio=question.ratio, families=question.families, largest=question.largest)
    families = removal.candidates(found.families, scheme)
    counts = {name: count for name, count in removal.depths(families, scheme).items() if count}
    families = [family for family in families if family.name in counts]
    folder = subject.folder / "peer" / f"{question.ratio:g}-{CRITERIA[question.criterion]}-by{question.largest}"
    folder.mkdir(parents=True, exist_ok=True)
    own, _ = subject.parts
    ir.save(own, folder / "model.onnx")
    samples = [subject.corpus.calibration.feeds(i) for i in range(min(_SAMPLES, len(subject.corpus.calibration)))]
    np.savez(folder / "feeds.npz", **{name: np.stack([each[name] for each in samples]) for name in samples[0]})
    job = {
        "importance": CRITERIA[question.criterion],
        "script": sha256_of(_SCRIPT),  # what was chosen by another one is chosen again
        "lose": {_maker(family): counts[family.name] * _per_unit(family) for family in families},
        "units": {_maker(family): family.units for family in families},
        "heads": [[slot.constant for slot in _makers(family)] for family in families if family.kind == "heads"],
        "ours": sorted({slot.constant for family in families for slot in family.slots if slot.role != "consumer"}),
    }
    wanted, done = json.dumps(job, indent=1), folder / "job.json"
    if not (folder / "chosen.json").exists() or done.read_text() != wanted:
        done.write_text(wanted)
        _run([_python(subject.folder.parent), _SCRIPT, folder])
    taken = json.loads((folder / "chosen.json").read_text())
    removed = {family.name: _units(family, taken[_maker(family)]) for family in families}
    for family in families:
        if len(removed[family.name]) != counts[family.name]:
            raise PassFailed(
                f"torch-pruning takes {len(removed[family.name])} of {family.name}, not {counts[family.name]}"
            )
    return removed, {"outputs_differ": _difference(shrink.shrink(own, found, removed), subject, folder, samples)}


def _makers(family: Family) -> list[Any]:
    return [slot for slot in family.slots if slot.role == "producer"]


def _maker(family: Family) -> str:
    return str(_makers(family)[0].constant)


def _per_unit(family: Family) -> int:
    return len(_makers(family)[0].indices[0])


def _units(family: Family, channels: list[int]) -> tuple[int, ...]:
    gone = set(channels)
    return tuple(unit for unit, indices in enumerate(_makers(family)[0].indices) if gone.issuperset(indices))


def _difference(ours: ir.Model, subject: Subject, folder: Path, samples: list[Any]) -> float:
    with np.load(folder / "outputs.npz") as arrays:
        theirs = arrays["last"]
    name = str(ours.graph.outputs[-1].name)
    seen = subject.evidence.run(ours, samples[: len(theirs)], [name])
    # a model that was only cut may answer almost nothing, of which any rounding is a large part
    scale = max(float(np.abs(theirs).max()), _SMALLEST)
    return (
        max(float(np.abs(each[name].ravel() - row.ravel()).max()) for each, row in zip(seen, theirs, strict=True))
        / scale
    )


def _python(work: Path) -> Path:
    """The interpreter of the peer's environment, made where it is missing."""
    home = work / "venvs" / "torch_pruning"
    python, stamp = home / "bin" / "python", home / "installed.txt"
    if stamp.exists() and stamp.read_text() == _REQUIREMENTS.read_text():
        return python
    print("installing torch-pruning", file=sys.stderr, flush=True)
    venv.create(home, with_pip=True)
    _run([python, "-m", "pip", "install", "--quiet", "--requirement", _REQUIREMENTS])
    stamp.write_text(_REQUIREMENTS.read_text())
    return python


def _run(command: list[Any]) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["it said nothing"]
        raise PassFailed(f"torch-pruning: {words[-1]:.200}")
