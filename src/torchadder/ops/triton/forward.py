"""Forward: ``y[m, o] = bias[o] - sum_k |x[m, k] - w[o, k]|`` as an implicit matrix product.

Rows m are pixels of the output images, columns o the filters of a group, k runs over taps and
channels; images lie channels last. Two instructions a pair, FADD (x - w) and FADD (sum + |.|), the
absolute value being a modifier of the operand.
"""

from __future__ import annotations

import triton
import triton.language as tl

from torchadder.ops.triton.loads import load_pair


@triton.jit
def _accumulate(total, rows, columns, STEP: tl.constexpr, C: tl.constexpr, UNROLL: tl.constexpr):
    """Add the distances of the C channels of one tap to ``total``."""
    for c in range(0, C, UNROLL):
        if UNROLL == 1:
            total += tl.abs(tl.load(rows + c).to(tl.float32) - tl.load(columns + c * STEP))
        else:
            for j in tl.static_range(0, UNROLL, 2):
                x0, x1 = load_pair(rows + c + j)
                w0, w1 = load_pair(columns + (c + j) * STEP)
                total += tl.abs(x0 - w0)
                total += tl.abs(x1 - w1)
    return total


@triton.jit(
    do_not_specialize=[
        "num_rows", "height", "width", "out_height", "out_width", "channels",
        "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w",
        "out_stride_n", "out_stride_c", "out_stride_h", "out_stride_w",
    ]
)  # fmt: skip
def adder2d_forward(
    input, weight, zeros, bias, output,
    num_rows, height, width, out_height, out_width, channels,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    out_stride_n, out_stride_c, out_stride_h, out_stride_w,
    C: tl.constexpr, O: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    HAS_BIAS: tl.constexpr, WIDE: tl.constexpr, BLOCK_SUMS: tl.constexpr, UNROLL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, THREADS_M: tl.constexpr, THREADS_N: tl.constexpr,
):  # fmt: skip
    """One tile of the output.

    C and O count channels of a group; ``channels`` those of the image. BLOCK_SUMS sums each tap on
    its own first. WIDE counts pixels in 64 bits.
    """
    num_tiles: tl.constexpr = (O + COLUMNS * THREADS_N - 1) // (COLUMNS * THREADS_N)
    padded: tl.constexpr = num_tiles * COLUMNS * THREADS_N
    group = tl.program_id(1)
    # Neighbouring programs share rows, whose reads then meet in the second-level cache.
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

    V: tl.constexpr = 2 if UNROLL > 1 else 1
    nowhere = zeros.to(input.dtype, bitcast=True)
    columns = weight + group.to(tl.int64) * (R * S * C) * padded + o * V
    total = tl.zeros((ROWS, COLUMNS, THREADS_M, THREADS_N), tl.float32)
    for tap in range(R * S):
        h = p * stride_h - pad_h + (tap // S) * dilation_h
        w = q * stride_w - pad_w + (tap % S) * dilation_w
        inside = (h >= 0) & (h < height) & (w >= 0) & (w < width) & (m < num_rows)
        pixel = ((n * height + h) * width + w).to(tl.int64)
        rows = tl.where(inside, input + pixel * channels + group * C, nowhere)
        of_filters = columns + tap * C * padded
        if BLOCK_SUMS:
            of_tap = tl.zeros((ROWS, COLUMNS, THREADS_M, THREADS_N), tl.float32)
            total += _accumulate(of_tap, rows, of_filters, padded, C, UNROLL)
        else:
            total = _accumulate(total, rows, of_filters, padded, C, UNROLL)

    result = -total
    if HAS_BIAS:
        result += tl.load(bias + group * O + o, mask=o < O, other=0.0).to(tl.float32)
    offset = n.to(tl.int64) * out_stride_n + p.to(tl.int64) * out_stride_h
    offset += q.to(tl.int64) * out_stride_w + (group * O + o).to(tl.int64) * out_stride_c
    kept = (m < num_rows) & (o < O)
    tl.store(output + offset, result.to(output.dtype.element_ty), mask=kept)
