"""What edgeopt uses of TensorRT's Python interface: the part that 10.3 to 11 and TensorRT for RTX have in common, and no more.

Stands between the libraries, which come without types, and the two modules that call them: ``child`` (build) and ``execute`` (run). Type checking holds those
two against the protocols below, and ``tools/check_tensorrt.py`` holds the protocols against each real release. What some release lacks is not here, so it
cannot be used by mistake: precision flags and calibrators (gone in 11 and RTX), ``device_memory_size`` without ``_v2``, ``supports_model``. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, SupportsInt

if TYPE_CHECKING:
    from typing_extensions import Buffer

Shape = tuple[int, ...]


class Named(Protocol):
    """A member of one of the library's enumerations."""

    @property
    def name(self) -> str: ...


# ---------------------------------------------------------------- parsing and building
class CreationFlags(Protocol):
    @property
    def STRONGLY_TYPED(self) -> SupportsInt: ...  # noqa: N802  # the library's own name, as all below


class Verbosities(Protocol):
    @property
    def DETAILED(self) -> Any: ...  # noqa: N802


class BuilderFlags(Protocol):
    @property
    def SPARSE_WEIGHTS(self) -> Any: ...  # noqa: N802


class MemoryPools(Protocol):
    @property
    def WORKSPACE(self) -> Any: ...  # noqa: N802


class OptimizationProfile(Protocol):
    def set_shape(self, name: str, least: Shape, typical: Shape, most: Shape, /) -> None: ...


class BuilderConfig(Protocol):
    profiling_verbosity: Any
    progress_monitor: Any

    def set_memory_pool_limit(self, pool: Any, size: int, /) -> None: ...
    def set_flag(self, flag: Any, /) -> None: ...
    def add_optimization_profile(self, profile: Any, /) -> int: ...


class Builder(Protocol):
    def create_network(self, flags: int, /) -> Any: ...
    def create_builder_config(self) -> BuilderConfig: ...
    def create_optimization_profile(self) -> OptimizationProfile: ...
    def build_serialized_network(self, network: Any, config: Any, /) -> Buffer | None: ...


class ParserError(Protocol):
    def code(self) -> object: ...
    def node_name(self) -> str: ...
    def node_operator(self) -> str: ...
    def desc(self) -> str: ...


class Parser(Protocol):
    @property
    def num_errors(self) -> int: ...
    def get_error(self, index: int, /) -> ParserError: ...
    def parse_from_file(self, model: str, /) -> bool: ...


# ---------------------------------------------------------------- running
class TensorModes(Protocol):
    @property
    def INPUT(self) -> object: ...  # noqa: N802


class TensorLocations(Protocol):
    @property
    def HOST(self) -> object: ...  # noqa: N802


class Context(Protocol):
    def set_input_shape(self, name: str, shape: Shape, /) -> bool: ...
    def get_tensor_shape(self, name: str, /) -> Iterable[int]: ...
    def set_tensor_address(self, name: str, address: int, /) -> bool: ...
    def execute_async_v3(self, stream: int, /) -> bool: ...


class Engine(Protocol):
    @property
    def num_io_tensors(self) -> int: ...
    @property
    def device_memory_size_v2(self) -> int: ...
    def get_tensor_name(self, index: int, /) -> str: ...
    def get_tensor_mode(self, name: str, /) -> object: ...
    def get_tensor_location(self, name: str, /) -> object: ...
    def get_tensor_dtype(self, name: str, /) -> Named: ...
    def get_tensor_profile_shape(self, name: str, profile: int, /) -> Sequence[Iterable[int]]: ...
    def create_execution_context(self) -> Context | None: ...


class Runtime(Protocol):
    def deserialize_cuda_engine(self, plan: bytes, /) -> Engine | None: ...


# ---------------------------------------------------------------- the library
class Library(Protocol):
    """The module itself: ``tensorrt`` or ``tensorrt_rtx``, or their bindings under the names of their own wheels."""

    __version__: str
    ILogger: Any
    """Bases of classes made here: what those override is checked by the tool, against each release."""
    IProgressMonitor: Any

    @property
    def NetworkDefinitionCreationFlag(self) -> CreationFlags: ...  # noqa: N802
    @property
    def ProfilingVerbosity(self) -> Verbosities: ...  # noqa: N802
    @property
    def MemoryPoolType(self) -> MemoryPools: ...  # noqa: N802
    @property
    def BuilderFlag(self) -> BuilderFlags: ...  # noqa: N802
    @property
    def TensorIOMode(self) -> TensorModes: ...  # noqa: N802
    @property
    def TensorLocation(self) -> TensorLocations: ...  # noqa: N802
    def Builder(self, logger: Any, /) -> Builder: ...  # noqa: N802
    def OnnxParser(self, network: Any, logger: Any, /) -> Parser: ...  # noqa: N802
    def Runtime(self, logger: Any, /) -> Runtime: ...  # noqa: N802


class RtxConfig(BuilderConfig, Protocol):
    num_compute_capabilities: int

    def set_compute_capability(self, capability: Any, index: int, /) -> bool: ...


class RtxBuilder(Builder, Protocol):
    def create_builder_config(self) -> RtxConfig: ...


class RtxLibrary(Library, Protocol):
    """What TensorRT for RTX has besides: GPUs that are not here."""

    ComputeCapability: Any

    def Builder(self, logger: Any, /) -> RtxBuilder: ...  # noqa: N802
