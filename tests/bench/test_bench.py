"""The benchmark measures what it says: right baseline, readable shapes, consistent results."""

import json

import pytest
import torch

from cases import Case
from torchadder.bench import SHAPES, Shape, measure_layer
from torchadder.bench.baseline import UnfoldAdder2d, unfold_adder2d
from torchadder.bench.shapes import GPU_SHAPES
from torchadder.bench.step import measure_step
from torchadder.bench.timing import median_ms
from torchadder.cli import main
from torchadder.functional import adder2d

TINY = Shape(2, 3, 4, 9, 3, stride=2)


@pytest.mark.parametrize("shape", [TINY, Shape(1, 5, 6, 7, 1), Shape(2, 2, 3, 8, 5)])
def test_baseline_is_the_same_operator(shape):
    case = Case("", (shape.batch, shape.in_channels, shape.size, shape.size), (4, 3, 3))
    x, _, _ = case.draw(torch.float64)
    w = torch.randn(
        shape.out_channels, shape.in_channels, shape.kernel, shape.kernel, dtype=torch.float64
    )
    x.requires_grad_()
    w.requires_grad_()
    ours = adder2d(x, w, None, shape.stride, shape.padding)
    g = torch.randn_like(ours)
    want = torch.autograd.grad(ours, (x, w), g)
    for images in (None, 1):
        plain = unfold_adder2d(x, w, shape.stride, shape.padding, images)
        torch.testing.assert_close(plain, ours)
        torch.testing.assert_close(torch.autograd.grad(plain, (x, w), g), want)
    layer = UnfoldAdder2d(3, 4, 3, padding=1, bias=False)
    assert layer(torch.randn(1, 3, 5, 5)).shape == (1, 4, 5, 5)


@pytest.mark.parametrize("shape", [*SHAPES, *GPU_SHAPES], ids=lambda s: s.name)
def test_names_of_shapes_can_be_read(shape):
    assert Shape.parse(shape.name) == shape


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_timed_shapes_are_right(shape):
    """On one image of each layer that is timed, ours equals the plain version."""
    x = torch.randn(1, shape.in_channels, shape.size, shape.size)
    w = torch.randn(shape.weight_shape)
    part = slice(0, 8)
    want = unfold_adder2d(x, w[part], shape.stride, shape.padding)
    got = adder2d(x, w, None, shape.stride, shape.padding)[:, part]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


def test_shape_arithmetic():
    assert TINY.output_size == (5, 5)
    assert TINY.num_taps == 2 * 4 * 25 * 27
    assert TINY.name == "3x3 3->4 @9 /2 b2"
    wide = Shape(2, 3, 4, 9, 3, stride=2, width=6)
    assert wide.name == "3x3 3->4 @9x6 /2 b2"
    assert wide.input_shape == (2, 3, 9, 6)
    assert wide.output_shape == (2, 4, 5, 3)
    assert wide.num_taps == 2 * 4 * 15 * 27


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3x3", "a shape looks like"),
        ("3x5 1->1 @9", "a shape looks like"),
        ("3x3 0->1 @9", "must be at least 1"),
        ("3x3 1->1 @9x0", "must be at least 1"),
        ("3x3 1->1 @9x", "a shape looks like"),
        ("4x4 1->1 @0", "must be at least 1"),
    ],
)
def test_bad_shape(text, message):
    with pytest.raises(ValueError, match=message):
        Shape.parse(text)


def test_results_are_consistent():
    results = measure_layer(TINY, seconds=0.01, peak=1e12)
    assert [result.part for result in results] == [
        "forward", "input gradient", "weight gradient", "step",
    ]  # fmt: skip
    for result in results:
        assert result.ratio_to_conv == pytest.approx(result.adder_ms / result.conv_ms)
        taps = TINY.num_taps * (3 if result.part == "step" else 1)
        assert result.elements_per_second == pytest.approx(taps / result.adder_ms * 1e3)
    assert results[0].share_of_peak == pytest.approx(results[0].elements_per_second / 1e12)
    assert results[1].share_of_peak is None


def test_sides_take_turns():
    calls = []
    medians = median_ms({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 0.0)
    assert "".join(calls) == "ab" * (len(calls) // 2)
    assert set(medians) == {"a", "b"}


def test_step_with_memory():
    result = measure_step(batch=4, seconds=0.1, baseline=False)
    assert result.ratio_to_conv > 0
    assert result.unfold_ms is None
    if result.memory_ratio is not None:
        assert result.adder_peak_bytes > 0


def test_command_writes_json(tmp_path, capsys):
    path = tmp_path / "new" / "bench.json"
    arguments = ["--shapes", TINY.name, "--seconds", "0.01", "--step", "false"]
    assert main(["bench", *arguments, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert {"date", "command", "hardware", "versions", "layers"} <= set(report)
    assert len(report["layers"]) == 4
    assert TINY.name in capsys.readouterr().out


def test_json_to_standard_output(capsys):
    arguments = ["--json", "--shapes", TINY.name, "--seconds", "0.01", "--step", "false"]
    assert main(["bench", *arguments]) == 0
    output = capsys.readouterr()
    assert len(json.loads(output.out)["layers"]) == 4
    assert "weight gradient" in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "device must be cpu or cuda, got 'tpu'"),
        (["--shapes", "big"], "a shape looks like"),
        (["--seconds", "0"], "seconds must be positive"),
        (["--threads", "0"], "threads must be at least 1"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
