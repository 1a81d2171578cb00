"""A whole job in the foreground for tests: a model and its samples in a folder, through ``edgeopt.oneshot``, to its manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeopt.oneshot import Request, Result, default_limits, run
from edgeopt.policy import Policy


def optimized(folder: Path, samples: dict[str, np.ndarray], policy: Policy, *, calibrate: int) -> Result:
    """What comes of ``folder/model.onnx``; the first ``calibrate`` samples calibrate, the others judge."""
    files = [folder / "calibration.npz", folder / "eval.npz"]
    np.savez(files[0], **{name: array[:calibrate] for name, array in samples.items()})
    np.savez(files[1], **{name: array[calibrate:] for name, array in samples.items()})
    request = Request(
        model=folder / "model.onnx",
        calibration=files[0],
        eval=files[1],
        policy=policy,
        limits=default_limits(),
        out=folder / "out",
    )
    return run(request, on_event=lambda _event: None)
