"""What holds for every test: where hypothesis looks, which tests need something that is not always there, what an inbox is."""

from __future__ import annotations

import os
from importlib import util
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from edgeopt import device

# The same examples at every run, so that a red run is red for everybody; HYPOTHESIS_PROFILE=explore looks further.
# No deadline: the machines that run this are slow and shared, and a slow example is no wrong one.
settings.register_profile(
    "steady", derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

NEEDS = {
    "gpu": (device.gpu_present, "needs an NVIDIA GPU"),
    "trt_rtx": (
        lambda: util.find_spec("tensorrt_rtx_bindings") is not None,
        "needs TensorRT for RTX: pip install 'edgeopt[tensorrt-rtx]'",
    ),
    "corpus": (lambda: "EDGEOPT_CORPUS" in os.environ, "needs the real models, their folder in EDGEOPT_CORPUS"),
    "systemd": (
        lambda: "EDGEOPT_SYSTEMD_ROOT" in os.environ,
        "needs a bootable image, its folder in EDGEOPT_SYSTEMD_ROOT",
    ),
    "aarch64": (
        lambda: "EDGEOPT_AARCH64_ROOT" in os.environ,
        "needs an emulated aarch64 Python (tools/make_aarch64_python.sh), its folder in EDGEOPT_AARCH64_ROOT",
    ),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, (is_there, reason) in NEEDS.items():
        if not is_there():
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder
