"""Nets as steps: what is folded into what, and what is refused by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchadder as ta
from small_nets import odd_net, settled, small_resnet
from torchadder.quantize import QuantizationError, sharing
from torchadder.quantize.ranges import collect, watch
from torchadder.quantize.tracing import trace


def test_norms_relus_and_residuals_join_the_layers():
    net, images = small_resnet()
    graph = trace(net, images)
    steps = [(step.kind, step.name, len(step.inputs), step.relu) for step in graph.steps]
    assert steps == [
        ("conv", "stem", 1, True),
        ("max_pool", "pool", 1, False),
        ("adder", "layer1.conv1", 1, True),
        ("adder", "layer1.conv2", 2, True),  # the residual is what the block reads
        ("adder", "layer2.conv1", 1, True),
        ("adder", "layer2.conv2", 1, False),
        ("adder", "layer2.shortcut.0", 2, True),  # the later of the two takes the other one in
        ("avg_pool", graph.steps[-2].name, 1, False),
        ("conv", "fc", 1, False),
    ]
    assert graph.steps[3].inputs[1] == graph.steps[1].output
    assert graph.steps[6].inputs[1] == graph.steps[5].output
    norm, step = net.layer1.bn1, graph.steps[2]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    assert torch.allclose(step.scale.float(), scale)
    assert torch.allclose(step.shift.float(), norm.bias - norm.running_mean * scale, atol=1e-5)
    assert graph.shapes()[graph.outputs[0]] == (5, 1, 1)
    assert graph.shapes()[graph.input] == (3, 16, 16)


@pytest.mark.parametrize("make", [small_resnet, odd_net])
def test_the_steps_compute_what_the_net_computes(make):
    """In float64, one step after the other."""
    net, images = make()
    images = images[:4]
    graph = trace(net, images)
    values = {graph.input: images.double()}
    for step in graph.steps:
        x = values[step.inputs[0]]
        if step.kind in ("adder", "conv"):
            x = x if x.dim() == 4 else x[:, :, None, None]
            layer = ta.functional.adder2d if step.kind == "adder" else F.conv2d
            window = step.window
            y = layer(x, step.weight.double(), None, *window)
            y = y * step.scale[:, None, None] + step.shift[:, None, None]
            if len(step.inputs) > 1:
                y = y + values[step.inputs[1]]
        elif step.kind == "add":
            y = x + values[step.inputs[1]]
        elif step.kind == "affine":
            y = x * step.scale[:, None, None] + step.shift[:, None, None]
        elif step.kind == "flatten":
            y = x.flatten(1)
        elif step.kind == "max_pool":
            y = F.max_pool2d(x, step.kernel, *step.window[:3])
        else:
            kernel = step.kernel or x.shape[2:]
            y = F.avg_pool2d(x, kernel, *(step.window or ((1, 1), (0, 0)))[:2])
        values[step.output] = y.relu() if step.relu else y
    want = net.double()(images.double())
    assert torch.allclose(values[graph.outputs[0]].flatten(1), want, atol=1e-5)
    shown = {}
    watch(trace(net.float(), images), [images], lambda n, v: shown.update({n: v.clone()}))
    assert set(shown) == set(values)
    for name, value in shown.items():
        assert torch.allclose(value.double().flatten(1), values[name].flatten(1), atol=1e-4), name


def test_histograms_hold_every_number():
    net, images = small_resnet()
    graph = trace(net, images)
    histograms = collect(graph, [images[:20], images[20:]])
    assert set(histograms) == set(graph.nodes)
    histogram = histograms[graph.input]
    assert histogram.low == float(images.min())
    assert histogram.high == float(images.max())
    assert float(histogram.counts.sum()) == images.numel()
    mean = float((histogram.counts * histogram.centres).sum() / histogram.counts.sum())
    assert mean == pytest.approx(float(images.mean()), abs=1e-3)
    # In two batches or in one: the same numbers.
    again = collect(graph, [images])
    for name in histograms:
        assert torch.equal(histograms[name].counts, again[name].counts), name


class Ends(nn.Module):
    """Something between a convolution and a linear layer."""

    def __init__(self, middle):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.middle = middle

    def forward(self, x):
        return self.middle(self.conv(x)).mean((2, 3))


class Scaled(nn.Module):
    def forward(self, x):
        return torch.add(x, x, alpha=2)


class Constant(nn.Module):
    def forward(self, x):
        return x + torch.ones(4, 1, 1)


class Broadcast(nn.Module):
    def forward(self, x):
        return x + F.adaptive_avg_pool2d(x, 1)


class Rows(nn.Module):
    def forward(self, x):
        return x + x.mean(2, keepdim=True).expand_as(x)


class Does(nn.Module):
    """What a function does."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what(x)


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (nn.MaxPool2d(3, 2, ceil_mode=True), "middle: pooling with ceil_mode"),
        (nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), "middle: a mean with another"),
        (nn.AdaptiveAvgPool2d(5), "middle: pooling of 8x8 to 5x5 has unequal windows"),
        (nn.BatchNorm2d(4, track_running_stats=False), "middle: a batch norm without running"),
        (nn.Conv2d(4, 4, 3, padding="same"), "middle: padding must be given in numbers"),
        (nn.LeakyReLU(), r"middle: aten.leaky_relu cannot be done in integers"),
        (nn.Upsample(scale_factor=2, mode="bilinear"), "middle: aten.upsample_bilinear2d cannot"),
        (nn.Upsample(12), "middle: enlarging 8x8 to 12x12 is no whole factor"),
        (Scaled(), "middle: an addition with a factor"),
        (Broadcast(), "middle: an addition of unequal shapes"),
        (Constant(), "middle: "),
        (Rows(), "middle: a mean over"),
        (Does(F.dropout), r"middle: dropout in evaluation mode \(train=True\) cannot be done"),
        (Does(F.dropout2d), r"middle: dropout in evaluation mode \(train=True\) cannot be done"),
        (Does(lambda x: F.conv2d(x, x)), "weights that are computed from the images cannot be"),
        (Does(lambda x: x[:1]), "middle: a part of the batch cannot be done"),
        (Does(lambda x: x[..., 1:]), r"middle: aten.slice of \(4, 8, 8\) to \(4, 8, 7\) cannot"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_integers_cannot_do_is_refused_by_name(middle, message):
    net = Ends(middle).eval()
    with pytest.raises(QuantizationError, match=message) as error:
        trace(net, torch.randn(2, 2, 8, 8))
    assert "\n" not in str(error.value)


class Levels(nn.Module):
    """A shared layer on two levels, the coarse one thinned out, enlarged and added to the fine."""

    def __init__(self):
        super().__init__()
        self.lateral = nn.Conv2d(2, 4, 3, padding=1)
        self.conv = ta.nn.Adder2d(4, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 3, 1)
        self.register_buffer("scale", torch.tensor([0.5, 2.0, -1.0, 1.0]).view(1, 4, 1, 1))

    def forward(self, x):
        fine = self.lateral(x) * self.scale.abs() + self.scale
        coarse = self.norm(self.conv(fine)) + fine[..., ::2, ::2]
        fine = self.lateral(x) + F.interpolate(coarse, scale_factor=2.0)
        return self.head(fine), F.relu(self.head(coarse)), self.head(fine)


def test_levels_become_steps():
    torch.manual_seed(0)
    net, images = Levels().eval(), torch.randn(2, 2, 8, 12)
    graph = trace(net, images)
    steps = [(step.kind, step.name, len(step.inputs), step.relu) for step in graph.steps]
    assert steps == [
        ("conv", "lateral", 1, False),  # its factors and constants are folded in
        ("max_pool", graph.steps[1].name, 1, False),  # every other pixel
        ("adder", "conv", 2, False),  # moved behind what is added to it
        ("upsample", graph.steps[3].name, 1, False),
        ("conv", "lateral", 2, False),
        ("conv", "head", 1, False),
        ("conv", "head", 1, True),
        ("conv", "head", 1, False),
    ]
    thin = graph.steps[1]
    assert (thin.kernel, thin.window.stride) == ((1, 1), (2, 2))
    assert torch.equal(graph.steps[0].scale.float(), torch.tensor([0.5, 2.0, 1.0, 1.0]))
    bias = net.lateral.bias.detach() * graph.steps[0].scale + net.scale.flatten()
    assert torch.allclose(graph.steps[0].shift, bias.double())
    assert graph.are_maps == (True, True, True)
    assert graph.takes_any_size
    # The recorded net runs on other sizes.
    other = torch.randn(3, 2, 16, 4)
    found = {}
    watch(graph, [other], lambda name, value: found.update({name: value.clone()}))
    with torch.no_grad():
        wanted = net(other)
    for name, one in zip(graph.outputs, wanted, strict=True):
        assert torch.allclose(found[name], one, atol=1e-5)


def test_uses_of_a_layer_share_what_they_read_and_make():
    torch.manual_seed(0)
    images = torch.randn(2, 2, 8, 12)
    graph = trace(Levels().eval(), images)
    found = sharing.find(graph)
    fine, coarse, again = graph.steps[-3:]
    # The one with the ReLU does something else: a layer of its own.
    assert found.first == {again.output: fine}
    assert found.alike[again.output] == found.alike[fine.output] != found.alike[coarse.output]
    thin, enlarged = graph.steps[1], graph.steps[3]
    assert found.alike[thin.output] == found.alike[thin.inputs[0]] == graph.steps[0].output
    assert found.alike[enlarged.output] == graph.steps[2].output
    histograms = collect(graph, [images], {**found.alike, coarse.output: fine.output})
    one = collect(graph, [images])
    joined = histograms[coarse.output]
    assert joined is histograms[fine.output]
    assert joined.low == min(one[name].low for name in (fine.output, coarse.output))
    assert joined.high == max(one[name].high for name in (fine.output, coarse.output))
    assert float(joined.counts.sum()) == pytest.approx(3)  # three values, each of the same weight


def test_integers_of_levels():
    torch.manual_seed(0)
    net, images = Levels().eval(), torch.randn(4, 2, 8, 12)
    with torch.no_grad():
        wanted = net(images)
    report = ta.quantize_(net, [images, torch.randn(2, 2, 4, 4)])
    found = net(images)
    assert isinstance(found, tuple)
    for one, two in zip(found, wanted, strict=True):
        assert one.shape == two.shape
        assert 10 * torch.log10(two.square().sum() / (one - two).square().sum()) > 25
    assert [row.layer for row in report.layers] == [
        "lateral",
        "conv",
        "lateral_1",
        "head",
        "head_1",
    ]
    assert net(images[..., :4, :8])[1].shape == (4, 3, 2, 4)


@pytest.mark.parametrize(
    "middle", [nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d(1)], ids=["windows", "image"]
)
def test_maps_with_a_mean_over_the_image_take_one_size(middle):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 1), middle, nn.Upsample(scale_factor=2)).eval()
    images = torch.randn(4, 2, 8, 8)
    with pytest.raises(QuantizationError, match="images of unequal sizes"):
        ta.quantize_(net, [images, images[..., :4]])
    ta.quantize_(net, [images])
    with pytest.raises(ValueError, match=r"images must have shape \(N, 2, 8, 8\), for which the"):
        net(images[..., :4])


