"""Calls the kernels on tensors: memory layouts, tiles, grids.

Sums are taken in float32. Matrix kernels read channels last; an operand in another layout is copied
first, so nets in ``channels_last`` save a copy a layer. Results follow the input's memory format.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from torchadder.ops import reference
from torchadder.ops.geometry import Geometry, memory_format
from torchadder.ops.triton import tiles, tuning
from torchadder.ops.triton.backward_input import LARGEST
from torchadder.ops.triton.backward_input import (
    adder2d_backward_input as adder2d_backward_input_kernel,
)
from torchadder.ops.triton.backward_weight import (
    adder2d_backward_weight_sign as adder2d_backward_weight_sign_kernel,
)
from torchadder.ops.triton.depthwise import depthwise_backward_input, depthwise_forward
from torchadder.ops.triton.forward import adder2d_forward
from torchadder.ops.triton.packing import pack

_INT32 = 2**31
_LONGEST_ROW_OF_TERMS = 4096
"""Terms summed in a row before the forward starts to sum tap by tap."""

_PIXELS, _CHANNELS = 64, 16
_LEAST_SHARE = 256
"""Pixels that a program of the sign weight gradient sums at least, if there are as many."""
_PROGRAMS = 2048
"""Programs that keep a large GPU busy."""


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1  # the interpreter runs one program after the other
    return torch.cuda.get_device_properties(device).multi_processor_count


def _num_warps(tile: tiles.Tile, device: torch.device) -> int:
    if device.type != "cuda":
        return tile.threads // tiles.WARP
    return tile.threads // torch.cuda.get_device_properties(device).warp_size


def _on(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device: make it the tensor's."""
    if tensor.device.type == "cuda":
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


def _channels_last(tensor: Tensor) -> Tensor:
    """The tensor with channels contiguous, pixels after them, at an address fit for pairs."""
    result = tensor.contiguous(memory_format=torch.channels_last)
    N, C, H, W = tensor.shape
    if result.stride() != (H * W * C, 1, W * C, C):  # torch leaves strides of length 1 as they are
        result = tensor.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        result = result.as_strided((N, C, H, W), (H * W * C, 1, W * C, C))
    if result.data_ptr() % (2 * result.element_size()):
        result = result.clone(memory_format=torch.preserve_format)
    return result


def _is_wide(*num_pixels: int) -> bool:
    """Whether pixels have to be counted in 64 bits."""
    return max(num_pixels) >= _INT32 - 1024


def _grid(programs: int, rest: int = 1, why_rest: str = "") -> tuple[int, int]:
    """The grid of a launch; ``why_rest`` says in its refusal what the second number counts."""
    if programs >= _INT32:
        raise ValueError(
            f"the problem needs a grid of {programs} programs, a GPU takes at most {_INT32 - 1}: "
            "split the batch"
        )
    if rest >= 1 << 16:
        raise ValueError(
            f"{why_rest} make {rest} grids of programs, a GPU takes at most {(1 << 16) - 1}: "
            "TORCHADDER_BACKEND=reference has no such limit"
        )
    return programs, rest


