"""Integer nets of float nets: right, exact, in place, and refused where they must be."""

import copy
import csv
import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchadder as ta
from small_nets import OddNet, odd_net, settled, small_resnet
from torchadder.quantize import (
    Adder2dInt8,
    Calibration,
    Conv2dInt8,
    Int8Config,
    IntegerNet,
    QuantizationError,
    interpreter,
    quantize,
)
from torchadder.quantize.program import FloatLayer, Layer, Requantise

NETS = {"residual": small_resnet, "odd": odd_net}

CONFIGS = {
    "8 bit": Int8Config(),
    "8 bit, max": Int8Config(range="max"),
    "8 bit, shared": Int8Config(clamp=False),
    "8 bit, groups": Int8Config(groups=3),
    "5 bit": Int8Config(bits=5),
    "4 bit, groups": Int8Config(bits=4, groups=2, range="percentile"),
}


@pytest.fixture(scope="module", params=NETS)
def calibration(request):
    net, images = NETS[request.param]()
    return Calibration(net, [images[:32], images[32:]]), net, images


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def test_the_fast_net_is_bit_exact_with_the_interpreter(calibration, config):
    calibrated, _, images = calibration
    program, _ = calibrated.lower(config)
    net = IntegerNet(program)
    want = interpreter.run(program, images[:5])
    for name, got in net.each_value(images[:5]):
        assert torch.equal(got, want[name]), name
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(net.integers(images[:5]), want[program.output.name].flatten(1))
    finally:
        torch.set_num_threads(before)


def test_every_layer_is_the_float_layer_of_its_integers_to_half_a_step(calibration, config):
    """Folded norms, zero points, residuals and remainders, against sums of real numbers."""
    calibrated, _, images = calibration
    program, ranges = calibrated.lower(config)
    values = interpreter.run(program, images[:3])
    steps = {step.output: step for step in calibrated.graph.steps}
    by_name = {one.layer: one for one in ranges}

    def real(name):
        value = program.values[name]
        return (values[name].double() - value.zero_point) * value.scale

    seen = 0
    for step in program.steps:
        if not isinstance(step, Layer):
            continue
        about = by_name[step.name]
        source = steps[about.outputs[0]]
        filters = about.filters
        weight = source.weight[filters].double()
        scale = source.scale[filters][:, None, None]
        shift = source.shift[filters][:, None, None]
        if step.kind == "adder":
            grid = about.grid
            inside = weight.clamp(grid.low, grid.high)
            nearest = grid.rounded(inside if config.clamp else weight)
            padded = F.pad(real(step.input), [step.padding[1]] * 2 + [step.padding[0]] * 2)
            sums = []
            depth, group = weight.shape[1], weight.shape[0] // step.groups
            for o, w in enumerate(nearest):
                first = o // group * depth
                x = F.unfold(padded[:, first : first + depth], w.shape[1:], stride=step.stride)
                sums.append(-(x - w.flatten()[None, :, None]).abs().sum(1))
            got = values[step.output]
            sums = torch.stack(sums, 1).unflatten(2, got.shape[2:])
            if config.clamp:
                sums = sums - (weight - inside).abs().sum((1, 2, 3))[:, None, None]
        else:
            # One step of a filter, from its integers: they are proportional to the weights.
            integers = step.weight.double()
            steps_ = (weight * integers).sum((1, 2, 3)) / integers.square().sum((1, 2, 3))
            assert ((integers * steps_[:, None, None, None] - weight).abs().amax((1, 2, 3)) <
                    2.0 * steps_.abs()).float().mean() > 0.7  # fmt: skip
            continue
        want = scale * sums + shift
        if step.residual is not None:
            want = want + real(step.residual)
        output = program.values[step.output]
        want = want / output.scale + output.zero_point
        how = step.requantisation
        off = (got - want.clamp(how.low, how.high)).abs().max()
        assert off <= 0.5 + 1e-3, step.name
        seen += 1
    assert seen >= 2