class Reused(nn.Module):
    """What is added to a later layer keeps its own value for others."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(2, 4, 1)
        self.two = nn.Conv2d(2, 4, 1)
        self.fc = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        one = self.one(x)
        return self.fc(self.two(x) + one) + self.fc(F.relu(one))


def test_a_relu_does_not_reach_what_was_added_elsewhere():
    torch.manual_seed(0)
    net, images = Reused().eval(), torch.randn(4, 2, 6, 6)
    with torch.no_grad():
        wanted = net(images)
    ta.quantize_(net, [images])
    found = net(images)
    assert 10 * torch.log10(wanted.square().sum() / (found - wanted).square().sum()) > 25


class Viewed(nn.Module):
    """The size of the batch is read from the images, from what a layer makes, and multiplied."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.fc = nn.Linear(108, 4)

    def forward(self, x):
        y = self.conv(x)
        num_rows = y.size(0) * 2 // 2
        return self.fc(F.relu(y).view(num_rows, -1)).view(x.size(0), -1)


def test_sizes_of_the_batch_are_no_steps():
    torch.manual_seed(0)
    net, images = Viewed().eval(), torch.randn(4, 2, 8, 8)
    graph = trace(net, images)
    steps = [(step.kind, step.relu) for step in graph.steps]
    assert steps == [("conv", True), ("flatten", False), ("conv", False)]
    assert ta.quantize_(net, [images]).sqnr_db > 25
    assert net(images[:3]).shape == (3, 4)


