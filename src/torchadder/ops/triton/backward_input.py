"""Input gradient: ``gx[m, c] = sum_k f(w[k, c] - x[m, c]) g[m, k]`` as an implicit matrix product.

Rows m are pixels of the input images, columns c the channels of a group, k runs over taps and
filters; images lie channels last and x[m, c] stays in registers. With a stride, the pixels that
meet the same taps form a class of their own, so that no tap is tried in vain.

Two instructions a pair for "clip": with ``s = FADD.SAT(w / 2, (1 - x) / 2)``, which is
``(clamp(w - x, -1, 1) + 1) / 2``, and ``sum = FFMA(s, g, sum)``, the gradient is ``2 sum s g - sum
g``; the last sum does not depend on c and is taken beforehand. "sign" needs four: the difference,
two scalings that push the smallest difference beyond 1, and the multiply-add; "l2" is a difference
and a multiply-add by itself. Where x is large (1 - x is rounded) or something is not finite, the
program computes f as it is written: see README.md.
"""

from __future__ import annotations

import triton
import triton.language as tl

from torchadder.ops.triton.loads import load_pair

LARGEST = {"clip": 16.0, "sign": 3.4028234663852886e38, "l2": -1.0}
"""Largest |x| on the short way, by rule; "l2" has none."""


