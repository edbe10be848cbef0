"""Layers of bytes that every implementation has to get right, and what is right."""

import itertools

import torch

# (N, C, H, W), (O, R, S), stride, padding, dilation, groups
PROBLEMS = [
    ((2, 16, 9, 7), (32, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 3, 20, 21), (10, 7, 7), (2, 2), (3, 3), (1, 1), 1),
    ((1, 64, 14, 14), (70, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 64, 13, 9), (33, 1, 1), (2, 2), (0, 0), (1, 1), 1),
    ((1, 8, 12, 12), (9, 3, 2), (1, 3), (2, 0), (2, 3), 1),
    ((1, 5, 8, 8), (7, 2, 3), (1, 1), (0, 1), (3, 2), 1),
    ((3, 12, 7, 7), (6, 3, 3), (1, 1), (1, 1), (1, 1), 3),
    ((1, 16, 6, 6), (34, 3, 3), (1, 1), (0, 0), (1, 1), 2),
    ((1, 8, 6, 6), (4, 2, 2), (1, 1), (0, 0), (1, 1), 2),
    ((2, 19, 8, 9), (19, 3, 5), (2, 1), (1, 2), (1, 1), 19),
    ((1, 4, 3, 3), (8, 3, 3), (1, 1), (40, 0), (1, 1), 4),
    ((0, 8, 5, 5), (8, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 512, 3, 3), (8, 3, 3), (1, 1), (1, 1), (1, 1), 1),
]


def random_bytes(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def operands(problem, kind="adder2d"):
    (N, C, H, W), (O, R, S), stride, padding, dilation, groups = problem
    x = random_bytes(N, C, H, W).contiguous(memory_format=torch.channels_last)
    w = random_bytes(O, C // groups, R, S)
    if kind == "conv2d":
        w = w.view(torch.int8)
    return x, w, (stride, padding, dilation, groups)


def plain_sums(x, w, zero_point, stride, padding, dilation, groups):
    """Every tap by itself."""
    N, C, H, W = x.shape
    O, depth, R, S = w.shape
    P = (H + 2 * padding[0] - dilation[0] * (R - 1) - 1) // stride[0] + 1
    Q = (W + 2 * padding[1] - dilation[1] * (S - 1) - 1) // stride[1] + 1
    image = torch.full((N, C, H + 2 * padding[0], W + 2 * padding[1]), zero_point)
    image[:, :, padding[0] : padding[0] + H, padding[1] : padding[1] + W] = x
    y = torch.zeros(N, O, P, Q, dtype=torch.int64)
    for o, r, s in itertools.product(range(O), range(R), range(S)):
        first = o // (O // groups) * depth
        rows = slice(r * dilation[0], r * dilation[0] + (P - 1) * stride[0] + 1, stride[0])
        cols = slice(s * dilation[1], s * dilation[1] + (Q - 1) * stride[1] + 1, stride[1])
        taps = image[:, first : first + depth, rows, cols]
        weights = w[o, :, r, s].long()[:, None, None]
        terms = taps * weights if w.dtype == torch.int8 else -(taps - weights).abs()
        y[:, o] += terms.sum(1)
    return y


def random_requantisation(sums, with_residual):
    """Arguments of a requantised layer behind its window, and the bytes that it has to give."""
    O = sums.shape[1]
    multiplier = torch.randint(-(2**31) + 1, 2**31, (O,), dtype=torch.int32)
    middle = sums.float().mean((0, 2, 3)).nan_to_num().long()
    offset = -multiplier.long() * middle + torch.randint(-(2**40), 2**40, (O,))
    residual = random_bytes(*sums.shape) if with_residual else None
    want = sums * multiplier[:, None, None] + offset[:, None, None]
    if residual is not None:
        want = want - 2_000_000_011 * residual.long()
    want = torch.div(want, 2**33, rounding_mode="floor").clamp(3, 250)
    return (multiplier, offset, 33, 3, 250, residual, -2_000_000_011), want
