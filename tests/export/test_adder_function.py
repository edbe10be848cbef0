"""The function Adder2d of ONNX models: equal to the operator within the rounding of its sums."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cases import CASES
from closeness import forward_in_float64

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from export.onnx_runs import rounding_bound, run, session  # noqa: E402
from torchadder.export import adder_function  # noqa: E402

DTYPES = {torch.float32: onnx.TensorProto.FLOAT, torch.float64: onnx.TensorProto.DOUBLE}


def model_of(weight, geometry):
    """A model of one node, with no shape fixed."""
    (sh, sw), (ph, pw), (dh, dw), groups = geometry
    node = onnx.helper.make_node(
        "Adder2d", ["x", "w"], ["y"], domain="torchadder",
        strides=[sh, sw], pads=[ph, pw, ph, pw], dilations=[dh, dw], group=groups,
    )  # fmt: skip
    kind = DTYPES[weight.dtype]
    graph = onnx.helper.make_graph(
        [node],
        "one_layer",
        [onnx.helper.make_tensor_value_info("x", kind, [None] * 4)],
        [onnx.helper.make_tensor_value_info("y", kind, [None] * 4)],
        [onnx.numpy_helper.from_array(weight.numpy(), "w")],
    )
    model = onnx.helper.make_model(
        graph,
        functions=[adder_function.adder2d()],
        opset_imports=[
            onnx.helper.make_opsetid("", adder_function.OPSET),
            onnx.helper.make_opsetid("torchadder", adder_function.VERSION),
        ],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def assert_is_the_operator(got, x, weight, geometry):
    want, magnitude = forward_in_float64(x, weight, None, geometry)
    assert got.shape == want.shape
    assert got.dtype == x.dtype
    _, Cg, R, S = weight.shape
    bound = rounding_bound(adder_function.terms_in_a_row(Cg, R * S), magnitude, x.dtype)
    excess = (got.double() - want).abs() - bound
    assert (excess <= 0).all(), f"error exceeds the bound by {excess.max().item():.3g}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_operator(case):
    x, weight, _ = case.draw()
    x = x.contiguous()
    (got,) = run(model_of(weight, case.geometry), x)
    assert_is_the_operator(got, x, weight, case.geometry)


@pytest.mark.parametrize("case", CASES[2:28:5], ids=str)
def test_float64(case):
    x, weight, _ = case.draw(torch.float64)
    (got,) = run(model_of(weight, case.geometry), x)
    want, magnitude = forward_in_float64(x, weight, None, case.geometry)
    _, Cg, R, S = weight.shape
    # The oracle is in float64, too, so both may be off.
    terms = adder_function.terms_in_a_row(Cg, R * S) + Cg * R * S
    assert ((got - want).abs() <= rounding_bound(terms, magnitude, torch.float64)).all()


def test_bound_notices_one_wrong_tap():
    """The tolerance is tight enough to see one tap of one filter that is off by a hundredth."""
    case = next(c for c in CASES if c.name == "K above a block")
    x, weight, _ = case.draw()
    wrong = weight.clone()
    wrong[3, 5, 1, 1] += 0.01
    (got,) = run(model_of(wrong, case.geometry), x)
    with pytest.raises(AssertionError, match="exceeds the bound"):
        assert_is_the_operator(got, x, weight, case.geometry)


def test_one_model_takes_any_size():
    torch.manual_seed(1)
    weight = torch.randn(6, 4, 3, 3)
    geometry = next(c for c in CASES if c.name == "3x3 stride 2").geometry
    opened = session(model_of(weight, geometry))
    for shape in ((1, 4, 8, 8), (3, 4, 5, 17), (2, 4, 1, 1)):
        x = torch.randn(shape)
        (got,) = run(opened, x)
        assert_is_the_operator(got, x, weight, geometry)


def test_infinite_and_missing_numbers():
    x = torch.zeros(1, 1, 1, 4)
    x[0, 0, 0, 1], x[0, 0, 0, 2] = float("inf"), float("nan")
    geometry = next(c for c in CASES if c.name == "1x1").geometry
    (got,) = run(model_of(torch.ones(1, 1, 1, 1), geometry), x)
    np.testing.assert_array_equal(got.numpy()[0, 0, 0], [-1.0, -np.inf, np.nan, -1.0])


def test_memory_stays_near_the_output():
    """No tensor of all differences: a layer of ResNet-18 at 224 within 16 times its output.

    All N O C P Q differences of one tap would take 64 times the output, those of all taps 576.
    """
    code = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from export.test_adder_function import model_of, session
from export.onnx_runs import grown_bytes
from torchadder.ops.geometry import make_geometry
weight = torch.randn(64, 64, 3, 3)
opened = session(model_of(weight, make_geometry((1, 1), (1, 1), (1, 1), 1)))
x = torch.randn(8, 64, 56, 56).numpy()
opened.run(None, {"x": x[:1, :, :8, :8]})
print(grown_bytes(lambda: opened.run(None, {"x": x})) / x.nbytes)
"""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs the peak of the resident set, which Linux tells")
    tests = str(Path(__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", code, tests], capture_output=True, text=True, check=True
    )
    assert 1 < float(result.stdout) < 16