@triton.jit
def factor(difference, RULE: tl.constexpr):
    """``f(w - x)`` of any operands; NaN stays NaN."""
    if RULE == "l2":
        return difference
    elif RULE == "sign":
        sign = (difference > 0).to(tl.float32) - (difference < 0).to(tl.float32)
        return tl.where(difference != difference, difference, sign)
    else:
        return tl.clamp(difference, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _saturated(w, x, RULE: tl.constexpr):
    """``(f(w - x) + 1) / 2`` of finite operands; for "clip" of w / 2 and (1 - x) / 2."""
    if RULE == "sign":
        # The smallest difference, 2^-149, times 2^64 2^127 is beyond 1; overflow saturates, too.
        large = (w - x) * 18446744073709551616.0
        value = tl.fma(large, 170141183460469231731687303715884105728.0, 0.5)
    else:
        value = w + x
    return tl.minimum(tl.maximum(value, 0.0), 1.0)


@triton.jit
def _add_term(total, g, w, x, RULE: tl.constexpr, SHORT: tl.constexpr):
    if SHORT:
        return tl.fma(_saturated(w, x, RULE), g, total)
    elif RULE == "clip":
        return tl.fma(factor(2.0 * w - x, RULE), g, total)
    else:
        return tl.fma(factor(w - x, RULE), g, total)


@triton.jit
def _add_tap(
    total, rows, columns, x,
    STEP: tl.constexpr, O: tl.constexpr, UNROLL: tl.constexpr, RULE: tl.constexpr,
    SHORT: tl.constexpr,
):  # fmt: skip
    """Add the terms of the O filters of one tap."""
    for o in range(0, O, UNROLL):
        if UNROLL == 1:
            g = tl.load(rows + o).to(tl.float32)
            total = _add_term(total, g, tl.load(columns + o * STEP), x, RULE, SHORT)
        else:
            for j in tl.static_range(0, UNROLL, 2):
                g0, g1 = load_pair(rows + o + j)
                w0, w1 = load_pair(columns + (o + j) * STEP)
                total = _add_term(total, g0, w0, x, RULE, SHORT)
                total = _add_term(total, g1, w1, x, RULE, SHORT)
    return total


@triton.jit
def _add_taps(
    total, x, grad_output, columns, zeros, grad_sums, n, i, j, valid, phase_h, phase_w, group,
    out_height, out_width, out_channels, num_groups,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    STEP: tl.constexpr, O: tl.constexpr, R: tl.constexpr, S: tl.constexpr, UNROLL: tl.constexpr,
    RULE: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    """Add the terms of all taps that the pixels (n, i stride + phase, j stride + phase) meet."""
    sums = tl.zeros_like(valid).to(tl.float32)
    nowhere = zeros.to(grad_output.dtype, bitcast=True)
    for tap in range(R * S):
        from_h = phase_h + pad_h - (tap // S) * dilation_h
        from_w = phase_w + pad_w - (tap % S) * dilation_w
        if (from_h % stride_h == 0) & (from_w % stride_w == 0):
            p, q = i + from_h // stride_h, j + from_w // stride_w
            inside = (p >= 0) & (p < out_height) & (q >= 0) & (q < out_width) & valid
            pixel = ((n * out_height + p) * out_width + q).to(tl.int64)
            rows = tl.where(inside, grad_output + pixel * out_channels + group * O, nowhere)
            if SHORT:
                sums += tl.load(grad_sums + pixel * num_groups + group, mask=inside, other=0.0)
            total = _add_tap(total, rows, columns + tap * O * STEP, x, STEP, O, UNROLL, RULE, SHORT)
    return 2.0 * total - sums if SHORT else total


@triton.jit(
    do_not_specialize=[
        "num_rows", "height", "width", "out_height", "out_width", "out_channels", "num_groups",
        "class_height", "class_width", "num_classes_w", "num_classes", "num_blocks",
        "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w",
        "in_stride_n", "in_stride_c", "in_stride_h", "in_stride_w",
        "stride_gx_n", "stride_gx_c", "stride_gx_h", "stride_gx_w",
    ]
)  # fmt: skip
def adder2d_backward_input(
    grad_output, grad_sums, input, weight, zeros, has_nan, grad_input,
    num_rows, height, width, out_height, out_width, out_channels, num_groups,
    class_height, class_width, num_classes_w, num_classes, num_blocks,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    in_stride_n, in_stride_c, in_stride_h, in_stride_w,
    stride_gx_n, stride_gx_c, stride_gx_h, stride_gx_w,
    C: tl.constexpr, O: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    LARGEST_X: tl.constexpr, RULE: tl.constexpr, WIDE: tl.constexpr, UNROLL: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, THREADS_M: tl.constexpr, THREADS_N: tl.constexpr,
):  # fmt: skip
    """One tile of the gradient of one class of pixels.

    C and O count channels of a group. ``weight`` holds w / 2 for "clip", else w.
    """
    num_tiles: tl.constexpr = (C + COLUMNS * THREADS_N - 1) // (COLUMNS * THREADS_N)
    padded: tl.constexpr = num_tiles * COLUMNS * THREADS_N
    group, phase = tl.program_id(1) // num_classes, tl.program_id(1) % num_classes
    phase_h, phase_w = phase // num_classes_w, phase % num_classes_w
    tile_m, tile_n = tl.program_id(0) // num_tiles, tl.program_id(0) % num_tiles
    if WIDE:
        tile_m = tile_m.to(tl.int64)
    m = tile_m * (ROWS * THREADS_M)
    m += tl.arange(0, ROWS)[:, None, None, None] * THREADS_M
    m += tl.arange(0, THREADS_M)[None, None, :, None]
    c = tile_n * (COLUMNS * THREADS_N)
    c += tl.arange(0, COLUMNS)[None, :, None, None] * THREADS_N
    c += tl.arange(0, THREADS_N)[None, None, None, :]
    n, i, j = m // (class_height * class_width), m // class_width % class_height, m % class_width
    h, w = (i * stride_h + phase_h).to(tl.int64), (j * stride_w + phase_w).to(tl.int64)
    valid = (m < num_rows) & (h < height) & (w < width)
    kept = valid & (c < C)
    channel = (group * C + c).to(tl.int64)

    offset = n.to(tl.int64) * in_stride_n + h * in_stride_h + w * in_stride_w
    x = tl.load(input + (offset + channel * in_stride_c), mask=kept, other=0.0).to(tl.float32)
    V: tl.constexpr = 2 if UNROLL > 1 else 1
    columns = weight + group.to(tl.int64) * (R * S * O) * padded + c * V
    block = tl.arange(0, BLOCKS)
    flags = has_nan + (group * num_tiles + tile_n) * num_blocks + block
    is_long = tl.max(tl.load(flags, mask=block < num_blocks, other=0), axis=0)
    is_long = tl.maximum(is_long, tl.max(tl.where(tl.abs(x) <= LARGEST_X, 0, 1)))

    total = tl.zeros((ROWS, COLUMNS, THREADS_M, THREADS_N), tl.float32)
    if is_long != 0:
        total = _add_taps(
            total, x, grad_output, columns, zeros, grad_sums, n, i, j, valid, phase_h, phase_w,
            group, out_height, out_width, out_channels, num_groups,
            stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
            padded, O, R, S, UNROLL, RULE, False,
        )  # fmt: skip
    else:
        operand = x if RULE == "sign" else 0.5 - 0.5 * x
        total = _add_taps(
            total, operand, grad_output, columns, zeros, grad_sums, n, i, j, valid, phase_h,
            phase_w, group, out_height, out_width, out_channels, num_groups,
            stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
            padded, O, R, S, UNROLL, RULE, True,
        )  # fmt: skip
    target = n.to(tl.int64) * stride_gx_n + h * stride_gx_h + w * stride_gx_w
    target += channel * stride_gx_c
    tl.store(grad_input + target, total.to(grad_input.dtype.element_ty), mask=kept)
