"""The one tolerance of the operator tests.

A float sum of n terms errs by at most ``n eps S`` and by about ``sqrt(n) eps S`` as roundings
go either way, S the sum of the absolute values of the terms. The kernels sum at most 512 terms in
a row before they start afresh: sqrt(512) < 32. The identities that trade terms for others are used
only where they cost less than a factor of 8 in S (see csrc/src/forward.h), which the roundings of
either sign have kept below the other factor so far. Hence ``|got - want| <= 32 eps S``, with want
in float64: a bound between what is seen (about 12) and what could be (sqrt(512) * 8).
"""

import torch

from torchadder.ops import reference

FACTOR = 32


def assert_close(got, want, magnitude, note=""):
    """Check ``|got - want| <= FACTOR eps magnitude`` and that NaN and infinities agree."""
    assert got.shape == want.shape, f"{note}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    finite = want.isfinite()
    assert torch.equal(got.isfinite(), finite), f"{note}: other values are finite"
    assert torch.equal(got.isnan(), want.isnan()), f"{note}: other values are NaN"
    rest = ~finite & ~want.isnan()
    assert torch.equal(got[rest].double(), want[rest]), f"{note}: other infinities"
    excess = (got.double() - want).abs() - FACTOR * torch.finfo(got.dtype).eps * magnitude
    worst = excess[finite].max() if finite.any() else torch.tensor(0.0)
    assert worst <= 0, f"{note}: error exceeds the bound by {worst.item():.3g}"


def forward_in_float64(input, weight, bias, geometry):
    """The oracle's output and the magnitude of its terms."""
    wide = [None if t is None else t.double() for t in (input, weight, bias)]
    distance = -reference.adder2d(wide[0], wide[1], None, geometry)
    offset = 0 if bias is None else wide[2].abs()[:, None, None]
    return reference.adder2d(*wide, geometry), distance + offset


def input_gradient_in_float64(grad_output, input, weight, geometry, rule, monkeypatch):
    """The oracle's input gradient and the magnitude of its terms."""
    g, x, w = grad_output.double(), input.double(), weight.double()
    factor = reference.INPUT_FACTOR[rule]
    monkeypatch.setitem(reference.INPUT_FACTOR, "magnitude", lambda d: factor(d).abs())
    magnitude = reference.adder2d_backward_input(g.abs(), x, w, geometry, "magnitude")
    return reference.adder2d_backward_input(g, x, w, geometry, rule), magnitude


def weight_gradient_in_float64(grad_output, input, weight, geometry, rule):
    """The oracle's weight gradient and the magnitude of its terms, ``|x g| + |w g|`` or ``|g|``."""
    g, x, w = grad_output.double(), input.double(), weight.double()
    want = reference.adder2d_backward_weight(g, x, w, geometry, rule)
    # -(|x| - (-|w|)) with signs arranged so that every term is positive
    size = x.abs() if rule != "exact" else torch.zeros_like(x)
    shift = -w.abs() if rule != "exact" else -torch.ones_like(w)
    magnitude = reference.adder2d_backward_weight(g.abs(), size, shift, geometry, "l2")
    return want, magnitude
