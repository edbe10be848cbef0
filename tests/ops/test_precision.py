"""True float32 in the convolutions behind our operators: torch's settings, which need no GPU."""

import contextlib
import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from torchadder.ops import allow_tf32_in_weight_gradient, precision, weight_gradient
from torchadder.ops.geometry import Geometry
from torchadder.ops.lp import squares

GPU = torch.device("cuda")
GENERAL = torch.backends
CUDNN = torch.backends.cudnn
CONV = torch.backends.cudnn.conv


@pytest.fixture(autouse=True)
def settings():
    """torch's, put back as far as they can be: what convolutions are given stays given."""
    assert (GENERAL.fp32_precision, CUDNN.fp32_precision) == ("none", "none")
    before = CONV.fp32_precision
    yield
    allow_tf32_in_weight_gradient(False)
    GENERAL.fp32_precision = CUDNN.fp32_precision = "none"
    if CONV.fp32_precision != before:
        CONV.fp32_precision = before


def test_default_is_left_as_it_was():
    def seen():
        CUDNN.fp32_precision = "ieee"
        from_general = CONV.fp32_precision
        CUDNN.fp32_precision = "none"
        return from_general, CONV.fp32_precision

    before = seen()
    with precision.of_convolutions(GPU):
        assert CONV.fp32_precision != "tf32"
    assert CUDNN.fp32_precision == "none"
    assert seen() == before


def test_settings_that_convolutions_inherit_still_reach_them_afterwards():
    CONV.fp32_precision = "none"
    for general in (CUDNN, GENERAL):
        for value, other in (("tf32", "ieee"), ("ieee", "tf32")):
            for allowed in (False, True):
                allow_tf32_in_weight_gradient(allowed)
                general.fp32_precision = value
                with precision.of_convolutions(GPU):
                    assert CONV.fp32_precision == ("tf32" if allowed else "ieee")
                assert CONV.fp32_precision == value
                general.fp32_precision = other
                assert CONV.fp32_precision == other
        general.fp32_precision = "none"


def test_setting_of_convolutions_themselves_is_put_back():
    CONV.fp32_precision = "tf32"
    with precision.of_convolutions(GPU):
        assert CONV.fp32_precision == "ieee"
        assert CUDNN.fp32_precision == "none"
    CUDNN.fp32_precision = "ieee"
    assert CONV.fp32_precision == "tf32"


def test_other_threads_wait():
    """The second would see the first one's setting, and lose it halfway."""
    CONV.fp32_precision = "none"
    CUDNN.fp32_precision = "tf32"
    entered = threading.Event()

    def enter():
        with precision.of_convolutions(GPU):
            entered.set()

    with precision.of_convolutions(GPU):
        other = threading.Thread(target=enter)
        other.start()
        assert not entered.wait(0.1)
    other.join(10)
    assert entered.is_set()
    assert CONV.fp32_precision == "tf32"


def test_every_convolution_of_the_operators_is_under_the_guard(monkeypatch):
    inside = []

    @contextlib.contextmanager
    def guard(device):
        inside.append(device)
        yield
        inside.pop()

    class Watch(TorchDispatchMode):
        guarded = ()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "convolution" in function.name():
                self.guarded += (bool(inside),)
            return function(*args, **(kwargs or {}))

    monkeypatch.setattr(precision, "of_convolutions", guard)
    x, w, g = torch.randn(1, 4, 5, 5), torch.randn(6, 2, 3, 3), torch.randn(1, 6, 3, 3)
    geometry = Geometry((1, 1), (0, 0), (1, 1), 2)
    with Watch() as watch:
        squares.adder2d(x, w, None, geometry)
        squares.adder2d_backward_input(g, x, w, geometry)
        weight_gradient.adder2d_backward_weight(g, x, w, geometry)
    assert watch.guarded == (True,) * 5