def test_more_bits_are_closer_to_the_float_net(calibration):
    calibrated, net, images = calibration
    noise = {}
    for bits in (8, 6, 4):
        program, ranges = calibrated.lower(Int8Config(bits=bits))
        report = calibrated.report(program, ranges)
        noise[bits] = report.sqnr_db
        integers = IntegerNet(program)(images)
        floats = net(images).detach()
        own = 10 * torch.log10(floats.square().sum() / (floats - integers).square().sum())
        assert report.sqnr_db == pytest.approx(float(own), abs=1e-3)
    narrow = [layer.layer for layer in report.layers if layer.bits == 4]
    if isinstance(net, OddNet):  # all other layers read the images, or make the logits
        assert narrow == ["three"]
        assert noise[8] > noise[6]
    else:
        assert len(narrow) > 1
        assert noise[8] > noise[6] + 2
    assert noise[6] > noise[4] + 4
    assert noise[8] > 25


def test_clamping_filters_gains_much_where_inputs_are_positive():
    net, images = small_resnet()
    calibrated = Calibration(net, [images])
    noise = {}
    for clamp in (True, False):
        program, ranges = calibrated.lower(Int8Config(bits=5, clamp=clamp))
        noise[clamp] = calibrated.report(program, ranges).sqnr_db
    assert noise[True] > noise[False] + 3


def test_the_remainder_of_clamped_filters_is_exact():
    x = torch.rand(1000, 1) * 3 - 1
    w = torch.randn(1, 50) * 4
    inside = w.clamp(-1, 2)
    assert torch.allclose((x - w).abs(), (x - inside).abs() + (w - inside).abs(), atol=1e-6)


def test_quantize_is_in_place():
    net, images = small_resnet()
    floats = net(images).detach()
    kept = net
    report = ta.quantize_(net, [images])
    assert kept is net
    assert type(net) is IntegerNet
    assert isinstance(net.get_submodule("layer1.conv1"), Adder2dInt8)
    assert isinstance(net.get_submodule("layer2.shortcut.0"), Adder2dInt8)
    assert isinstance(net.get_submodule("stem"), Conv2dInt8)
    assert isinstance(net.get_submodule("fc"), Conv2dInt8)
    logits = net(images)
    assert logits.dtype == torch.float32
    assert (logits.argmax(1) == floats.argmax(1)).float().mean() > 0.9
    # ReLU, norms and additions have gone into the layers: no step is left for them.
    kinds = [type(step).__name__ for step in net.program().steps]
    assert kinds == ["Layer", "MaxPool", *["Layer"] * 5, "AvgPool", "Layer"]
    assert not list(net.parameters())
    assert report.num_images == 48


def test_weights_take_a_quarter_of_the_memory():
    torch.manual_seed(0)
    layers = [ta.nn.Adder2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    net = nn.Sequential(nn.Conv2d(8, 32, 3), *layers, nn.Conv2d(32, 8, 4), nn.Flatten())
    images = torch.randn(8, 8, 6, 6)
    settled(net, images)
    before = sum(p.numel() * 4 for p in net.parameters() if p.dim() == 4)
    report = ta.quantize_(net, [images])
    held = sum(b.numel() for name, b in net.named_buffers() if name.endswith("packed"))
    assert report.float_weight_bytes == before
    assert report.weight_bytes == held == before // 4


def test_calibration_is_deterministic():
    one, two = (quantize(*small_resnet()) for _ in range(2))
    assert one[0].to_dict()[0] == two[0].to_dict()[0]
    for name, tensor in one[0].to_dict()[1].items():
        assert torch.equal(tensor, two[0].to_dict()[1][name])
    assert str(one[1]) == str(two[1])


def test_groups_have_a_range_each(calibration):
    calibrated, _, _ = calibration
    program, ranges = calibrated.lower(Int8Config(groups=3, bits=6))
    grouped = [one for one in ranges if ".group" in one.layer]
    assert {one.path for one in grouped}
    requantised = [step for step in program.steps if type(step) is Requantise]
    assert len(requantised) == len(grouped)
    by_layer = {}
    for one in grouped:
        by_layer.setdefault(one.path, []).append(one)
    graph = {step.name: step for step in calibrated.graph.steps}
    for path, groups in by_layer.items():
        sizes = graph[path].weight.abs().flatten(1).amax(1)
        assert sorted(torch.cat([one.filters for one in groups]).tolist()) == list(
            range(len(sizes))
        )
        bounds = [(float(sizes[g.filters].min()), float(sizes[g.filters].max())) for g in groups]
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(bounds))
        # No range goes beyond the largest filter of its group, but for rounding to the grid.
        assert all(
            g.grid.high <= high + g.grid.scale for g, (_, high) in zip(groups, bounds, strict=True)
        )


