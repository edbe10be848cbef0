"""Wrong arguments: the right exception, naming argument, value and expectation."""

import pytest
import torch

import torchadder as ta
from torchadder import functional as AF

ops = torch.ops.torchadder
x = torch.zeros(2, 4, 5, 5)
w = torch.zeros(6, 4, 3, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: AF.adder2d(x[0, 0], w), ValueError, "input must have 4 dimensions, or 3"),
        (lambda: AF.adder2d(x, w[0]), ValueError, "weight must have 4 dimensions, got 3"),
        (lambda: AF.adder2d(x.numpy(), w), TypeError, "input must be a torch.Tensor, got ndarray"),
        (lambda: AF.adder2d(x, None), TypeError, "weight must be a torch.Tensor, got NoneType"),
        (lambda: AF.adder2d(x, w[:, :3]), ValueError, "input must have .* = 3 \\* 1 = 3 channels, got 4"),
        (lambda: AF.adder2d(x, w, groups=4), ValueError, "weight.shape.0. .=6. must be divisible by groups .=4."),
        (lambda: AF.adder2d(x, w, groups=3), ValueError, "input.shape.1. .=4. must be divisible by groups .=3."),
        (lambda: AF.adder2d(x, w, groups=0), ValueError, "groups must be at least 1, got 0"),
        (lambda: AF.adder2d(x, w, stride=0), ValueError, "stride must be at least 1"),
        (lambda: AF.adder2d(x, w, padding=-1), ValueError, "padding must be at least 0"),
        (lambda: AF.adder2d(x, w, dilation=(1, 0)), ValueError, "dilation must be at least 1"),
        (lambda: AF.adder2d(x, w, stride=(1, 2, 3)), ValueError, "stride must be an int or 2 ints"),
        (lambda: AF.adder2d(x, w, stride=1.5), TypeError, "stride must be an int or 2 ints, got 1.5"),
        (lambda: AF.adder2d(x, w, stride=True), TypeError, "stride must be an int or 2 ints, got True"),
        (lambda: AF.adder2d(x, w, padding="full"), ValueError, "padding must be 'same', 'valid' or ints"),
        (lambda: AF.adder2d(x, w, padding="same", stride=2), ValueError, "padding='same' needs stride 1"),
        (lambda: AF.adder2d(x[..., :2], w), ValueError, "5 x 2 .* smaller than the window"),
        (lambda: AF.adder2d(x, w, dilation=3), ValueError, "needs at least 7 x 7"),
        (lambda: AF.adder2d(x, w[:0]), ValueError, "weight must not be empty"),
        (lambda: AF.adder2d(x, w, torch.zeros(5)), ValueError, "bias must have .* = 6 elements, got 5"),
        (lambda: AF.adder2d(x, w, torch.zeros(6, 1)), ValueError, "bias must have 1 dimensions"),
        (lambda: AF.adder2d(x, w.double()), TypeError, "weight must have the dtype of input .torch.float32., got torch.float64"),
        (lambda: AF.adder2d(x, w, 3.0), TypeError, "bias must be a torch.Tensor or None, got float"),
        (lambda: AF.adder2d(x, w, groups=1.5), TypeError, "groups must be an int, got 1.5"),
        (lambda: AF.adder2d(x.int(), w.int()), TypeError, "input must be one of float32, .*, got torch.int32"),
        (lambda: AF.adder2d(x, w.to("meta")), ValueError, "weight must be on the device of input .cpu., got meta"),
        (lambda: AF.adder2d(x, w, grad="l1"), ValueError, "grad must be one of clip, sign, l2, exact, got 'l1'"),
        (lambda: AF.adder1d(x, w), ValueError, "input must have 3 dimensions, or 2"),
        (lambda: AF.adder_linear(x, torch.zeros(3, 4)), ValueError, "4 features in its last dimension"),
        (lambda: AF.adder_linear(x, w), ValueError, "weight must have 2 dimensions, got 4"),
        (lambda: AF.adder_linear(x[..., :0], w[0, 0, :, :0]), ValueError, "weight must not be empty, got shape .3, 0."),
        (lambda: AF.adder_transpose2d(x, w[:4], padding=4), ValueError, "output must not be empty, got -1 x -1 from input of 5 x 5"),
        (lambda: AF.adder_transpose2d(x[:, :, :0], w[:4], stride=2), ValueError, "input must hold at least one pixel, got 0 x 5"),
        (lambda: AF.adder_transpose2d(x, w[:4], groups=2.0), TypeError, "groups must be an int, got 2.0"),
        (lambda: AF.adder_transpose2d(x, w), ValueError, "weight.shape.0. = 6 channels, got 4"),
        (lambda: AF.adder_transpose2d(x, w[:4], output_padding=1), ValueError, "output_padding .1, 1. must be smaller"),
        (lambda: AF.adder_transpose2d(x, w[:4], groups=3), ValueError, "divisible by groups .=3."),
        (lambda: ta.nn.Adder2d(3, 4, 3, groups=2), ValueError, "in_channels .=3. must be divisible by groups .=2."),
        (lambda: ta.nn.Adder1d(4, 3, 3, groups=2), ValueError, "out_channels .=3. must be divisible by groups .=2."),
        (lambda: ta.nn.AdderTranspose2d(0, 3, 3), ValueError, "in_channels must be at least 1, got 0"),
        (lambda: ta.nn.Adder2d(4, 4, 3, groups=0), ValueError, "groups must be at least 1, got 0"),
        (lambda: ta.nn.Adder2d(3, 4, 0), ValueError, "kernel_size must be at least 1, got 0"),
        (lambda: ta.nn.Adder2d(3, 4, 3, grad="sgn"), ValueError, "grad must be one of"),
        (lambda: ta.nn.Adder2d(3, 4, 3, padding_mode="wrap"), ValueError, "padding_mode"),
        (lambda: ta.nn.AdderLinear(0, 4), ValueError, "must be at least 1, got 0 and 4"),
        (lambda: ops.adder2d_backward_input(x, x, w, [1, 1], [0, 0], [1, 1], 1, "clip"), ValueError, "grad_output must have shape .2, 6, 3, 3."),
        (lambda: ops.adder2d_backward_input(torch.zeros(2, 6, 3, 3).double(), x, w, [1, 1], [0, 0], [1, 1], 1, "clip"), TypeError, "grad_output must have the dtype of input"),
        (lambda: ops.adder2d_backward_weight(x, x, w, [1, 1], [0, 0], [1, 1], 1, "clip"), ValueError, "grad_output must have shape"),
    ],
)  # fmt: skip
def test_message(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_nothing_runs_on_bad_input(monkeypatch):
    def forbidden(*args):
        raise AssertionError("a kernel ran")

    monkeypatch.setattr("torchadder.ops.cpu.adder2d", forbidden)
    monkeypatch.setattr("torchadder.ops.reference.adder2d", forbidden)
    with pytest.raises(ValueError, match="channels"):
        AF.adder2d(x, w[:, :3])