def test_adder_linear_layers():
    torch.manual_seed(0)
    adder = ta.nn.AdderLinear(108, 8)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), adder, nn.BatchNorm1d(8), nn.Linear(8, 4))
    images = torch.randn(16, 2, 8, 8)
    settled(net, images)
    report = ta.quantize_(net, [images])
    assert [(row.layer, row.kind) for row in report.layers] == [
        ("0", "conv"),
        ("2", "adder"),
        ("4", "conv"),
    ]
    assert report.sqnr_db > 25
    assert net(images[:3]).shape == (3, 4)


@pytest.mark.parametrize("dropout", [nn.Dropout(), nn.Dropout2d(), nn.Dropout2d(inplace=True)])
def test_dropout_that_is_off_is_nothing(dropout):
    graph = trace(Ends(dropout).eval(), torch.randn(2, 2, 8, 8))
    assert [step.kind for step in graph.steps] == ["conv", "avg_pool"]


def test_slices_of_everything_are_nothing():
    thin = Does(lambda x: x[:, :, ::2, ::2][:, 0:4])
    graph = trace(Ends(thin).eval(), torch.randn(2, 2, 8, 8))
    assert [step.kind for step in graph.steps] == ["conv", "max_pool", "avg_pool"]
    assert graph.steps[1].window.stride == (2, 2)


