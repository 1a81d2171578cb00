"""Resize and Upsample: every axis on its own, by the coordinates that ONNX defines.

torch's ``interpolate`` knows two of ONNX' seven ways to lay out coordinates and none of its rounding; picking entries by
index and weighing them reproduces all of it, with exact gradients. Coordinates are float32, as a runtime computes them:
in float64 an entry half-way between two others may round to the other one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeopt.training.operators.call import Call, whole

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis to resize: ``scale`` is as given, which need not be exactly ``after / before``."""

    index: int
    before: int
    after: int
    scale: float


def resize(call: Call, x: Tensor, *parameters: Tensor | None) -> Tensor:
    """Resize of any opset, and Upsample; linear modes weigh two entries an axis, cubic ones four."""
    if call.integer("antialias") or call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.refusal("with antialias or a kept aspect ratio is not replayed")
    for axis in _axes(call, x, parameters):
        if axis.before != axis.after or axis.scale != 1.0:
            x = _resized(call, x, axis)
    return x


def _axes(call: Call, x: Tensor, parameters: tuple[Tensor | None, ...]) -> list[Axis]:
    first = 0 if call.kind == "Upsample" or call.opset < 11 else 1  # region of interest came first with opset 11
    scales, sizes = (*parameters[first : first + 2], None, None)[:2]
    chosen = [axis % x.dim() for axis in call.integers("axes", range(x.dim()))]
    if sizes is not None and sizes.numel():
        return [
            Axis(axis, x.shape[axis], after, after / x.shape[axis])
            for axis, after in zip(chosen, whole(sizes), strict=True)
        ]
    given = call.attributes.get("scales", ()) if scales is None else scales.tolist()
    return [
        Axis(axis, x.shape[axis], int(np.floor(np.float32(x.shape[axis]) * np.float32(scale))), float(scale))
        for axis, scale in zip(chosen, given, strict=True)
    ]


def _resized(call: Call, x: Tensor, axis: Axis) -> Tensor:
    mode = call.text("mode", "nearest")
    places = _coordinates(call, axis)
    if mode == "nearest":
        rounded = _rounded(call, places).astype(np.int64)
        return _picked(x, axis, rounded)
    if mode not in ("linear", "cubic"):
        raise call.refusal(f"with mode {mode!r} is not replayed")
    places = np.clip(places, 0, axis.before - 1) if mode == "linear" else places
    below = np.floor(places)
    entries, shares = _linear(places - below) if mode == "linear" else _cubic(call, places - below)
    if call.integer("exclude_outside") and mode == "cubic":
        outside = [(below + entry < 0) | (below + entry >= axis.before) for entry in entries]
        shares = [np.where(out, 0, share) for out, share in zip(outside, shares, strict=True)]
        shares = [np.asarray(share / sum(shares)) for share in shares]
    side = [1] * x.dim()
    side[axis.index] = axis.after
    parts = [
        _picked(x, axis, (below + entry).astype(np.int64))
        * torch.from_numpy(share.astype(np.float32)).to(x.dtype).reshape(side)
        for entry, share in zip(entries, shares, strict=True)
    ]
    return torch.stack(parts).sum(0) if len(parts) > 2 else parts[0] + parts[1]


def _coordinates(call: Call, axis: Axis) -> Floats:
    """Where each entry of the result lies on the original axis."""
    default = "half_pixel" if call.kind == "Resize" and call.opset >= 11 else "asymmetric"
    mode = call.text("coordinate_transformation_mode", default)
    index, scale, half = np.arange(axis.after, dtype=np.float32), np.float32(axis.scale), np.float32(0.5)
    if mode == "asymmetric":
        return np.asarray(index / scale)
    if mode == "align_corners":
        last = max(1, axis.after - 1)
        return np.asarray(index * np.float32(axis.before - 1) / np.float32(last), np.float32)
    centred = np.asarray((index + half) / scale - half)
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and axis.after > 1):
        return centred
    if mode == "pytorch_half_pixel":
        return np.zeros_like(centred)
    if mode == "tf_half_pixel_for_nn":
        return np.asarray((index + half) / scale)
    if mode == "half_pixel_symmetric":
        lost = np.float32(1 - axis.after / (axis.scale * axis.before))
        return np.asarray(np.float32(axis.before / 2) * lost + centred, np.float32)
    raise call.refusal(f"with coordinates {mode!r} is not replayed")


def _rounded(call: Call, places: Floats) -> Floats:
    default = "round_prefer_floor" if call.kind == "Resize" and call.opset >= 11 else "floor"
    mode = call.text("nearest_mode", default)
    if mode == "round_prefer_floor":
        return np.asarray(np.ceil(places - np.float32(0.5)))
    if mode == "round_prefer_ceil":
        return np.asarray(np.floor(places + np.float32(0.5)))
    return np.asarray(np.floor(places) if mode == "floor" else np.ceil(places))


def _linear(rest: Floats) -> tuple[tuple[int, ...], list[Floats]]:
    return (0, 1), [np.asarray(1 - rest), rest]


def _cubic(call: Call, rest: Floats) -> tuple[tuple[int, ...], list[Floats]]:
    """Shares of the four entries around a place, by Keys' kernel."""
    a = call.number("cubic_coeff_a", -0.75)
    near = [(a + 2) * part**3 - (a + 3) * part**2 + 1 for part in (rest, 1 - rest)]
    far = [a * part**3 - 5 * a * part**2 + 8 * a * part - 4 * a for part in (1 + rest, 2 - rest)]
    return (-1, 0, 1, 2), [np.asarray(share) for share in (far[0], near[0], near[1], far[1])]


def _picked(x: Tensor, axis: Axis, places: NDArray[np.int64]) -> Tensor:
    return x.index_select(axis.index, torch.from_numpy(np.clip(places, 0, axis.before - 1)))
