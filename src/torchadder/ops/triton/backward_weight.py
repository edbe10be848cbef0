"""Weight gradient of the rule "exact": ``gw[k, o] = sum_m sign(x[m, k] - w[k, o]) g[m, o]``.

The other rules need no kernel, a convolution's weight gradient serves them. Rows k are the channels
of one tap, columns o the filters of a group; the sum runs over a share of the output pixels. The
shares are summed in a second step, in a fixed order, so that the result is deterministic.
"""

from __future__ import annotations

import triton
import triton.language as tl

from torchadder.ops.triton.backward_input import factor


@triton.jit(
    do_not_specialize=[
        "num_pixels", "share", "height", "width", "out_height", "out_width", "channels",
        "out_channels", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w",
    ]
)  # fmt: skip
def adder2d_backward_weight_sign(
    grad_output, input, weight, partial,
    num_pixels, share, height, width, out_height, out_width, channels, out_channels,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    C: tl.constexpr, O: tl.constexpr, R: tl.constexpr, S: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, THREADS_M: tl.constexpr, THREADS_N: tl.constexpr,
):  # fmt: skip
    """One tile of one tap, summed over one share of the pixels.

    ``weight`` is (O, C, R, S) contiguous, ``partial`` (shares, O, C, R, S) in float32.
    """
    tiles_c: tl.constexpr = (C + ROWS * THREADS_M - 1) // (ROWS * THREADS_M)
    tiles_o: tl.constexpr = (O + COLUMNS * THREADS_N - 1) // (COLUMNS * THREADS_N)
    tile, tap = tl.program_id(0) // (R * S), tl.program_id(0) % (R * S)
    group = tile // (tiles_c * tiles_o)
    c = tile // tiles_o % tiles_c * (ROWS * THREADS_M)
    c += tl.arange(0, ROWS)[:, None, None, None] * THREADS_M
    c += tl.arange(0, THREADS_M)[None, None, :, None]
    o = tile % tiles_o * (COLUMNS * THREADS_N)
    o += tl.arange(0, COLUMNS)[None, :, None, None] * THREADS_N
    o += tl.arange(0, THREADS_N)[None, None, None, :]
    kept = (c < C) & (o < O)
    element = ((group * O + o).to(tl.int64) * C + c) * (R * S) + tap
    w = tl.load(weight + element, mask=kept, other=0.0).to(tl.float32)

    first = tl.program_id(1)
    if WIDE:
        first = first.to(tl.int64)
    first *= share
    total = tl.zeros((ROWS, COLUMNS, THREADS_M, THREADS_N), tl.float32)
    for step in range(0, tl.minimum(share, num_pixels - first)):
        m = first + step + tl.zeros((1, 1, 1, 1), tl.int32)
        h = m // out_width % out_height * stride_h - pad_h + tap // S * dilation_h
        v = m % out_width * stride_w - pad_w + tap % S * dilation_w
        inside = (h >= 0) & (h < height) & (v >= 0) & (v < width)
        pixel = ((m // (out_height * out_width) * height + h) * width + v).to(tl.int64)
        x = tl.load(input + pixel * channels + group * C + c, mask=(c < C) & inside, other=0.0)
        row = grad_output + m.to(tl.int64) * out_channels + group * O
        g = tl.load(row + o, mask=o < O, other=0.0)
        total = tl.fma(factor(x.to(tl.float32) - w, "sign"), g.to(tl.float32), total)
    size = tl.num_programs(0).to(tl.int64) // (tiles_c * tiles_o) * O * C
    tl.store(partial + tl.program_id(1) * size + element, total, mask=kept)
