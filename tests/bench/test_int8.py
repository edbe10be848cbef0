"""The integer benchmark compares like with like, and its command says what it measured."""

import json

import pytest
import torch

from torchadder.bench import Shape, int8_rivals
from torchadder.bench.int8_layers import INT8_SHAPES, integer_layers, measure_int8_layer
from torchadder.bench.int8_nets import measure_int8_net
from torchadder.bench.int8_table import int8_markdown
from torchadder.bench.markdown import speed_table
from torchadder.cli import main

TINY = Shape(2, 5, 12, 9, 3, stride=2)


def operands(shape):
    x = torch.randint(0, 256, shape.input_shape, dtype=torch.uint8)
    w = torch.randint(-127, 128, shape.weight_shape, dtype=torch.int8)
    return x.contiguous(memory_format=torch.channels_last), w


@pytest.mark.parametrize("shape", [TINY, Shape(1, 16, 16, 7, 1)])
def test_integer_convolutions_compute_the_same(shape):
    """Ours and the other libraries', up to how they round halves."""
    x, w = operands(shape)
    scale = int8_rivals.INPUT_SCALE * int8_rivals.FILTER_SCALE
    centred = x.double() - int8_rivals.INPUT_ZERO_POINT
    real = scale * torch.nn.functional.conv2d(
        centred, w.double(), None, shape.stride, shape.padding
    )
    want = real / int8_rivals.OUTPUT_SCALE + int8_rivals.OUTPUT_ZERO_POINT
    want = want.clamp(0, 255)
    runs = {
        "ours": integer_layers(shape, x, w)["int8 conv"],
        "torch": int8_rivals.torch_convolution(shape, x, w),
        "onnxruntime": int8_rivals.onnxruntime_convolution(shape, x, w, 1),
    }
    assert want.std() > 3  # most are within the range
    for name, run in runs.items():
        if run is None:
            continue
        got = run()
        assert got.dtype == torch.uint8, name
        assert (got.double() - want).abs().max() < 0.52, name


def test_integer_adder_layer_is_the_distance():
    x, w = operands(TINY)
    filters = w.double() + 128
    padded = torch.nn.functional.pad(x.double(), (1, 1, 1, 1), value=int8_rivals.INPUT_ZERO_POINT)
    patches = torch.nn.functional.unfold(padded, 3, stride=2).transpose(1, 2)
    sums = -torch.cdist(patches, filters.flatten(1)[None], p=1).transpose(1, 2)
    factor = int8_rivals.INPUT_SCALE * int8_rivals.FILTER_SCALE / int8_rivals.OUTPUT_SCALE
    want = (sums * factor + int8_rivals.OUTPUT_ZERO_POINT).clamp(0, 255)
    got = integer_layers(TINY, x, w)["int8"]().flatten(2).double()
    assert (got - want).abs().max() < 0.52


def test_without_other_libraries(monkeypatch):
    monkeypatch.setattr(int8_rivals.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    result = measure_int8_layer(TINY, seconds=0.005)
    assert result.torch_int8_ms is None
    assert result.onnxruntime_int8_ms is None
    assert result.ratio_to_int8_conv == pytest.approx(result.int8_ms / result.int8_conv_ms)


def test_layer_results_are_consistent():
    result = measure_int8_layer(TINY, seconds=0.005)
    assert result.ratio_to_conv == pytest.approx(result.int8_ms / result.conv_ms)
    assert result.ratio_to_adder == pytest.approx(result.int8_ms / result.adder_ms)
    times = (result.int8_conv_ms, result.torch_int8_ms, result.onnxruntime_int8_ms)
    fastest = min(time for time in times if time is not None)
    assert result.ratio_to_int8_conv == pytest.approx(result.int8_ms / fastest)
    assert result.pairs_per_second == pytest.approx(TINY.num_taps / result.int8_ms * 1e3)


def test_net_results_are_consistent():
    (result,) = measure_int8_net("resnet20", 16, batches=(2,), seconds=0.01)
    assert result.ratio_to_conv == pytest.approx(result.int8_ms / result.conv_ms)
    assert result.ratio_to_int8_conv == pytest.approx(result.int8_ms / result.int8_conv_ms)
    # Filters of one byte; those of the first and the last layer are filled up to eights.
    assert 3.9 < result.float_weight_bytes / result.weight_bytes <= 4


def test_shapes_are_those_of_the_issue():
    assert {shape.in_channels for shape in INT8_SHAPES if shape.kernel == 3} >= {
        16, 32, 64, 128, 256, 512,
    }  # fmt: skip
    assert any(shape.kernel == 1 and shape.stride == 2 for shape in INT8_SHAPES)


def test_command_writes_json_and_tables(tmp_path, capsys):
    path = tmp_path / "int8.json"
    arguments = ["--int8", "--shapes", TINY.name, "--seconds", "0.005", "--nets", "none"]
    assert main(["bench", *arguments, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert {"date", "command", "hardware", "versions"} <= set(report)
    assert [layer["shape"] for layer in report["int8_layers"]] == [TINY.name]
    assert report["int8_nets"] == []
    assert "onnxruntime" in report["versions"]
    assert TINY.name in capsys.readouterr().out
    assert speed_table(report) == int8_markdown(report)
    rows = int8_markdown(report).splitlines()[-1].split(" | ")
    assert rows[3] == f"{report['int8_layers'][0]['ratio_to_conv']:.2f}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--int8", "--device", "cuda"], "int8 is timed on device cpu, got 'cuda'"),
        (["--int8", "--nets", "resnet99"], "nets must be among resnet20, resnet18, resnet50"),
        (["--nets", "resnet20"], "nets is for --int8"),
        (["--int8", "--baseline", "false"], "baseline and step are for layers in float"),
        (["--int8", "--step", "false"], "baseline and step are for layers in float"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
