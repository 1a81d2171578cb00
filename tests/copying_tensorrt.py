"""A stand-in for TensorRT as the building process imports it: its engine is the parsed file, and each build is counted in a file.

Give its name as a flavour's module and its folder in PYTHONPATH. ``COPYING_TENSORRT_LOG`` names the file.
"""

# the stand-ins have the library's own names

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__version__ = version("onnx")
NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
BuilderFlag = SimpleNamespace(SPARSE_WEIGHTS="sparse")
MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")


class ILogger:
    def __init__(self) -> None: ...


class IProgressMonitor:
    def __init__(self) -> None: ...


class OnnxParser:
    num_errors = 0

    def __init__(self, network: list[bytes], _logger: Any) -> None:
        self._network = network

    def parse_from_file(self, model: str) -> bool:
        self._network.append(Path(model).read_bytes())
        return True


class _Config:
    profiling_verbosity: Any = None
    progress_monitor: Any = None

    def set_flag(self, _flag: Any) -> None: ...

    def add_optimization_profile(self, _profile: Any) -> int:
        return 0


class Builder:
    def __init__(self, _logger: Any) -> None: ...

    def create_network(self, _flags: int) -> list[bytes]:
        return []

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> Any:
        return SimpleNamespace(set_shape=lambda *_shape: None)

    def build_serialized_network(self, network: list[bytes], _config: _Config) -> bytes:
        with Path(os.environ["COPYING_TENSORRT_LOG"]).open("a") as log:
            log.write("built ")
        return network[0]
