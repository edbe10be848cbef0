"""Adder layers of bytes: ``y[m, o] = -sum_k |x[m, k] - w[o, k]|``, exact, as bytes or int32.

An implicit matrix product like :mod:`forward`, but operands are words of four bytes: on NVIDIA
chips from compute capability 7.5 to 10.0 one instruction (``VABSDIFF4.U8.ACC``) takes four absolute
differences and adds their sum, an eighth of the forward's instructions a pair. A step reads eight
bytes of a pixel and eight of each filter, in the order in which filters are packed for processors.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _add_distances(total, x, w, PTX: tl.constexpr):
    """``total`` and the absolute differences of the four bytes of two words."""
    if PTX:
        return tl.inline_asm_elementwise(
            "vabsdiff4.u32.u32.u32.add $0, $1, $2, $3;", "=r,r,r,r", [x, w, total],
            dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        for i in tl.static_range(4):
            total += tl.abs(((x >> (8 * i)) & 255) - ((w >> (8 * i)) & 255))
        return total


@triton.jit
def _add_step(total, rows, columns, PTX: tl.constexpr):
    """Add the distances of eight bytes."""
    x, w = tl.load(rows), tl.load(columns)
    total = _add_distances(total, x.to(tl.int32), w.to(tl.int32), PTX)
    return _add_distances(total, (x >> 32).to(tl.int32), (w >> 32).to(tl.int32), PTX)


@triton.jit(
    do_not_specialize=[
        "num_rows", "height", "width", "out_height", "out_width", "channels", "out_channels",
        "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w",
        "shift", "low", "high", "residual_multiplier",
    ]
)  # fmt: skip
def adder2d_int8(
    input, packed, nowhere, multiplier, offset, residual, output,
    num_rows, height, width, out_height, out_width, channels, out_channels,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    shift, low, high, residual_multiplier,
    C: tl.constexpr, O: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    REQUANTISE: tl.constexpr, HAS_RESIDUAL: tl.constexpr, WIDE: tl.constexpr,
    UNROLL: tl.constexpr, PTX: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, THREADS_M: tl.constexpr, THREADS_N: tl.constexpr,
):  # fmt: skip
    """One tile of the output.

    C and O count channels of a group, C in eights; ``channels`` and ``out_channels`` those of the
    images. ``nowhere`` holds C zero points, which stand for what is outside of the image. WIDE
    counts pixels in 64 bits.
    """
    num_tiles: tl.constexpr = (O + COLUMNS * THREADS_N - 1) // (COLUMNS * THREADS_N)
    filters: tl.constexpr = (O + 7) // 8 * 8
    group = tl.program_id(1)
    tile_m, tile_n = tl.program_id(0) // num_tiles, tl.program_id(0) % num_tiles
    if WIDE:
        tile_m = tile_m.to(tl.int64)
    m = tile_m * (ROWS * THREADS_M)
    m += tl.arange(0, ROWS)[:, None, None, None] * THREADS_M
    m += tl.arange(0, THREADS_M)[None, None, :, None]
    o = tile_n * (COLUMNS * THREADS_N)
    o += tl.arange(0, COLUMNS)[None, :, None, None] * THREADS_N
    o += tl.arange(0, THREADS_N)[None, None, None, :]
    n, p, q = m // (out_height * out_width), m // out_width % out_height, m % out_width

    images = input.to(tl.pointer_type(tl.int64))
    outside = nowhere.to(tl.pointer_type(tl.int64))
    # Beyond the last filter the last one is read again, and not written.
    columns = packed.to(tl.pointer_type(tl.int64)) + tl.minimum(o, filters - 1)
    columns += group.to(tl.int64) * (R * S * (C // 8)) * filters
    total = tl.zeros((ROWS, COLUMNS, THREADS_M, THREADS_N), tl.int32)
    for tap in range(R * S):
        h = p * stride_h - pad_h + (tap // S) * dilation_h
        v = q * stride_w - pad_w + (tap % S) * dilation_w
        inside = (h >= 0) & (h < height) & (v >= 0) & (v < width) & (m < num_rows)
        pixel = ((n * height + h) * width + v).to(tl.int64)
        rows = tl.where(inside, images + (pixel * channels + group * C) // 8, outside)
        of_tap = columns + tap * (C // 8) * filters
        for step in range(0, C // 8, UNROLL):
            for j in tl.static_range(UNROLL):
                total = _add_step(total, rows + step + j, of_tap + (step + j) * filters, PTX)

    kept = (m < num_rows) & (o < O)
    channel = group * O + o
    target = m.to(tl.int64) * out_channels + channel
    if REQUANTISE:
        factor = tl.load(multiplier + channel, mask=o < O, other=0).to(tl.int64)
        value = tl.load(offset + channel, mask=o < O, other=0) - total.to(tl.int64) * factor
        if HAS_RESIDUAL:
            more = tl.load(residual + target, mask=kept, other=0)
            value += more.to(tl.int64) * residual_multiplier.to(tl.int64)
        value = value >> shift.to(tl.int64)
        value = tl.minimum(tl.maximum(value, low.to(tl.int64)), high.to(tl.int64))
        tl.store(output + target, value.to(tl.uint8), mask=kept)
    else:
        tl.store(output + target, -total, mask=kept)
