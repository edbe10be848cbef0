"""Counts against loops and closed forms, and the promise that the model stays as it was."""

import copy
import csv
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import torchadder.functional as AF
from torchadder import models
from torchadder.energy import CostTable, OpEnergy, count
from torchadder.energy.report import short_energy, short_number
from torchadder.nn import Adder1d, Adder2d, AdderLinear, AdderTranspose2d


def taps_by_loop(image, kernel, stride, padding, dilation, in_channels, out_channels, groups):
    """Visit every output and every tap of its filter."""
    taps = 0
    rows = range(-padding, image + padding - dilation * (kernel - 1), stride)
    for _ in range(out_channels):
        for _ in rows:
            for _ in rows:
                for _ in range(in_channels // groups):
                    taps += kernel * kernel
    return taps


GEOMETRIES = [
    (8, 3, 1, 1, 1, 4, 6, 1),
    (9, 3, 2, 0, 1, 4, 6, 2),
    (7, 5, 3, 2, 1, 6, 6, 6),
    (11, 3, 1, 2, 2, 1, 2, 1),
    (5, 1, 1, 0, 1, 3, 2, 1),
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("batch", [1, 3])
def test_conv_and_adder_taps(geometry, batch):
    image, kernel, stride, padding, dilation, in_channels, out_channels, groups = geometry
    taps = batch * taps_by_loop(*geometry)
    arguments = (in_channels, out_channels, kernel, stride, padding, dilation, groups)
    shape = (batch, in_channels, image, image)
    conv = count(nn.Conv2d(*arguments), shape)
    adder = count(Adder2d(*arguments), shape)
    assert (conv.num_mul, conv.num_add) == (taps, taps)
    assert (adder.num_mul, adder.num_add) == (0, 2 * taps)
    assert conv.layers[0].op == "conv2d"
    assert adder.layers[0].op == "adder2d"
    assert conv.layers[0].output_shape[:2] == (batch, out_channels)


def test_empty_batch_and_empty_model():
    assert count(nn.Conv2d(3, 4, 3), (0, 3, 8, 8)).layers == ()
    report = count(nn.Identity(), (1, 2))
    assert (report.num_mul, report.num_add, report.energy_pj) == (0, 0, 0)
    assert "nothing counted" in str(report)


@pytest.mark.parametrize(
    ("layer", "shape", "num_mul", "num_add"),
    [
        (nn.Conv1d(3, 5, 3), (2, 3, 10), 2 * 5 * 8 * 9, 2 * 5 * 8 * 9),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 3 * 27 * 16, 3 * 27 * 16),
        # Every input element meets every tap of a transposed filter.
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (1, 4, 5, 5), 4 * 25 * 54, 4 * 25 * 54),
        (nn.Linear(7, 5), (3, 7), 105, 105),
        (nn.Linear(7, 5, bias=False), (2, 3, 7), 210, 210),
        (Adder1d(3, 5, 3), (2, 3, 10), 0, 2 * 2 * 5 * 8 * 9),
        (AdderLinear(7, 5), (3, 7), 0, 2 * 105),
        # With zeros between the inputs, which are taps like any other.
        (AdderTranspose2d(4, 6, 3, stride=2), (1, 4, 5, 5), 0, 2 * 6 * 11 * 11 * 4 * 9),
        (nn.LSTM(8, 16, batch_first=True), (2, 5, 8), 10 * 64 * 24, 10 * 64 * 24),
    ],
)
def test_layer_types(layer, shape, num_mul, num_add):
    report = count(layer, shape)
    assert (report.num_mul, report.num_add) == (num_mul, num_add)


