"""The 1-d, linear and transposed forms, padding words and unbatched inputs."""

import pytest
import torch
import torch.nn.functional as F

from torchadder import functional as AF
from torchadder.ops import reference
from torchadder.ops.geometry import Geometry


def test_adder1d():
    x, w, b = torch.randn(2, 4, 11), torch.randn(6, 2, 3), torch.randn(6)
    got = AF.adder1d(x, w, b, stride=2, padding=2, dilation=2, groups=2)
    geometry = Geometry((1, 2), (0, 2), (1, 2), 2)
    want = reference.adder2d(x[:, :, None], w[:, :, None], b, geometry)[:, :, 0]
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(AF.adder1d(x[0], w, b, 2, 2, 2, 2), want[0])


def test_adder_linear():
    x, w, b = torch.randn(2, 3, 5), torch.randn(4, 5), torch.randn(4)
    want = b - torch.cdist(x, w.expand(2, 4, 5), p=1)
    torch.testing.assert_close(AF.adder_linear(x, w, b), want)
    torch.testing.assert_close(AF.adder_linear(x[0, 0], w, b), want[0, 0])
    assert AF.adder_linear(x[:0], w).shape == (0, 3, 4)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # conv2d's
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 5)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_keeps_the_size(kernel, dilation):
    x, w = torch.randn(2, 3, 9, 10), torch.randn(4, 3, *kernel)
    got = AF.adder2d(x, w, padding="same", dilation=dilation)
    assert got.shape == (2, 4, 9, 10)
    total = [dilation * (k - 1) for k in kernel]
    padded = F.pad(
        x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2)
    )
    torch.testing.assert_close(got, AF.adder2d(padded, w, dilation=dilation))
    # torch puts the extra zero at the end, too
    conv = F.conv2d(x, w, padding="same", dilation=dilation)
    torch.testing.assert_close(conv, F.conv2d(padded, w, dilation=dilation), rtol=1e-4, atol=1e-4)


def test_valid_padding_and_unbatched_input():
    x, w = torch.randn(2, 3, 9, 10), torch.randn(4, 3, 3, 3)
    want = AF.adder2d(x, w)
    assert torch.equal(AF.adder2d(x, w, padding="valid"), want)
    assert torch.equal(AF.adder2d(x[1], w), want[1])


TRANSPOSED = [
    {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1},
    {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2, "dilation": 1},
    {
        "stride": (3, 2),
        "padding": (0, 2),
        "output_padding": (2, 0),
        "groups": 1,
        "dilation": (1, 2),
    },
    {
        "stride": (1, 2),
        "padding": (3, 2),
        "output_padding": (0, 1),
        "groups": 2,
        "dilation": (2, 1),
    },
]


@pytest.mark.parametrize("window", TRANSPOSED)
def test_transposed_is_the_adder_layer_of_the_spread_input(window):
    x, w, b = torch.randn(2, 4, 5, 6), torch.randn(4, 3, 3, 4), torch.randn(3 * window["groups"])
    got = AF.adder_transpose2d(x, w, b, **window)
    conv = F.conv_transpose2d(x, w, b, **window)
    assert got.shape == conv.shape
    # The same spreading, flipping and padding turns conv2d into conv_transpose2d.
    pair = lambda v: (v, v) if isinstance(v, int) else v  # noqa: E731
    (sh, sw), (ph, pw), (oh, ow), (dh, dw) = (
        pair(window[k]) for k in ("stride", "padding", "output_padding", "dilation")
    )
    groups = window["groups"]
    spread = x.new_zeros(2, 4, 4 * sh + 1, 5 * sw + 1)
    spread[:, :, ::sh, ::sw] = x
    top, left = dh * 2 - ph, dw * 3 - pw
    spread = F.pad(spread, (left, left + ow, top, top + oh))
    kernel = torch.cat([part.transpose(0, 1) for part in w.chunk(groups)]).flip(2, 3)
    torch.testing.assert_close(
        F.conv2d(spread, kernel, b, 1, 0, (dh, dw), groups), conv, rtol=1e-4, atol=1e-4
    )
    want = reference.adder2d(spread, kernel, b, Geometry((1, 1), (0, 0), (dh, dw), groups))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(AF.adder_transpose2d(x[0], w, b, **window), want[0])


def test_transposed_1d():
    x, w = torch.randn(2, 4, 5), torch.randn(4, 3, 4)
    got = AF.adder_transpose1d(x, w, None, 2, 1, 1)
    want = AF.adder_transpose2d(x[:, :, None], w[:, :, None], None, (1, 2), (0, 1), (0, 1))
    assert torch.equal(got, want[:, :, 0])
    assert got.shape == F.conv_transpose1d(x, w, None, 2, 1, 1).shape
