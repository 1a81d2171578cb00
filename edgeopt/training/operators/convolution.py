"""Convolutions and pooling over 1 to 3 sides: ``x`` is [batch, channels, *sides].

ONNX pads every side differently at both ends where it likes; torch knows one number a side. So uneven padding is done first,
and the operator itself then pads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edgeopt.training.operators.call import Call

_CONV = (functional.conv1d, functional.conv2d, functional.conv3d)
_CONV_TRANSPOSE = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
_MAX_POOL = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_AVERAGE_POOL: tuple[Callable[..., Tensor], ...] = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


@dataclass(frozen=True, slots=True)
class Window:
    """How a kernel moves over the sides."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]

    @classmethod
    def of(cls, call: Call, kernel: Sequence[int]) -> Window:
        ones = [1] * len(kernel)
        return cls(list(kernel), call.integers("strides", ones), call.integers("dilations", ones))

    def reach(self, side: int) -> int:
        """How many entries of one side the kernel spans."""
        return (self.kernel[side] - 1) * self.dilations[side] + 1


def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv; ``weight`` [out, in / group, *kernel], ``bias`` [out]."""
    window = Window.of(call, weight.shape[2:])
    pads = _pads(call, x.shape[2:], window)
    even = [begin for begin, _ in pads]
    if any(begin != end for begin, end in pads) or min(even) < 0:
        x, even = _padded(x, pads), [0] * len(pads)
    operator = _CONV[len(pads) - 1]
    return operator(x, weight, bias, window.strides, even, window.dilations, call.integer("group", 1))


def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """ConvTranspose; ``weight`` [in, out / group, *kernel]. Padding cuts off what the kernel made at the ends."""
    window = Window.of(call, weight.shape[2:])
    sides = len(window.kernel)
    extra = call.integers("output_padding", [0] * sides)
    pads = _transposed_pads(call, x.shape[2:], window, extra)
    operator = _CONV_TRANSPOSE[sides - 1]
    group = call.integer("group", 1)
    even = [begin for begin, _ in pads]
    if all(begin == end >= 0 for begin, end in pads):
        return operator(x, weight, bias, window.strides, even, extra, group, window.dilations)
    whole = operator(x, weight, None, window.strides, 0, extra, group, window.dilations)
    cut = _padded(whole, [(-begin, -end) for begin, end in pads])
    return cut if bias is None else cut + bias.reshape(-1, *[1] * sides)


def max_pool(call: Call, x: Tensor) -> Tensor:
    """MaxPool; padding never wins."""
    if call.read > 1:
        raise call.refusal("with its indices as a second output is not replayed")
    window = Window.of(call, call.integers("kernel_shape"))
    pads = _pads(call, x.shape[2:], window)
    pads = [(begin, end + more) for (begin, end), more in zip(pads, _ceiling(call, x, window, pads), strict=True)]
    operator = _MAX_POOL[len(pads) - 1]
    return operator(_padded(x, pads, value=float("-inf")), window.kernel, window.strides, 0, window.dilations)


def average_pool(call: Call, x: Tensor) -> Tensor:
    """AveragePool; ``count_include_pad`` decides whether padding counts as entries."""
    window = Window.of(call, call.integers("kernel_shape"))
    if any(dilation != 1 for dilation in window.dilations):
        raise call.refusal(f"with dilations {window.dilations} is not replayed")
    pads = _pads(call, x.shape[2:], window)
    more = [(0, extra) for extra in _ceiling(call, x, window, pads)]
    operator = _AVERAGE_POOL[len(pads) - 1]
    if not any(end for _, end in more) and not any(begin or end for begin, end in pads):
        return operator(x, window.kernel, window.strides)
    entries = torch.ones_like(x[:1, :1]).detach()
    value = 1.0 if call.integer("count_include_pad") else 0.0
    counted = _padded(_padded(entries, pads, value=value), more)
    shares = operator(counted, window.kernel, window.strides)
    return operator(_padded(_padded(x, pads), more), window.kernel, window.strides) / shares


def global_average_pool(call: Call, x: Tensor) -> Tensor:
    """GlobalAveragePool: [batch, channels, 1, ...]."""
    del call
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


def global_max_pool(call: Call, x: Tensor) -> Tensor:
    """GlobalMaxPool: [batch, channels, 1, ...]."""
    del call
    return x.amax(dim=tuple(range(2, x.dim())), keepdim=True)


def _pads(call: Call, sides: Sequence[int], window: Window) -> list[tuple[int, int]]:
    """(begin, end) for each side."""
    mode, count = call.text("auto_pad", "NOTSET"), len(window.kernel)
    if mode == "VALID":
        return [(0, 0)] * count
    if mode.startswith("SAME"):
        missing = [
            max(0, (-(-length // stride) - 1) * stride + window.reach(side) - length)
            for side, (length, stride) in enumerate(zip(sides, window.strides, strict=True))
        ]
        return [_halves(total, small_first=mode == "SAME_UPPER") for total in missing]
    flat = call.integers("pads", [0] * 2 * count)
    return list(zip(flat[:count], flat[count:], strict=True))


def _transposed_pads(call: Call, sides: Sequence[int], window: Window, extra: list[int]) -> list[tuple[int, int]]:
    """What ConvTranspose cuts off each side; from the output's shape where that is what the node states."""
    mode = call.text("auto_pad", "NOTSET")
    wanted = call.integers("output_shape")[-len(sides) :]
    if mode.startswith("SAME") and not wanted:
        wanted = [length * stride for length, stride in zip(sides, window.strides, strict=True)]
    if not wanted:
        return _pads(call, sides, window)
    made = [
        stride * (length - 1) + window.reach(side) + extra[side]
        for side, (length, stride) in enumerate(zip(sides, window.strides, strict=True))
    ]
    return [
        _halves(total - length, small_first=mode == "SAME_UPPER") for total, length in zip(made, wanted, strict=True)
    ]


def _halves(total: int, *, small_first: bool) -> tuple[int, int]:
    small, large = total // 2, total - total // 2
    return (small, large) if small_first else (large, small)


def _ceiling(call: Call, x: Tensor, window: Window, pads: list[tuple[int, int]]) -> list[int]:
    """What must be added to each side's end so that the last, incomplete window counts; 0 without ``ceil_mode``."""
    if not call.integer("ceil_mode"):
        return [0] * len(pads)
    more = []
    for side, ((begin, end), stride) in enumerate(zip(pads, window.strides, strict=True)):
        length = x.shape[2 + side] + begin + end
        steps = -(-(length - window.reach(side)) // stride)
        if steps * stride >= x.shape[2 + side] + begin:  # a window that starts in the padding behind the end is dropped
            steps -= 1
        more.append(steps * stride + window.reach(side) - length)
    return more


def _padded(x: Tensor, pads: Sequence[tuple[int, int]], *, value: float = 0.0) -> Tensor:
    """``x`` with its last sides padded, or cut where a number is negative."""
    if not any(begin or end for begin, end in pads):
        return x
    return functional.pad(x, [end for pair in reversed(pads) for end in pair], value=value)
