"""How far a build is, out of the phases that the builder's monitor tells of: they nest, and the same one may come again.

Stands between TensorRT's IProgressMonitor and ``order.Progress``. A phase has steps, and one of its steps may be a phase of its own; the share of the whole is that of
the outermost phase, refined by the ones inside of it. It never falls, whatever the builder tells: somebody looks at a bar. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """The phases that are open, outermost first."""

    def __init__(self) -> None:
        self._open: dict[str, _Phase] = {}
        self._share = 0.0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        self._open[phase] = _Phase(parent, max(1, steps))

    def step(self, phase: str, step: int) -> tuple[int, int]:
        """Step number ``step`` (from 0) of ``phase`` is done; (done, steps) of it."""
        known = self._open.setdefault(phase, _Phase(None, step + 1))
        known.done = min(step + 1, known.steps)
        return known.done, known.steps

    def finish(self, phase: str) -> None:
        self._open.pop(phase, None)

    @property
    def share(self) -> float:
        """Of the build that is done, 0 to 1."""
        inside: dict[str | None, float] = {}
        # the innermost were opened last, and each is a part of one step of its parent
        for name, phase in reversed(self._open.items()):
            part = (phase.done + inside.pop(name, 0.0)) / phase.steps
            inside.setdefault(phase.parent if phase.parent in self._open else None, min(1.0, part))
        self._share = max(self._share, inside.get(None, 0.0))
        return self._share