class Functional(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


@pytest.mark.parametrize(
    ("function", "shapes", "num_mul", "num_add"),
    [
        (lambda x, w: F.conv2d(x, w), [(1, 2, 5, 5), (3, 2, 3, 3)], 486, 486),
        (lambda x, w: AF.adder2d(x, w), [(1, 2, 5, 5), (3, 2, 3, 3)], 0, 972),
        (lambda a, b: a @ b, [(4, 5), (5, 6)], 120, 120),
        (lambda a, b: a @ b, [(2, 3, 4, 5), (5, 6)], 720, 720),
        (lambda a, b: a @ b, [(4, 5), (5,)], 20, 20),
        (lambda a, b: torch.dot(a, b), [(9,), (9,)], 9, 9),
        (lambda a, b: torch.einsum("bij,bkj->bik", a, b), [(2, 3, 4), (2, 5, 4)], 120, 120),
        (lambda c, a, b: torch.addmm(c, a, b), [(4, 6), (4, 5), (5, 6)], 120, 120),
        (lambda c, a, b: torch.baddbmm(c, a, b), [(2, 4, 6), (2, 4, 5), (2, 5, 6)], 240, 240),
        (lambda c, a, b: torch.addbmm(c, a, b), [(4, 6), (2, 4, 5), (2, 5, 6)], 240, 240),
        (lambda a, b: torch.cdist(a, b, p=1), [(4, 5), (6, 5)], 0, 240),
        (lambda a, b: torch.cdist(a, b), [(4, 5), (6, 5)], 120, 240),
        # Scores and weighted values: twice heads * queries * keys * width.
        (F.scaled_dot_product_attention, [(2, 3, 7, 8)] * 3, 2 * 6 * 49 * 8, 2 * 6 * 49 * 8),
    ],
)
def test_functional_calls(function, shapes, num_mul, num_add):
    report = count(Functional(function), *shapes)
    assert (report.num_mul, report.num_add) == (num_mul, num_add)
    assert report.device == "meta"
    assert {layer.name for layer in report.layers} == {""}


def test_bilinear_layer_multiplies_three_factors_a_tap():
    report = count(nn.Bilinear(3, 5, 4), (2, 7, 3), (2, 7, 5))
    taps = 2 * 7 * 4 * 3 * 5
    assert (report.num_mul, report.num_add) == (2 * taps, taps)
    assert [layer.op for layer in report.layers] == ["bilinear"]


def test_attention_block_in_evaluation_mode():
    block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    projections = 14 * (32 * 96 + 32 * 32 + 2 * 32 * 64)
    report = count(block, (2, 7, 32))
    assert report.num_mul == projections + 2 * 2 * 49 * 32
    # The output projection is never called as a module; its bytes belong to the attention.
    assert sum(layer.weight_bytes for layer in report.layers) == 4 * sum(
        p.numel() for name, p in block.named_parameters() if "norm" not in name
    )


def test_layer_used_twice_counts_twice_but_weighs_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = Adder2d(4, 4, 3, padding=1)
            self.alias = self.shared

        def forward(self, x):
            return self.alias(self.shared(x))

    report = count(Twice(), (1, 4, 6, 6))
    (layer,) = report.layers
    assert (layer.name, layer.calls) == ("shared", 2)
    assert layer.num_add == 2 * 2 * 4 * 36 * 36
    assert layer.weight_bytes == report.weight_bytes == 4 * (4 * 4 * 9 + 4)


def test_parametrised_weights_are_on_the_row_of_their_layer():
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3))
    report = count(nn.Sequential(layer), (1, 2, 5, 5))
    assert report.layers[0].weight_bytes == 4 * sum(p.numel() for p in layer.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_model_stays_as_it_was(training):
    model = models.lenet5_bn().train(training)
    model.bn2.train(not training)
    calls = []
    model.conv2.register_forward_hook(lambda module, args, out: calls.append(out.device.type))
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    before = copy.deepcopy(model.state_dict())
    flags = {name: module.training for name, module in model.named_modules()}
    parameters = dict(model.named_parameters())
    random = torch.get_rng_state()

    count(model, (1, 1, 28, 28))

    assert {name: module.training for name, module in model.named_modules()} == flags
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert parameter.requires_grad
        assert parameter.device.type == "cpu"
    assert torch.equal(model.conv1.weight.grad, torch.ones_like(model.conv1.weight))
    assert model.conv2.weight.grad is None
    assert torch.equal(torch.get_rng_state(), random)
    assert len(model.conv2._forward_hooks) == 1
    assert calls == ["meta"]
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks


class Cached(nn.Module):
    """Keeps tensors in plain attributes and decides on values, as detectors do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.dropout = nn.Dropout()
        self.register_buffer("seen", torch.zeros(1))
        self.grid = torch.arange(3.0)
        self.cache = {}

    def forward(self, x):
        self.grid = self.grid.to(x.device)
        self.cache["x"] = x
        self.seen += 1
        x.mul_(2)
        y = self.conv(x)
        kept = y.flatten()[y.flatten() >= 0]
        return kept if len(kept) > 1 else self.conv(x)


def test_value_dependent_model_is_run_without_its_products():
    model = Cached()
    image = torch.ones(1, 3, 5, 5)
    random = torch.get_rng_state()
    report = count(model, image)
    assert report.device == "cpu"
    assert "shapes alone were not enough" in report.note
    assert report.note in str(report)
    assert report.num_mul == 4 * 9 * 27
    assert torch.equal(image, torch.ones(1, 3, 5, 5))
    assert torch.equal(model.grid, torch.arange(3.0))
    assert model.cache == {}
    assert model.seen.item() == 0
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)


def test_meta_model_needs_no_memory_but_must_not_depend_on_values():
    with torch.device("meta"):
        # A terabyte of weights.
        wide = nn.Linear(500_000, 500_000, bias=False)
        cached = Cached()
    assert count(wide, (1, 500_000)).num_mul == 250_000_000_000
    with pytest.raises(ValueError, match="Cached cannot be run on"):
        count(cached, (1, 3, 5, 5))


def test_inputs():
    conv = nn.Conv2d(3, 4, 3)
    expected = count(conv, (1, 3, 8, 8)).num_mul
    assert count(conv, torch.zeros(1, 3, 8, 8)).num_mul == expected
    assert count(conv, input=torch.zeros(1, 3, 8, 8)).num_mul == expected
    assert count(conv, torch.empty(1, 3, 8, 8, device="meta")).num_mul == expected
    assert (
        count(Functional(lambda x: x["a"] @ x["b"][0]), {"a": (2, 3), "b": [(3, 4)]}).num_mul == 24
    )
    tokens = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 4))
    assert count(tokens, torch.tensor([[1, 2, 3]])).num_mul == 96


def test_list_of_images():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, images):
            return [self.conv(image) for image in images]

    report = count(Detector(), [(3, 8, 8), torch.zeros(3, 5, 5)])
    assert report.num_mul == 4 * 27 * (36 + 9)
    assert report.layers[0].calls == 2
    assert report.layers[0].output_shape[-3:] == (4, 6, 6)


@pytest.mark.parametrize("elementwise", [False, True])
def test_inference_mode(elementwise):
    with torch.inference_mode():
        born_there = models.lenet5_bn()
        inside = count(born_there, (1, 1, 28, 28), include_elementwise=elementwise)
        values = count(Cached(), torch.ones(1, 3, 5, 5), include_elementwise=elementwise)
    after = count(born_there, (1, 1, 28, 28), include_elementwise=elementwise)
    plain = count(models.lenet5_bn(), (1, 1, 28, 28), include_elementwise=elementwise)
    assert inside.layers == after.layers == plain.layers
    assert values.num_mul >= 4 * 9 * 27


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrapped_models(wrap):
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert count(wrap(model), (1, 3, 8, 8)).layers == count(model, (1, 3, 8, 8)).layers


@pytest.mark.parametrize(
    ("model", "inputs", "error", "message"),
    [
        (lambda x: x, [(1,)], TypeError, "model must be an nn.Module, got function"),
        (nn.Linear(3, 4), [[1, 3]], TypeError, r"a shape is a tuple of integers, got the list"),
        (nn.Linear(3, 4), [(-1, 3)], ValueError, "must not be negative"),
        (nn.Linear(3, 4), [(1, 5)], ValueError, r"Linear cannot be run on \(1, 5\): RuntimeError"),
        (nn.Linear(3, 4), [], ValueError, "Linear cannot be run on no inputs: TypeError"),
        (nn.LazyLinear(3), [(1, 5)], ValueError, "weight has no shape yet"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_errors(model, inputs, error, message):
    with pytest.raises(error, match=message) as raised:
        count(model, *inputs)
    assert "\n" not in str(raised.value)


def test_energy_and_costs():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), Adder2d(2, 3, 1, bias=False))
    report = count(net, (1, 1, 5, 5))
    conv, adder = 2 * 9 * 9, 3 * 9 * 2
    assert report.energy_pj == pytest.approx(conv * (3.7 + 0.9) + adder * 2 * 0.9)
    assert report.energy_mj == pytest.approx(report.energy_pj * 1e-9)
    own = CostTable(name="own chip", float32=OpEnergy(add=1, mul=10))
    assert count(net, (1, 1, 5, 5), costs=own).energy_pj == conv * 11 + adder * 2
    int8 = count(net, (1, 1, 5, 5), dtype=torch.int8)
    assert int8.energy_pj == pytest.approx(conv * 0.23 + adder * 2 * 0.03)
    assert int8.weight_bytes * 4 == report.weight_bytes


@pytest.mark.parametrize(
    ("dtype", "energy"), [(torch.float16, 1.5), (torch.bfloat16, 1.5), (torch.float32, 4.6)]
)
def test_energy_follows_the_number_format_of_each_layer(dtype, energy):
    report = count(nn.Conv2d(1, 2, 3, dtype=dtype), (1, 1, 5, 5))
    assert report.energy_pj == pytest.approx(2 * 81 * energy)
    assert report.layers[0].dtype == str(dtype).removeprefix("torch.")


def test_mixed_formats_have_rows_of_their_own():
    class Mixed(nn.Module):
        def forward(self, x, y):
            return x @ x, y @ y

    report = count(Mixed(), (2, 2), torch.zeros(2, 2, dtype=torch.bfloat16))
    assert [layer.dtype for layer in report.layers] == ["float32", "bfloat16"]


def test_format_without_a_cost_is_an_error_with_the_way_out():
    layer = nn.Linear(2, 2).double()
    with pytest.raises(
        ValueError, match=r"has no energy for float64; known are float32, .* dtype="
    ):
        count(layer, (1, 2))
    assert count(layer, (1, 2), dtype=torch.float32).num_mul == 4
    assert count(layer, (1, 2), costs=CostTable(float64=OpEnergy(2, 8))).energy_pj == 40


def test_negative_cost():
    with pytest.raises(ValueError, match="add must be an energy of at least 0 pJ, got -1"):
        OpEnergy(add=-1, mul=0)
    with pytest.raises(ValueError, match="mul must be"):
        OpEnergy(add=0, mul=float("nan"))


def test_elementwise():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3, padding=1)
            self.bn = nn.BatchNorm2d(4)
            self.adder = Adder2d(4, 4, 1)

        def forward(self, x):
            x = F.relu(self.bn(self.conv(x)))
            x = F.max_pool2d(x + self.adder(x), 2)
            x = F.avg_pool2d(x, 2) * 3
            return x.mean((2, 3))

    plain = count(Block(), (1, 2, 8, 8))
    full = count(Block(), (1, 2, 8, 8), include_elementwise=True)
    rows = {(layer.name, layer.op): (layer.num_mul, layer.num_add) for layer in full.layers}
    assert rows == {
        ("conv", "conv2d"): (4608, 4608),
        ("conv", "bias"): (0, 256),
        ("bn", "batch_norm"): (256, 256),
        ("", "relu"): (0, 256),
        ("adder", "adder2d"): (0, 2048),
        ("adder", "bias"): (0, 256),
        ("", "add"): (0, 256),
        ("", "max_pool"): (0, 64 * 3),
        ("", "avg_pool"): (16 + 4, 16 * 3 + 12),
        ("", "mul"): (16, 0),
    }
    assert {layer.op for layer in plain.layers} == {"conv2d", "adder2d"}


def test_renderings(tmp_path):
    report = count(models.resnet20(), (1, 3, 32, 32))
    text = str(report)
    assert text.startswith("resnet20: 22 layers")
    assert "443.01K" in text
    assert "81.18M" in text
    assert max(map(len, text.splitlines())) < 130

    report.to_csv(tmp_path / "layers.csv")
    with open(tmp_path / "layers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(report.layers)
    assert sum(int(row["num_add"]) for row in rows) == report.num_add
    assert sum(float(row["energy_share"]) for row in rows) == pytest.approx(1)
    assert rows[0]["output_shape"] == "1x16x32x32"
    assert report.to_csv() == (tmp_path / "layers.csv").read_text()

    values = json.loads(json.dumps(report.to_dict()))
    assert values["num_mul"] == report.num_mul
    assert values["layers"][0]["name"] == "conv1"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (999.4, "999"),
        (999.6, "1.00K"),
        (995_000, "995.00K"),
        (999_994, "999.99K"),
        (999_996, "1.00M"),
        (-999_996_000, "-1.00G"),
        (999_996e6, "1.00T"),
    ],
)
def test_short_numbers_have_three_digits_before_the_point(value, text):
    assert short_number(value) == text


def test_markup_in_names_is_text():
    odd = nn.Sequential()
    odd.add_module("[red]x", nn.Linear(2, 2))
    assert "[red]x" in str(count(odd, (1, 2)))


@pytest.mark.parametrize("conv", ["conv", "adder"])
def test_torchs_flop_counter_agrees(conv):
    """Two operations a tap, for convolutions and adder layers alike."""
    model = models.resnet20(conv=conv).eval()
    report = count(model, (2, 3, 32, 32))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.to("meta")(torch.empty(2, 3, 32, 32, device="meta"))
    assert counter.get_total_flops() == report.num_mul + report.num_add


def test_torchs_flop_counter_sees_the_backward_pass():
    layer = Adder2d(4, 6, 3, padding=1, bias=False).to("meta")
    images = torch.empty(1, 4, 8, 8, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(images).sum().backward()
    forward = count(layer, (1, 4, 8, 8)).num_add
    counts = counter.get_flop_counts()["Global"]
    assert counts[torch.ops.torchadder.adder2d] == forward
    assert counter.get_total_flops() >= 3 * forward


@pytest.mark.parametrize(
    ("energy_pj", "text"),
    [
        (0, "0.0 pJ"),
        (999.94, "999.9 pJ"),
        (999.96, "1.0 nJ"),
        (999_940, "999.9 nJ"),
        (999_960, "1.0 uJ"),
        (318e6, "318.0 uJ"),
        (2.5e12, "2.5 J"),
    ],
)
def test_energies_go_to_the_next_unit_as_they_are_printed(energy_pj, text):
    assert short_energy(energy_pj) == text
