"""ONNX Runtime comes in several packages, and may be missing; neither is an exception."""

from __future__ import annotations

import builders
import pytest

from edgeopt import fingerprint
from edgeopt.runtimes.ort import OnnxRuntime


def test_onnx_runtime_that_is_not_installed_is_a_refusal_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OnnxRuntime().refuse(builders.signature(builders.mlp()), builders.TARGET) is None
    monkeypatch.setitem(fingerprint.DISTRIBUTIONS, "onnxruntime", ("onnxruntime-of-nobody",))
    missing = OnnxRuntime()
    assert missing.version == ""
    assert "pip install onnxruntime" in str(missing.refuse(builders.signature(builders.mlp()), builders.TARGET))
