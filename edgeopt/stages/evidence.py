"""What passes may learn from the calibration data; implements :class:`~edgeopt.protocols.Evidence`.

Memory is one sample and its observed tensors, whatever the number of samples: the data streams through the runtime and
through the pass.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.errors import PassFailed
from edgeopt.graph import edit, save
from edgeopt.protocols import Gradients, Samples
from edgeopt.records import Signature, Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeopt.protocols import Array, Feeds, Model

Observer = Callable[[Path, "Iterable[Feeds]", Sequence[str]], "Iterator[dict[str, Array]]"]


@dataclass(slots=True, kw_only=True)
class CalibrationEvidence:
    """Calibration samples, and the original or any intermediate model run over them."""

    calibration: Samples
    signature: Signature
    target: Target
    observer: Observer
    """The runtime's way to run a model file over samples."""
    folder: Path
    """Where observed models are written."""
    seed: int
    teacher: Model | None = None
    deadline_s: float | None = None
    progress: Callable[[float, str], None] | None = None
    gradients: Gradients | None = None
    memo: MutableMapping[str, object] = field(default_factory=dict)
    sample_count: int = field(init=False)
    synthetic: bool = field(init=False)

    def __post_init__(self) -> None:
        self.sample_count = len(self.calibration)
        self.synthetic = self.calibration.origin.origin == "synthetic"

    def samples(self) -> Iterator[Feeds]:
        """The calibration samples in order."""
        for index in range(self.sample_count):
            yield self.calibration.feeds(index)

    def observe(self, model: Model, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """The named tensors of ``model`` for each sample; :class:`PassFailed` where one is not in the graph."""
        given = {str(item.name) for item in model.graph.inputs}
        inner = [name for name in names if name not in given]
        if not inner:
            for feeds in self.samples():
                yield {name: feeds[name] for name in names}
            return
        if len(inner) == len(names):
            # Reading every sample a second time costs more than calibration's own arithmetic on a small model.
            yield from self.run(model, self.samples(), inner)
            return
        for feeds, seen in zip(self.samples(), self.run(model, self.samples(), inner), strict=True):
            yield {name: seen[name] if name in seen else feeds[name] for name in names}

    def run(self, model: Model, inputs: Iterable[Feeds], names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Values of ``model``'s main graph for any ``inputs``; :class:`PassFailed` where one is not in the graph."""
        # A folder of its own: the inputs may come out of another model that is run at the same time.
        with tempfile.TemporaryDirectory(prefix="observed-", dir=self.folder) as folder:
            file = Path(folder) / "model.onnx"
            save.save(_with_outputs(model, names), file)
            yield from self.observer(file, inputs, names)


def _with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of ``model`` whose outputs are exactly the named values of its main graph."""
    observed = edit.copy(model)
    values = {str(value.name): value for node in observed.graph for value in node.outputs}
    missing = [name for name in names if name not in values]
    if missing:
        raise PassFailed(f"the graph has no values called {missing[:5]} to observe")
    observed.graph.outputs.clear()
    observed.graph.outputs.extend(values[name] for name in names)
    edit.prune(observed)
    return observed
