"""The order in which the integer kernels read filters.

A sum runs over runs of bytes that are contiguous in an NHWC image: a window row of ``S c`` bytes
where columns are dense, otherwise one tap of c bytes (c input channels of a group). Runs are filled
up with zeros to steps of eight bytes, filters of a group to blocks of eight, and stored
``[group][run][step][filter][8]``. Depthwise filters are stored ``[tap][channel]``. The order
depends on the layer alone, so packed filters can be saved; ``ta_int8_pack`` of csrc gives the same.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, int, int, int]

STEP = 8
BLOCK = 8


def pack(weight: Tensor, dilation_w: int, groups: int) -> Tensor:
    """Filters (O, C / groups, R, S) of bytes in the order of the kernels, one dimension."""
    O, depth, _, _ = weight.shape
    if _is_depthwise(O, depth, groups):
        return weight[:, 0].permute(1, 2, 0).flatten()
    runs = weight.permute(0, 2, 3, 1).unflatten(0, (groups, O // groups))  # (g, f, R, S, c)
    runs = runs.flatten(3) if _joins_columns(depth, dilation_w, groups) else runs.flatten(2, 3)
    runs = F.pad(runs, (0, -runs.shape[3] % STEP, 0, 0, 0, -runs.shape[1] % BLOCK))
    steps = runs.unflatten(3, (-1, STEP))  # (g, f, run, step, 8)
    return steps.permute(0, 2, 3, 1, 4).flatten()


def unpack(
    packed: Tensor, shape: tuple[int, int, int, int], dilation_w: int, groups: int
) -> Tensor:
    """What :func:`pack` has packed: bytes of ``shape`` (O, C / groups, R, S)."""
    O, depth, R, S = shape
    if _is_depthwise(O, depth, groups):
        return packed.view(R, S, O).permute(2, 0, 1)[:, None].contiguous()
    joined = _joins_columns(depth, dilation_w, groups)
    num_runs, size = (R, S * depth) if joined else (R * S, depth)
    filters = O // groups
    steps = packed.view(groups, num_runs, -(-size // STEP), -(-filters // BLOCK) * BLOCK, STEP)
    runs = steps.permute(0, 3, 1, 2, 4).flatten(3)[:, :filters, :, :size]
    return runs.reshape(O, R, S, depth).permute(0, 3, 1, 2).contiguous()


def packed_size(shape: Shape, dilation_w: int, groups: int) -> int:
    """Bytes of packed filters of ``shape`` (O, C / groups, R, S)."""
    O, depth, R, S = shape
    if _is_depthwise(O, depth, groups):
        return O * R * S
    joined = _joins_columns(depth, dilation_w, groups)
    num_runs, size = (R, S * depth) if joined else (R * S, depth)
    return groups * num_runs * -(-size // STEP) * STEP * -(-(O // groups) // BLOCK) * BLOCK


def _is_depthwise(O: int, depth: int, groups: int) -> bool:
    return groups > 1 and depth == 1 and groups == O


def _joins_columns(depth: int, dilation_w: int, groups: int) -> bool:
    return dilation_w == 1 and (groups == 1 or depth % STEP != 0)
