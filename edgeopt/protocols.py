"""The seams: what a pass is, what a runtime is, and what a pass may learn from real data.

``pipeline`` wraps every pass with the invariant check, a timer and an event, so passes hold no logging, no timing and
no try. A reason not to do something is a value, not an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from edgeopt.policy import InputHint
from edgeopt.records import Artifact, DataOrigin, Recipe, Scalar, Signature, Target, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    Model: TypeAlias = ir.Model
    Array: TypeAlias = NDArray[np.generic]
    Labels: TypeAlias = NDArray[np.int64]
    Feeds: TypeAlias = Mapping[str, Array]
    """Input name to array, for one inference (the batch axis included where the model has one)."""

Settings: TypeAlias = Mapping[str, Scalar]
Gradients: TypeAlias = "Callable[[Model, Sequence[str], Evidence], Iterator[dict[str, Array]]]"


class Samples(Protocol):
    """Real or made-up inputs, one inference at a time."""

    origin: DataOrigin
    labels: Labels | None
    """Class indices [samples], where the drop gave them."""

    def __len__(self) -> int:
        """How many inferences there are."""

    def feeds(self, index: int) -> dict[str, Array]:
        """The inputs of one inference."""


class Evidence(Protocol):
    """What the calibration data says; handed to every pass. Everything streams: one sample is in memory at a time."""

    signature: Signature
    target: Target
    sample_count: int
    """0 where there is no data at all."""
    synthetic: bool
    """The samples are made up: good for ranges at most, never for a claim."""
    seed: int
    memo: MutableMapping[str, object]
    """What was worked out from this data, by content: the recipes of one job share it. Starts empty."""
    teacher: Model | None
    """What distillation learns from: the model as dropped, or the one that the job file names; None where there is none."""
    deadline_s: float | None
    """When a pass that goes on for long has to end with the best it has, on the monotonic clock; None: never."""
    progress: Callable[[float, str], None] | None
    """Told how far such a pass is: a share (0..1) and a few words."""
    gradients: Gradients | None
    """Gradients by named constants of a model, a sample at a time; None where nothing that differentiates is installed."""

    @property
    def folder(self) -> Path | None:
        """Where a pass may keep files for as long as the job lives; None: in memory only."""

    def samples(self) -> Iterator[Feeds]:
        """The calibration samples, in order, from the start at every call."""

    def observe(self, model: Model, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Run ``model`` over the samples and yield the named tensors of each, one sample at a time."""

    def run(self, model: Model, inputs: Iterable[Feeds], names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Run ``model`` over any other inputs and yield the named tensors of each, one at a time."""


class Pass(Protocol):
    """ONNX in, ONNX out."""

    name: str
    """Also the metric label, the manifest's ``technique`` and the YAML key."""
    lossless: bool
    """Outputs change by float rounding at most: allowed to win without real data."""
    needs_data: bool

    def refuse(self, signature: Signature, target: Target) -> str | None:
        """Why this pass has nothing to do here, in one sentence; None where it has."""

    def apply(self, model: Model, settings: Settings, evidence: Evidence) -> Model:
        """A new model; ``model`` is not touched. Raises :class:`~edgeopt.errors.PassFailed`."""


class Quantizer(Pass, Protocol):
    """A pass that lowers the precision of some layers and can leave out those that its setting ``skip`` lists."""

    def layers(self, model: Model) -> tuple[str, ...]:
        """Names of the layers that it would change in ``model``, in graph order."""


class Session(Protocol):
    """An opened artifact."""

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def run(self, feeds: Feeds) -> list[Array]:
        """One inference; outputs in the order of ``output_names``."""


@runtime_checkable
class GpuSession(Session, Protocol):
    """A session whose device has a clock and a memory of its own; what it says of them is used instead of the process' own."""

    def durations_ns(self, feeds: Feeds, count: int) -> list[int]:
        """Nanoseconds on the device of ``count`` inferences, copies included, back to back."""

    def device_bytes(self) -> int:
        """Memory of the device that the artifact holds."""

    def conditions(self) -> dict[str, float]:
        """How the last timing went and what the device said of itself: clocks, temperature; what is not told is left out."""


class Runtime(Protocol):
    """Something that executes models on this device."""

    name: str
    version: str

    def refuse(self, signature: Signature, target: Target) -> str | None:
        """Why this runtime cannot serve this model here; None where it can."""

    def load(self) -> None:
        """Bring the runtime's library into this process, so that what follows is the artifact's own cost."""

    def compile(self, model: Path, recipe: Recipe, target: Target) -> Artifact:
        """The artifact that ``model`` (an ONNX file, external data beside it) is served as.

        Raises :class:`~edgeopt.errors.CompileFailed` with the runtime's own reason.
        """

    def open(self, artifact: Artifact) -> AbstractContextManager[Session]:
        """A session with the artifact's own settings."""

    def node_seconds(self, model: Path, feeds: Feeds, *, threads: int) -> dict[str, float]:
        """Seconds that one inference spends in each node, by the name of the node or of what it was fused from."""

    def node_bytes(self, artifact: Artifact, feeds: Feeds) -> dict[str, int]:
        """Bytes that one inference reads and writes in each node, by the same names, with the artifact's own settings."""

    def observe(
        self, model: Path, samples: Iterable[Feeds], names: Sequence[str], *, threads: int
    ) -> Iterator[dict[str, Array]]:
        """Run ``model`` over ``samples`` and yield its outputs called ``names``, one sample at a time."""


class EngineBuilder(Runtime, Protocol):
    """A runtime that serves what it has built for certain shapes of its inputs."""

    def under(self, *, limit_s: float, tell: Callable[[float, str], None], cache: Path | None = None) -> EngineBuilder:
        """The same with at most ``limit_s`` for a build, which tells ``tell`` how far it is: a share (0..1) and a few words.

        What was built is kept in the folder ``cache``, and never built again.
        """

    def taking(
        self,
        inputs: Sequence[TensorSpec],
        seen: Iterable[Mapping[str, tuple[int, ...]]],
        *,
        stated: Sequence[tuple[str, InputHint]] = (),
    ) -> Runtime:
        """The same for models whose open ``inputs`` take the shapes ``seen`` (input name to shape, one mapping a sample) and those ``stated``.

        Raises :class:`~edgeopt.errors.CompileFailed` where no sample tells the length of an open dimension.
        """
