"""The specification itself, against hand cases, plain loops and torch.cdist."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from cases import CASES, Case
from torchadder.ops import reference
from torchadder.ops.geometry import GRAD_RULES, Geometry


def unfolded_patches(input, weight, geometry):
    """(N, G, K, L) patches of the zero-padded input and (G, O, K) filters."""
    N = input.shape[0]
    columns = F.unfold(
        input, weight.shape[2:], geometry.dilation, geometry.padding, geometry.stride
    )
    groups = geometry.groups
    return columns.reshape(N, groups, -1, columns.shape[-1]), weight.reshape(
        groups, weight.shape[0] // groups, -1
    )


@pytest.mark.parametrize("case", [c for c in CASES if c.input[0]], ids=str)
def test_forward_equals_cdist_of_unfolded_patches(case):
    x, w, b = case.draw(torch.float64)
    patches, filters = unfolded_patches(x, w, case.geometry)
    distance = torch.cdist(filters.expand(x.shape[0], -1, -1, -1), patches.mT, p=1)
    want = -distance.flatten(1, 2)
    got = reference.adder2d(x, w, b, case.geometry).flatten(2)
    if b is not None:
        want = want + b[:, None]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_forward_by_hand():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    w = torch.tensor([[[[0.0, 2.0], [5.0, 4.0]]]])
    y = reference.adder2d(x, w, torch.tensor([0.5]), Geometry((1, 1), (0, 0), (1, 1), 1))
    assert y.item() == -(1 + 0 + 2 + 0) + 0.5


def test_padding_counts():
    """A padded tap contributes -|0 - w|."""
    x = torch.zeros(1, 1, 1, 1)
    w = torch.full((1, 1, 3, 3), 2.0)
    y = reference.adder2d(x, w, None, Geometry((1, 1), (1, 1), (1, 1), 1))
    assert y.item() == -18.0


LOOP_CASES = [
    Case("a", (2, 2, 4, 5), (2, 3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
    Case("b", (1, 3, 3, 3), (2, 2, 2), padding=(1, 1)),
    Case("c", (2, 4, 3, 4), (4, 1, 3), stride=(1, 3), padding=(0, 4), groups=4),
]


@pytest.mark.parametrize("rule", GRAD_RULES)
@pytest.mark.parametrize("case", LOOP_CASES, ids=str)
def test_gradients_equal_plain_loops(case, rule):
    x, w, _ = case.draw(torch.float64)
    x[0, 0, 0, :2] = w[0, 0, 0, 0]  # ties
    (sh, sw), (ph, pw), (dh, dw), groups = case.geometry
    N, _, H, W = x.shape
    O, C_group, R, S = w.shape
    y = reference.adder2d(x, w, None, case.geometry)
    g = torch.randn_like(y)
    want_x, want_w = torch.zeros_like(x), torch.zeros_like(w)
    clip = {"clip": lambda d: max(-1.0, min(1.0, d)), "l2": lambda d: d}
    sign = lambda d: float(d > 0) - float(d < 0)  # noqa: E731
    for n, o, p, q, c, r, s in itertools.product(
        range(N), range(O), range(y.shape[2]), range(y.shape[3]), range(C_group), range(R), range(S)
    ):
        h, v = p * sh + r * dh - ph, q * sw + s * dw - pw
        channel = o // (O // groups) * C_group + c
        inside = 0 <= h < H and 0 <= v < W
        value = x[n, channel, h, v].item() if inside else 0.0
        d = w[o, c, r, s].item() - value
        if inside:
            want_x[n, channel, h, v] += clip.get(rule, sign)(d) * g[n, o, p, q]
        want_w[o, c, r, s] += (sign(-d) if rule == "exact" else -d) * g[n, o, p, q]
    got_x = reference.adder2d_backward_input(g, x, w, case.geometry, rule)
    got_w = reference.adder2d_backward_weight(g, x, w, case.geometry, rule)
    torch.testing.assert_close(got_x, want_x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got_w, want_w, rtol=1e-12, atol=1e-12)


def test_chunks_do_not_change_the_result(monkeypatch):
    case = Case("", (5, 6, 9, 8), (14, 3, 3), stride=(2, 1), padding=(1, 1), groups=2)
    x, w, _ = case.draw(torch.float64)
    whole = reference.adder2d(x, w, None, case.geometry)
    g = torch.randn_like(whole)
    run = lambda: (  # noqa: E731
        reference.adder2d(x, w, None, case.geometry),
        reference.adder2d_backward_input(g, x, w, case.geometry, "clip"),
        reference.adder2d_backward_weight(g, x, w, case.geometry, "clip"),
    )
    want = run()
    for limit in (1, 100, 2000):
        monkeypatch.setattr(reference, "CHUNK_ELEMENTS", limit)
        for got, expected in zip(run(), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_sign_keeps_nan():
    values = torch.tensor([-2.0, -0.0, 0.0, 3.0, float("inf"), float("nan")])
    got = reference.sign(values)
    assert got[:5].tolist() == [-1, 0, 0, 1, 1]
    assert got[5].isnan()