def test_narrow_integers_are_narrow(calibration):
    calibrated, _, images = calibration
    program, ranges = calibrated.lower(Int8Config(bits=4))
    values = interpreter.run(program, images)
    inner = [one for one in ranges if one.kind == "adder" and one.bits == 4]
    assert inner
    steps = {step.name: step for step in program.steps}
    for one in inner:
        assert int(values[steps[one.layer].input].max()) <= 15
        assert int(steps[one.layer].weight.max()) <= 15
    assert {one.bits for one in ranges} == {4, 8}


class Normed(nn.Module):
    """A norm before the first layer, a ReLU, a pool and a mean behind the last one."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.first = nn.Conv2d(3, 4, 3)
        self.middle = nn.Conv2d(4, 4, 3)
        self.last = nn.Conv2d(4, 2, 3)

    def forward(self, x):
        y = self.middle(F.relu(self.first(self.norm(x))))
        return F.max_pool2d(F.relu(self.last(y)), 2).mean((2, 3))


def test_first_and_last_layer_are_found_through_norms_and_pools():
    torch.manual_seed(0)
    net, data = Normed().eval(), torch.randn(8, 3, 16, 16)
    wanted = net(data).detach()
    calibration = Calibration(net, [data])
    _, ranges = calibration.lower(Int8Config(bits=4))
    assert [(one.layer, one.bits) for one in ranges] == [("first", 8), ("middle", 4), ("last", 8)]
    for ends in ({"first": "float"}, {"last": "float"}, {"first": "float", "last": "float"}):
        program, _ = calibration.lower(Int8Config(**ends))
        assert program.float_layers == tuple(ends)
        found = IntegerNet(program)(data)
        assert 10 * torch.log10(wanted.square().sum() / (found - wanted).square().sum()) > 30


def test_ends_in_float_that_a_net_does_not_have_are_refused():
    net = nn.Sequential(ta.nn.Adder2d(3, 4, 3), nn.Flatten()).eval()
    with pytest.raises(QuantizationError, match="first = float: no convolution reads the images"):
        ta.quantize_(net, [images()], Int8Config(first="float"))
    with pytest.raises(QuantizationError, match="last = float: no convolution or linear layer"):
        ta.quantize_(net, [images()], Int8Config(last="float"))


def test_sums_and_factors_that_do_not_fit_are_named():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(QuantizationError, match=r"^1: a sum of 69696 terms may overflow 32 bits"):
        ta.quantize_(net, [torch.randn(1, 1, 264, 264)])
    net = nn.Sequential(nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(3, 2, 1)).eval()
    with pytest.raises(QuantizationError, match=r"^1: a factor of .* does not fit 32 bits"):
        ta.quantize_(
            net, [images(a=-1e12)[:, :, 3:4, 4:5].repeat(1, 1, 2, 2)], Int8Config(range="max")
        )


def test_bytes_are_refused_where_the_first_layer_is_in_float():
    net, data = small_resnet()
    ta.quantize_(net, [data[:8]], Int8Config(first="float"))
    with pytest.raises(TypeError, match=r"images must be floats, .* got torch.uint8"):
        net(data.to(torch.uint8))


def test_an_image_of_one_pixel_is_as_good_as_none():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)).eval()
    assert net(images()).shape == (4, 4, 1, 1)
    ta.quantize_(net, [images()])
    assert net(images()).shape == (4, 4)


def test_group_norms_take_an_empty_batch():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1)).eval()
    ta.quantize_(net, [images()])
    assert net(images()[:0]).shape == (0, 2, 14, 14)


def test_a_net_without_filters_has_a_report():
    report = ta.quantize_(nn.Sequential(nn.MaxPool2d(4), nn.Flatten()).eval(), [images()])
    assert str(report).splitlines()[-1].endswith("dB; no filters")


def test_means_may_be_tensors(tmp_path):
    net, data = small_resnet()
    numbers = torch.tensor([0.5, 0.25, 0.125])
    ta.quantize_(net, [data[:8]], mean=numbers, std=numbers)
    again = ta.load(ta.save(net, tmp_path / "net.safetensors"))
    assert again.input.mean == again.input.std == (0.5, 0.25, 0.125)


class Infinite(nn.Module):
    def __init__(self):
        super().__init__()
        self.big = nn.Conv2d(3, 2, 1)
        nn.init.constant_(self.big.weight, 1e38)

    def forward(self, x):
        return self.big(x).mean((2, 3))


def test_a_layer_whose_output_is_not_finite_is_named():
    with pytest.raises(QuantizationError, match="the output of big holds NaN or infinity"):
        ta.quantize_(Infinite().eval(), [100 * images()])


@pytest.mark.parametrize("bits", [4.5, True, "8"])
def test_bits_and_groups_are_whole_numbers(bits):
    with pytest.raises(ValueError, match=r"bits must be a whole number, got"):
        Int8Config(bits=bits)
    with pytest.raises(ValueError, match=r"groups must be a whole number, got 2.0"):
        Int8Config(groups=2.0)


class Chain(nn.Module):
    """What a layer makes is an output and is read again, by the layer itself or by another."""

    def __init__(self, *, is_shared):
        super().__init__()
        self.one = nn.Conv2d(3, 3, 3, padding=1)
        self.two = self.one if is_shared else nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        y = self.one(x)
        return y, self.two(y)


@pytest.mark.parametrize(
    ("is_shared", "config"),
    [(True, Int8Config()), (False, Int8Config(first="float")), (False, Int8Config(last="float"))],
    ids=["shared", "first", "last"],
)
def test_outputs_that_are_read_again(is_shared, config):
    torch.manual_seed(0)
    net, data = Chain(is_shared=is_shared).eval(), torch.randn(8, 3, 8, 8)
    wanted = [value.detach() for value in net(data)]
    ta.quantize_(net, [data], config)
    for one, two in zip(net(data), wanted, strict=True):
        assert 10 * torch.log10(two.square().sum() / (one - two).square().sum()) > 30


def test_first_and_last_layer_in_float():
    net, images = small_resnet()
    wanted = net(images).detach()
    ta.quantize_(net, [images], Int8Config(first="float", last="float"))
    program = net.program()
    assert program.float_layers == ("stem", "fc")
    assert [type(step) for step in program.steps if step.name in ("stem", "fc")] == [FloatLayer] * 2
    assert program.values[program.input.name].dtype == "float32"
    logits = net(images)
    noise = 10 * torch.log10(wanted.square().sum() / (wanted - logits).square().sum())
    assert noise > 30
    # Sums of floats depend on their order: equal but for a rare byte at the edge of rounding.
    assert torch.allclose(net.integers(images), interpreter.logits(program, images), atol=0.1)


def test_the_report(tmp_path):
    net, images = small_resnet()
    report = ta.quantize_(net, [images])
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "kind", "filters", "bits", "low", "high", "scale", "zero",
                                "clipped", "weights", "clipped", "SQNR", "dB"]  # fmt: skip
    assert [line.split()[0] for line in lines[1:-1]] == [
        "stem", "layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2",
        "layer2.shortcut.0", "fc",
    ]  # fmt: skip
    assert "48 calibration images" in lines[-1]
    report.to_csv(tmp_path / "layers.csv")
    with (tmp_path / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, layer in zip(rows, report.layers, strict=True):
        assert row["layer"] == layer.layer
        assert float(row["sqnr_db"]) == layer.sqnr_db > 15
        assert float(row["scale"]) == layer.scale
        assert 0 <= float(row["clipped"]) < 0.1


def test_clipped_shares_are_counted():
    net, images = small_resnet()
    report = ta.quantize_(copy.deepcopy(net), [images], Int8Config(range="max"))
    assert all(layer.clipped == 0 for layer in report.layers)
    report = ta.quantize_(net, [images], Int8Config(range="percentile", percentile=0.9))
    first = report.layers[0]
    inside = (images >= first.low) & (images <= first.high)
    assert first.clipped == pytest.approx(1 - float(inside.float().mean()), abs=0.01)
    assert first.clipped == pytest.approx(0.1, abs=0.01)


def test_saved_and_loaded_without_the_float_net(tmp_path):
    net, images = small_resnet()
    ta.quantize_(net, [images], Int8Config(groups=2), mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    path = ta.save(net, tmp_path / "net.safetensors", metadata={"class_names": ["a"]})
    again = ta.load(path)
    assert type(again) is IntegerNet
    assert torch.equal(again(images), net(images))
    info = ta.checkpoint.read_info(path)
    assert info.metadata == {"class_names": ["a"]}
    assert info.program["input"]["mean"] == [0.1, 0.2, 0.3]
    assert again.input == net.input
    with pytest.raises(ta.checkpoint.CheckpointError, match=r"made by torchadder.load"):
        ta.checkpoint.load_into(net, path)
    with pytest.raises(ta.checkpoint.CheckpointError, match=r"made by torchadder.load"):
        ta.checkpoint.load_into(small_resnet()[0], path)


@pytest.mark.slow
def test_other_instruction_sets_give_the_same(tmp_path):
    net, images = small_resnet()
    ta.quantize_(net, [images])
    path = ta.save(net, tmp_path / "net.safetensors")
    code = (
        "import torch, torchadder as ta, sys\n"
        f"net = ta.load({str(path)!r})\n"
        "images = torch.arange(2 * 768).reshape(2, 3, 16, 16).mul(37).remainder(256)\n"
        "print(net.integers(images.to(torch.uint8)).tolist())\n"
    )
    bytes_ = torch.arange(2 * 768).reshape(2, 3, 16, 16).mul(37).remainder(256).to(torch.uint8)
    want = net.integers(bytes_).tolist()
    for capability in ("portable", "avx2"):
        environment = {**os.environ, "TORCHADDER_CPU_CAPABILITY": capability}
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert result.stdout == f"{want}\n", result.stderr


def test_state_dict_round_trip_and_copies():
    net, images = small_resnet()
    ta.quantize_(net, [images[:8]])
    other = copy.deepcopy(net)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    assert {"stem.packed", "layer1.conv1.multiplier", "layer1.conv1.offset"} <= set(state)
    for buffer in other.buffers():
        buffer.zero_()
    assert not torch.equal(other(images), net(images))
    other.load_state_dict(state)
    assert torch.equal(other(images), net(images))
    assert torch.equal(interpreter.logits(other.program(), images[:2]), net.integers(images[:2]))


def test_a_state_of_another_calibration_is_refused():
    net, images = small_resnet()
    calibration = Calibration(net, [images[:8]])
    one, other, again = (
        IntegerNet(calibration.lower(Int8Config(range=method))[0])
        for method in ("max", "percentile", "max")
    )
    before = other(images)
    message = r"^state of an integer net of another calibration: (step|value) .* is .*, wanted "
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(one.state_dict())
    assert torch.equal(other(images), before)
    # What earlier versions have written holds no such numbers.
    state = {name: value for name, value in one.state_dict().items() if "extra" not in name}
    assert again.load_state_dict(state) == ([], [])
    with pytest.raises(RuntimeError, match=r"fc\.packed"):
        again.load_state_dict({name: state[name] for name in state if name != "fc.packed"})


class Named(nn.Module):
    """Layers that are called as something that modules or integer nets have."""

    def __init__(self):
        super().__init__()
        for name in ("input", "bits", "program", "integers", "forward_", "output_1"):
            setattr(self, name, nn.Conv2d(3, 3, 1))
        self.each_value = nn.ModuleDict({"values_of": nn.Conv2d(3, 3, 1)})
        self.each_value.add_module("one", nn.Conv2d(3, 3, 1))
        self.takes_any_size = nn.Sequential(nn.Conv2d(3, 3, 1))
        self.outputs = nn.Flatten()
        self.output = nn.Linear(3 * 16, 2)

    def forward(self, x):
        y = self.program(self.bits(self.input(x)))
        y = self.output_1(self.forward_(self.integers(y)))
        y = self.each_value["one"](self.each_value["values_of"](y))
        return self.output(self.outputs(self.takes_any_size(y)))


def test_layers_may_be_called_as_what_an_integer_net_has(tmp_path):
    torch.manual_seed(0)
    net, images = Named().eval(), torch.randn(8, 3, 4, 4)
    report = ta.quantize_(net, [images])
    assert [row.layer for row in report.layers][-2:] == ["takes_any_size.0", "output"]
    # The net has a layer `output_1` already.
    assert isinstance(net.get_submodule("output_2"), Conv2dInt8)
    assert net.get_submodule("output_1") is not net.get_submodule("output_2")
    for name in ("forward_", "input_1", "each_value_1.values_of", "takes_any_size_1.0"):
        assert isinstance(net.get_submodule(name), Conv2dInt8)
    again = ta.load(ta.save(net, tmp_path / "net.safetensors"))
    assert list(again.state_dict()) == list(net.state_dict())
    assert torch.equal(again(images), net(images))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_as_one_graph():
    net, images = small_resnet()
    ta.quantize_(net, [images[:8]], Int8Config(groups=2))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images), net(images))
    torch._dynamo.reset()


def test_images_of_another_size_are_refused():
    net, images = small_resnet()
    ta.quantize_(net, [images[:8]])
    with pytest.raises(ValueError, match=r"images must have shape \(N, 3, 16, 16\), for which"):
        net(images[..., :12])


class Strange(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.conv = ta.nn.Adder2d(3, 4, 3)
        self.strange = what
        self.fc = nn.Linear(4 * 14 * 14, 2)

    def forward(self, x):
        return self.fc(self.strange(self.conv(x)).flatten(1))


class Zero(nn.Module):
    def forward(self, x):
        return F.relu(-x.abs() * 0)


def images(**changes):
    numbers = torch.randn(4, 3, 16, 16)
    for value in changes.values():
        numbers[1, 2, 3, 4] = value
    return numbers


class Turned(nn.Module):
    def forward(self, x):
        return x.transpose(2, 3).mean((2, 3))


@pytest.mark.parametrize(
    ("net", "batches", "message"),
    [
        (Strange(nn.Sigmoid()), [images()], r"strange: aten.sigmoid cannot be done in integers"),
        (Strange(nn.GELU()), [images()], r"strange: aten.gelu cannot be done in integers"),
        (Strange(nn.Softmax(1)), [images()], r"strange: aten.softmax cannot be done"),
        (Strange(nn.Identity()), [], r"calibration: no images"),
        (Strange(nn.Identity()), [images()[:0]], r"calibration: no images"),
        (Strange(nn.Identity()), [images(a=torch.nan)], r"the images hold NaN or infinity"),
        (Strange(nn.Identity()), [images(a=torch.inf)], r"the images hold NaN or infinity"),
        (Strange(nn.Identity()), [0 * images()], r"the images are 0 for all calibration images"),
        (Strange(nn.Identity()), [images(), images()[..., :12]], r"images of unequal sizes"),
        (Strange(nn.Identity()), [images()[0]], r"images must be floats of shape \(N, C, H, W\)"),
        (Strange(nn.Identity()), [images().byte()], r"images must be floats of shape"),
        (Strange(nn.ReLU()), [images()], r"conv: its output is 0 for all calibration images"),
        (Turned(), [images()], r"transpose: aten.transpose cannot be done in integers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_done_is_refused_and_the_net_stays(net, batches, message):
    net.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    kind, modules = type(net), list(net.modules())
    with pytest.raises(QuantizationError, match=message) as error:
        ta.quantize_(net, batches)
    assert "\n" not in str(error.value)
    assert type(net) is kind
    assert list(net.modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_other_refusals():
    net, data = small_resnet()
    with pytest.raises(TypeError, match="batches must be tensors, got dict"):
        ta.quantize_(net, [{"image": data}])
    with pytest.raises(QuantizationError, match=r"in training mode: call model.eval\(\) first"):
        ta.quantize_(net.train(), [data])
    net.eval()
    with pytest.raises(QuantizationError, match=r"quantise it before torch.compile"):
        ta.quantize_(torch.compile(net), [data])
    ta.quantize_(net, [data[:4]])
    with pytest.raises(QuantizationError, match="computes with integers already"):
        ta.quantize_(net, [data[:4]])


def test_batches_of_a_loader():
    net, data = small_resnet()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(data, torch.zeros(len(data))), batch_size=20
    )
    assert ta.quantize_(net, loader).num_images == 48