def adder2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    size: tuple[int, int, int, int],
) -> Tensor:
    """Forward; ``size`` is the checked shape of the output."""
    output = torch.empty(
        size, dtype=input.dtype, device=input.device, memory_format=memory_format(input)
    )
    if output.numel() == 0:
        return output
    N, O, P, Q = size
    C, R, S = weight.shape[1:]
    window = (*geometry.stride, *geometry.padding, *geometry.dilation)
    num_rows = N * P * Q
    wide = _is_wide(num_rows, N * input.shape[2] * input.shape[3])
    with _on(input):
        if C == 1 and geometry.groups > 1:
            weight = weight.contiguous()
            programs = -(-num_rows // _PIXELS) * -(-O // _CHANNELS)
            depthwise_forward[_grid(programs)](
                input, weight, weight if bias is None else bias.contiguous(), output,
                num_rows, O, *input.shape[2:], P, Q, *window, *input.stride(), *output.stride(),
                MULTIPLIER=O // geometry.groups, R=R, S=S, HAS_BIAS=bias is not None, WIDE=wide,
                CHANNELS_LAST=input.stride(1) == 1, PIXELS=_PIXELS, CHANNELS=_CHANNELS,
            )  # fmt: skip
            return output
        O_group = O // geometry.groups
        x = _channels_last(input)
        problem = (num_rows, O_group, C * R * S, geometry.groups)

        def run(tile: tiles.Tile) -> Tensor:
            programs = -(-num_rows // tile.block_m) * -(-O_group // tile.block_n)
            grid = _grid(programs, geometry.groups, f"{geometry.groups} groups")
            packed = pack(weight, geometry.groups, tile.block_n, transposed=False)
            adder2d_forward[grid](
                x, packed.values, packed.zeros,
                packed.values if bias is None else bias.contiguous(), output,
                num_rows, *x.shape[2:], P, Q, x.shape[1], *window, *output.stride(),
                C=C, O=O_group, R=R, S=S, HAS_BIAS=bias is not None, WIDE=wide,
                BLOCK_SUMS=C * R * S > _LONGEST_ROW_OF_TERMS, UNROLL=tiles.stretch(C),
                ROWS=tile.rows, COLUMNS=tile.columns, THREADS_M=tile.threads_m,
                THREADS_N=tile.threads_n, num_warps=_num_warps(tile, input.device),
            )  # fmt: skip
            return output

        model = tiles.choose(*problem, _multiprocessors(input.device))
        return tuning.run_best("forward", problem, model, tiles.TILES, input, run)


def adder2d_backward_input(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, grad: str
) -> Tensor:
    """Input gradient of every rule."""
    result = torch.empty_like(input, memory_format=memory_format(input))
    if result.numel() == 0:
        return result
    N, channels, H, W = input.shape
    O, C, R, S = weight.shape
    P, Q = grad_output.shape[2:]
    groups = geometry.groups
    window = (*geometry.stride, *geometry.padding, *geometry.dilation)
    rule = "sign" if grad == "exact" else grad
    with _on(input):
        if C == 1 and groups > 1:
            num_rows = N * H * W
            programs = -(-num_rows // _PIXELS) * -(-channels // _CHANNELS)
            depthwise_backward_input[_grid(programs)](
                grad_output, input, weight.contiguous(), result,
                num_rows, channels, H, W, P, Q, *window,
                *grad_output.stride(), *input.stride(), *result.stride(),
                MULTIPLIER=O // groups, R=R, S=S, RULE=rule,
                WIDE=_is_wide(num_rows, N * P * Q), CHANNELS_LAST=input.stride(1) == 1,
                PIXELS=_PIXELS, CHANNELS=_CHANNELS,
            )  # fmt: skip
            return result
        classes_h, classes_w = (
            min(step, length) for step, length in zip(geometry.stride, (H, W), strict=True)
        )
        class_height, class_width = -(-H // classes_h), -(-W // classes_w)
        num_rows = N * class_height * class_width
        num_classes = classes_h * classes_w
        g = _channels_last(grad_output)
        sums = g  # "l2" reads none
        if rule != "l2":
            sums = g.permute(0, 2, 3, 1).unflatten(3, (groups, -1)).sum(4, dtype=torch.float32)
            sums = sums.contiguous()
        depth = -(-R * S // num_classes) * (O // groups)
        problem = (num_rows, C, depth, groups * num_classes)

        def run(tile: tiles.Tile) -> Tensor:
            programs = -(-num_rows // tile.block_m) * -(-C // tile.block_n)
            why = f"stride {geometry.stride} and {groups} groups"
            grid = _grid(programs, groups * num_classes, why)
            packed = pack(
                weight, groups, tile.block_n, transposed=True,
                scale=0.5 if rule == "clip" else 1.0,
            )  # fmt: skip
            adder2d_backward_input_kernel[grid](
                g, sums, input, packed.values, packed.zeros, packed.has_nan, result,
                num_rows, H, W, P, Q, O, groups,
                class_height, class_width, classes_w, num_classes, packed.num_blocks, *window,
                *input.stride(), *result.stride(),
                C=C, O=O // groups, R=R, S=S, LARGEST_X=LARGEST[rule],
                RULE=rule, WIDE=_is_wide(num_rows, N * P * Q),
                UNROLL=tiles.stretch(O // groups),
                BLOCKS=1 << (packed.num_blocks - 1).bit_length(),
                ROWS=tile.rows, COLUMNS=tile.columns, THREADS_M=tile.threads_m,
                THREADS_N=tile.threads_n, num_warps=_num_warps(tile, input.device),
            )  # fmt: skip
            return result

        model = tiles.choose(*problem, _multiprocessors(input.device), tiles.GRADIENT_TILES)
        return tuning.run_best(
            f"input gradient, {rule}", problem, model, tiles.GRADIENT_TILES, input, run
        )


def adder2d_backward_weight_sign(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry
) -> Tensor:
    """Weight gradient of the rule "exact"."""
    O, C, R, S = weight.shape
    if C == 1 and geometry.groups > 1:  # element by element: nothing that a tile could share
        return reference.adder2d_backward_weight(grad_output, input, weight, geometry, "exact")
    N, _, P, Q = grad_output.shape
    num_pixels = N * P * Q
    if num_pixels == 0:
        return torch.zeros_like(weight, memory_format=torch.contiguous_format)
    groups = geometry.groups
    O_group = O // groups
    tile = tiles.WEIGHT_TILE
    num_tiles = groups * R * S * -(-C // tile.block_m) * -(-O_group // tile.block_n)
    num_shares = max(1, min(-(-num_pixels // _LEAST_SHARE), _PROGRAMS // num_tiles))
    share = -(-num_pixels // num_shares)
    num_shares = -(-num_pixels // share)
    window = (*geometry.stride, *geometry.padding, *geometry.dilation)
    with _on(input):
        partial = torch.empty((num_shares, *weight.shape), dtype=torch.float32, device=input.device)
        adder2d_backward_weight_sign_kernel[_grid(num_tiles, num_shares, f"{num_pixels} pixels")](
            _channels_last(grad_output), _channels_last(input), weight.contiguous(), partial,
            num_pixels, share, *input.shape[2:], P, Q, input.shape[1], O, *window,
            C=C, O=O_group, R=R, S=S, WIDE=_is_wide(num_pixels, input[:, 0].numel()),
            ROWS=tile.rows, COLUMNS=tile.columns, THREADS_M=tile.threads_m,
            THREADS_N=tile.threads_n, num_warps=_num_warps(tile, input.device),
        )  # fmt: skip
    return partial.sum(0).to(weight.dtype)
