"""Depthwise layers: every filter sees one channel, so there is no operand to share between filters.

A tile is 2-d, pixels by channels, one result an element; its lanes run along whatever is contiguous
in memory (``CHANNELS_LAST`` or pixels). These kernels are bound by memory, not by arithmetic.
"""

from __future__ import annotations

import triton
import triton.language as tl

from torchadder.ops.triton.backward_input import factor


@triton.jit
def _tile(
    num_channels, WIDE: tl.constexpr, CHANNELS_LAST: tl.constexpr, PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Pixels and channels of this program, of shapes (P, 1), (1, C) or (1, P), (C, 1)."""
    num_tiles = tl.cdiv(num_channels, CHANNELS)
    tile_m, tile_c = tl.program_id(0) // num_tiles, tl.program_id(0) % num_tiles
    if WIDE:
        tile_m = tile_m.to(tl.int64)
    if CHANNELS_LAST:
        m = tile_m * PIXELS + tl.arange(0, PIXELS)[:, None]
        c = tile_c * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    else:
        m = tile_m * PIXELS + tl.arange(0, PIXELS)[None, :]
        c = tile_c * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    return m, c


@triton.jit(
    do_not_specialize=[
        "num_rows", "num_channels", "height", "width", "out_height", "out_width",
        "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w",
        "in_stride_n", "in_stride_c", "in_stride_h", "in_stride_w",
        "out_stride_n", "out_stride_c", "out_stride_h", "out_stride_w",
    ]
)  # fmt: skip
def depthwise_forward(
    input, weight, bias, output,
    num_rows, num_channels, height, width, out_height, out_width,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    in_stride_n, in_stride_c, in_stride_h, in_stride_w,
    out_stride_n, out_stride_c, out_stride_h, out_stride_w,
    MULTIPLIER: tl.constexpr, R: tl.constexpr, S: tl.constexpr, HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr, CHANNELS_LAST: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``y[n, o, p, q] = bias[o] - sum_rs |x[n, o / MULTIPLIER, ...] - w[o, r, s]|``."""
    m, o = _tile(num_channels, WIDE, CHANNELS_LAST, PIXELS, CHANNELS)
    n, p, q = m // (out_height * out_width), m // out_width % out_height, m % out_width
    known, present = o < num_channels, m < num_rows
    source = n.to(tl.int64) * in_stride_n + (o // MULTIPLIER).to(tl.int64) * in_stride_c
    total = tl.where(known & present, 0.0, 0.0)
    for tap in range(R * S):
        h = p * stride_h - pad_h + tap // S * dilation_h
        v = q * stride_w - pad_w + tap % S * dilation_w
        inside = (h >= 0) & (h < height) & (v >= 0) & (v < width) & present
        place = source + h.to(tl.int64) * in_stride_h + v.to(tl.int64) * in_stride_w
        x = tl.load(input + place, mask=inside & known, other=0.0).to(tl.float32)
        w = tl.load(weight + o * (R * S) + tap, mask=known, other=0.0).to(tl.float32)
        total += tl.abs(x - w)
    result = -total
    if HAS_BIAS:
        result += tl.load(bias + o, mask=known, other=0.0).to(tl.float32)
    target = n.to(tl.int64) * out_stride_n + p.to(tl.int64) * out_stride_h
    target += q.to(tl.int64) * out_stride_w + o.to(tl.int64) * out_stride_c
    tl.store(output + target, result.to(output.dtype.element_ty), mask=known & present)


@triton.jit(
    do_not_specialize=[
        "num_rows", "num_channels", "height", "width", "out_height", "out_width",
        "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w",
        "in_stride_n", "in_stride_c", "in_stride_h", "in_stride_w",
        "stride_g_n", "stride_g_c", "stride_g_h", "stride_g_w",
        "stride_gx_n", "stride_gx_c", "stride_gx_h", "stride_gx_w",
    ]
)  # fmt: skip
def depthwise_backward_input(
    grad_output, input, weight, grad_input,
    num_rows, num_channels, height, width, out_height, out_width,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    stride_g_n, stride_g_c, stride_g_h, stride_g_w,
    in_stride_n, in_stride_c, in_stride_h, in_stride_w,
    stride_gx_n, stride_gx_c, stride_gx_h, stride_gx_w,
    MULTIPLIER: tl.constexpr, R: tl.constexpr, S: tl.constexpr, RULE: tl.constexpr,
    WIDE: tl.constexpr, CHANNELS_LAST: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``gx[n, c, h, w] = sum over filters of c and taps of f(w - x) g``."""
    m, c = _tile(num_channels, WIDE, CHANNELS_LAST, PIXELS, CHANNELS)
    n, h, v = m // (height * width), m // width % height, m % width
    known, present = c < num_channels, m < num_rows
    source = n.to(tl.int64) * in_stride_n + c.to(tl.int64) * in_stride_c
    source += h.to(tl.int64) * in_stride_h + v.to(tl.int64) * in_stride_w
    x = tl.load(input + source, mask=known & present, other=0.0).to(tl.float32)
    total = tl.zeros_like(x)
    for tap in range(R * S):
        from_h = h + pad_h - tap // S * dilation_h
        from_w = v + pad_w - tap % S * dilation_w
        p, q = from_h // stride_h, from_w // stride_w
        met = (from_h % stride_h == 0) & (from_w % stride_w == 0) & present
        inside = met & (from_h >= 0) & (p < out_height) & (from_w >= 0) & (q < out_width) & known
        place = n.to(tl.int64) * stride_g_n + p.to(tl.int64) * stride_g_h
        place += q.to(tl.int64) * stride_g_w
        for j in range(MULTIPLIER):
            o = c * MULTIPLIER + j
            w = tl.load(weight + o * (R * S) + tap, mask=known, other=0.0).to(tl.float32)
            g = tl.load(grad_output + place + o.to(tl.int64) * stride_g_c, mask=inside, other=0.0)
            term = factor(w - x, RULE) * g.to(tl.float32)
            total += tl.where(inside, term, 0.0)
    target = n.to(tl.int64) * stride_gx_n + c.to(tl.int64) * stride_gx_c
    target += h.to(tl.int64) * stride_gx_h + v.to(tl.int64) * stride_gx_w
    tl.store(grad_input + target, total.to(grad_input.dtype.element_ty), mask=known & present)