def test_one_class_without_its_dimension_is_refused_by_name():
    squeezed = nn.Sequential(nn.Flatten(), nn.Linear(4, 1), Does(lambda x: x.squeeze(1))).eval()
    with pytest.raises(QuantizationError, match=r"^2: aten.squeeze of \(1,\) to \(\) cannot be"):
        trace(squeezed, torch.randn(2, 1, 2, 2))


class Outside(nn.Module):
    """An operation that is in no layer."""

    def forward(self, x):
        return x.sigmoid()


def test_operations_outside_layers_have_their_own_names():
    with pytest.raises(QuantizationError, match=r"^sigmoid: aten.sigmoid cannot be done"):
        trace(Outside().eval(), torch.randn(2, 2, 8, 8))


class Returns(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.what = what

    def forward(self, x):
        return self.what(self.conv(x))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda y: (y, 3), "the net returns 3, which no image decides"),
        (lambda y: F.avg_pool2d(y, 6).flatten(2), r"shape \(.*, 4, 1\), wanted \(N, classes\) or"),
    ],
)
def test_outputs_that_are_no_images_or_logits_are_refused(what, message):
    with pytest.raises(QuantizationError, match=message):
        trace(Returns(what).eval(), torch.randn(2, 2, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "resnet18", "vgg_small", "lenet5_bn"])
def test_nets_of_the_package(name):
    torch.manual_seed(0)
    net = getattr(ta.models, name)()
    C, H, _ = net.image_shape
    images = torch.randn(8, C, min(H, 64), min(H, 64))
    settled(net, images)
    report = ta.quantize_(net, [images])
    assert report.sqnr_db > 15
    assert net(images).shape == (8, net.output.num_classes)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_net_of_torchvision():
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=10)
    ta.convert_(net, ta.AdderConfig())
    images = torch.randn(8, 3, 64, 64)
    settled(net, images)
    assert ta.quantize_(net, [images]).sqnr_db > 15
