"""Bias correction: what weight rounding adds to a layer's mean output is taken off its bias again.

Stands beside ``qparams``. A layer with rounded weights ``w + e`` computes ``w x + e x``; the expectation of the second term is
``e E[x]``, known once the mean of every input channel is (from the calibration data, see ``collect``). Subtracting it keeps the mean of each output
channel where it was (M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019,
arXiv:1906.04721). It must be applied to quantized layers only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mean_shift(error: NDArray[np.floating], mean: NDArray[np.float64], *, output_axis: int) -> NDArray[np.float64]:
    """How far rounding moves the mean of each output channel.

    ``error`` is the rounded weight minus the weight: (outputs, inputs / groups, *kernel) for a convolution, a matrix for
    Gemm and MatMul with its outputs along ``output_axis``. ``mean`` holds E[x] of each input channel. Result: (outputs,).
    """
    moved = np.moveaxis(error.astype(np.float64), output_axis, 0)
    outputs, inputs = moved.shape[:2]
    summed = moved.reshape(outputs, inputs, -1).sum(axis=2)
    groups = mean.size // inputs
    shift: NDArray[np.float64] = np.einsum(
        "goi,gi->go", summed.reshape(groups, outputs // groups, inputs), mean.reshape(groups, inputs)
    ).reshape(outputs)
    return shift
