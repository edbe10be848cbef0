"""convert_ on models of torchvision and timm, and on small ones made to break it."""

import copy
import gc
import io
import warnings

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrize, prune

from torchadder import AdderConfig, convert_
from torchadder.nn import Adder1d, Adder2d, AdderLinear, AdderModule, AdderTranspose2d

pytestmark = pytest.mark.filterwarnings(
    "ignore:adder layers without a normalisation:UserWarning",
)


def conv_net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False),
        nn.BatchNorm2d(6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


def adders(model):
    return [name for name, m in model.named_modules() if isinstance(m, AdderModule)]


def torchvision_model(name):
    return getattr(torchvision.models, name)(weights=None, num_classes=7)


def timm_model(name):
    return timm.create_model(name, pretrained=False, num_classes=7)


# Model, image size, first and last layer, convolutions converted, converted ones without a norm.
MODELS = [
    (torchvision_model, "resnet18", 32, "conv1", "fc", 19, 0),
    (torchvision_model, "resnet50", 32, "conv1", "fc", 52, 0),
    (torchvision_model, "mobilenet_v3_small", 32, "features.0.0", "classifier.3", 51, 18),
    (torchvision_model, "vgg11_bn", 32, "features.0", "classifier.6", 7, 0),
    (torchvision_model, "densenet121", 32, "features.conv0", "classifier", 119, 0),
    (torchvision_model, "squeezenet1_1", 48, "features.0", "classifier.1", 24, 24),
    (timm_model, "resnet10t", 32, "conv1.0", "fc", 13, 0),
    (timm_model, "mobilenetv3_small_050", 32, "conv_stem", "classifier", 52, 19),
]


@pytest.mark.parametrize(
    ("make", "name", "size", "first", "last", "num_converted", "num_missing"),
    MODELS,
    ids=[case[1] for case in MODELS],
)
def test_published_models(make, name, size, first, last, num_converted, num_missing):
    model = make(name)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]

    report = convert_(model)

    assert report.order == "trace"
    assert len(report.converted) == num_converted
    assert sorted(adders(model)) == sorted(report.converted)
    assert set(report.converted) == set(convs) - {first, last}
    assert len(report.missing_norm) == num_missing
    assert report.kept[first] == "first"
    assert report.kept[last] == "last"
    assert report.layers[0].name == first
    assert report.layers[-1].name == last
    assert list(shapes) == list(model.state_dict())
    assert shapes == {key: tensor.shape for key, tensor in model.state_dict().items()}

    model.train()(torch.randn(2, 3, size, size)).square().mean().backward()
    for layer in report.converted:
        gradient = model.get_submodule(layer).weight.grad
        assert gradient is not None
        assert gradient.isfinite().all()

    again = convert_(model)
    assert again.converted == []
    assert again.kept == report.kept
    assert adders(model) == [n for n, m in model.named_modules() if n in set(report.converted)]


def test_squeeze_and_excite_is_reported_as_lacking_norms():
    model = torchvision_model("mobilenet_v3_small")
    with pytest.warns(UserWarning, match=r"features\.1\.block\.1\.fc1") as caught:
        report = convert_(model)
    assert len(caught) == 1
    assert all(name.endswith((".fc1", ".fc2")) for name in report.missing_norm)
    depthwise = model.get_submodule("features.1.block.0.0")
    assert isinstance(depthwise, Adder2d)
    assert depthwise.groups == 16
    assert "features.1.block.1.fc1   Conv2d  8x16x1x1     converted     MISSING" in str(report)


def test_pre_activation_finds_the_norm_in_the_next_layer():
    report = convert_(torchvision_model("densenet121"))
    norms = {layer.name: layer.norm for layer in report.layers}
    block = "features.denseblock1.denselayer"
    assert norms[f"{block}1.conv1"] == f"{block}1.norm2"
    assert norms[f"{block}1.conv2"] == f"{block}2.norm1"
    assert norms["features.transition1.conv"] == "features.denseblock2.denselayer1.norm1"
    assert norms["features.denseblock4.denselayer16.conv2"] == "features.norm5"


def test_report_table():
    report = convert_(conv_net())
    assert str(report).splitlines() == [
        "layer  kind    weight   action       norm behind",
        "-----  ------  -------  -----------  ---------------",
        "0      Conv2d  4x3x3x3  kept: first  -",
        "3      Conv2d  4x4x3x3  converted    4 (BatchNorm2d)",
        "6      Conv2d  6x2x3x3  converted    7 (BatchNorm2d)",
        "10     Linear  5x6      kept: last   -",
        "2 converted (0 without a norm), 2 kept, 0 adder layers before",
    ]


def test_arguments_and_parameters_move_to_the_twins():
    net = nn.Sequential(
        nn.Conv1d(4, 6, 5, 2, 3, 2, groups=2, padding_mode="circular"),
        nn.Conv2d(4, 6, (3, 5), (2, 1), (1, 2), (1, 2), groups=2, bias=False),
        nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect"),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2),
        nn.Linear(7, 3),
    ).double()
    old = list(net)
    parameters = dict(net.named_parameters())
    values = {name: p.detach().clone() for name, p in parameters.items()}
    net.eval()
    net[1].weight.requires_grad_(False)

    report = convert_(net, AdderConfig(keep=(), grad="sign", init="keep", linear=True))

    assert len(report.converted) == 5
    classes = [Adder1d, Adder2d, Adder2d, AdderTranspose2d, AdderLinear]
    assert [type(layer) for layer in net] == classes
    for before, after in zip(old, net, strict=True):
        assert after.grad == "sign"
        assert not after.training
        assert after.extra_repr().startswith(before.extra_repr())
    for name, parameter in net.named_parameters():
        assert parameter is parameters[name]
        assert torch.equal(parameter, values[name])
    assert not net[1].weight.requires_grad
    assert (
        net[0](torch.randn(2, 4, 11).double()).shape == old[0](torch.ones(2, 4, 11).double()).shape
    )
    image = torch.randn(2, 4, 9, 9).double()
    for before, after in zip(old[1:4], net[1:4], strict=True):
        assert after(image).shape == before(image).shape


def test_fresh_weights_are_normal_and_reproducible():
    def converted():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64))
        convert_(net, AdderConfig(keep=()))
        return net[0]

    layer = converted()
    assert layer.weight.std().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(layer.bias, torch.zeros(64))
    assert torch.equal(layer.weight, converted().weight)


def test_an_optimizer_built_before_still_trains_the_model():
    net = conv_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    convert_(net)
    before = net[3].weight.detach().clone()
    net(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(net[3].weight, before)


@pytest.mark.parametrize(
    ("keep", "linear", "converted"),
    [
        (("first", "last"), False, ["3", "6"]),
        (("first",), False, ["3", "6"]),
        (("last",), False, ["0", "3", "6"]),
        ((), True, ["0", "3", "6", "10"]),
        (("first", "last"), True, ["3", "6"]),
        (("3",), False, ["0", "6"]),
        (["first", "[36]"], False, []),
    ],
)
def test_keep(keep, linear, converted):
    net = conv_net()
    config = AdderConfig(keep=keep, linear=linear)
    assert convert_(net, config).converted == converted
    assert convert_(net, config).converted == []


def test_keep_names_a_block():
    model = torchvision_model("resnet18")
    report = convert_(model, AdderConfig(keep=("layer1", "*.downsample.0")))
    assert report.kept["layer1.0.conv1"] == "layer1"
    assert report.kept["layer4.0.downsample.0"] == "*.downsample.0"
    assert len(report.converted) == 20 - 4 - 3


class Ends(nn.Module):
    """Modules called "first" and "last" that are neither the first nor the last layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.first = nn.Conv2d(4, 4, 3)
        self.last = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.last(self.first(self.stem(x))))


def test_first_and_last_are_places_and_no_names():
    report = convert_(Ends())
    assert report.kept == {"stem": "first", "head": "last"}
    assert report.converted == ["first", "last.0", "last.1"]
    report = convert_(Ends(), AdderConfig(keep=("firs[t]", "las[t].*")))
    assert report.converted == ["stem", "head"]


def test_kept_layers_stay_kept_whatever_the_first_call_converted():
    """Adder layers count for first and last, or the layer behind them would become the first."""
    net = conv_net()
    convert_(net, AdderConfig(keep=("3", "last")))
    assert adders(net) == ["0", "6"]
    report = convert_(net, AdderConfig(keep=("first", "last")))
    assert report.converted == ["3"]
    assert [layer.action for layer in report.layers] == [
        "already adder",
        "converted",
        "already adder",
        "kept: last",
    ]


def test_filter_fn_sees_what_is_left():
    net = conv_net()
    seen = []

    def filter_fn(module, name):
        seen.append((type(module), name))
        return module.groups == 1

    report = convert_(net, filter_fn=filter_fn)
    assert seen == [(nn.Conv2d, "3"), (nn.Conv2d, "6")]
    assert report.converted == ["3"]
    assert report.kept["6"] == "filter_fn"


class Backwards(nn.Module):
    """Registers its layers in the opposite of the order in which it calls them."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.norm = nn.BatchNorm2d(4)
        self.middle = nn.Conv2d(4, 4, 3)
        self.stem = nn.Conv2d(3, 4, 3)

    def forward(self, x, scale=None):
        if scale is not None:
            x = x * scale
        x = self.norm(self.middle(self.stem(x)))
        return self.head(x.mean((2, 3)))


def test_first_and_last_are_those_of_the_execution():
    report = convert_(Backwards())
    assert report.kept == {"stem": "first", "head": "last"}
    assert [layer.name for layer in report.layers] == ["stem", "middle", "head"]
    assert report.layers[1].norm == "norm"


class Untraceable(nn.Module):
    """Its forward depends on the data, and it registers layers before norms."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 5, 3)
        self.conv3 = nn.Conv2d(5, 6, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.bn2 = nn.BatchNorm2d(5)
        self.bn3 = nn.BatchNorm2d(6)
        self.tail = nn.Sequential(nn.Conv2d(6, 6, 1), nn.MaxPool2d(2), nn.GroupNorm(2, 6))
        self.bare = nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU(), nn.BatchNorm2d(6))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        if x.sum() > 0:
            x = -x
        x = self.bn3(self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x))))))
        return self.head(self.bare(self.tail(x)).mean((2, 3)))


def test_registration_order_where_tracing_fails():
    net = Untraceable()
    report = convert_(net)
    assert report.order == "order"
    assert "TraceError" in report.trace_error
    assert "not traced" in str(report)
    assert report.kept == {"conv1": "first", "head": "last"}
    norms = {layer.name: layer.norm for layer in report.layers}
    assert norms["conv2"] == "bn2"
    assert norms["conv3"] == "bn3"
    assert norms["tail.0"] == "tail.2"
    assert report.missing_norm == ["bare.0"]
    net(torch.randn(2, 3, 12, 12)).sum().backward()


class UntraceableOfOneWidth(nn.Module):
    """As above, with norms that fit every convolution; pooling stands between some of them."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3)
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.conv3 = nn.Conv2d(4, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.bn2 = nn.BatchNorm2d(4)
        self.bn3 = nn.BatchNorm2d(4)
        self.parts = nn.ModuleDict(
            {
                "conv4": nn.Conv2d(4, 4, 1),
                "pool": nn.MaxPool2d(2),
                "conv5": nn.Conv2d(4, 4, 1),
                "bn4": nn.BatchNorm2d(4),
                "conv6": nn.Conv2d(4, 4, 1),
                "bn6": nn.BatchNorm2d(4),
            }
        )

    def forward(self, x):
        return self.conv1(x) if x.sum() > 0 else self.conv2(x)


def test_each_of_a_run_of_layers_has_its_norm():
    report = convert_(UntraceableOfOneWidth(), AdderConfig(keep=()))
    assert report.order == "order"
    norms = {layer.name: layer.norm for layer in report.layers}
    assert [norms[f"conv{i}"] for i in (1, 2, 3)] == ["bn1", "bn2", "bn3"]
    assert [norms[f"parts.conv{i}"] for i in (5, 6)] == ["parts.bn4", "parts.bn6"]


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 3, 1)
        self.b = nn.Conv2d(3, 3, 1)
        self.c = nn.Conv2d(3, 3, 1)
        self.frozen = torchvision.ops.FrozenBatchNorm2d(3)
        self.norm = nn.InstanceNorm2d(3)

    def forward(self, x):
        x = nn.functional.layer_norm(self.a(x), (x.shape[-1],))
        x = self.frozen(nn.functional.max_pool2d(self.b(x), 2))
        y = self.c(x)
        return self.norm(y) + y


def test_norms_that_are_functions_or_of_other_packages():
    report = convert_(Functional(), AdderConfig(keep=()))
    assert [layer.norm for layer in report.layers] == ["functional layer_norm", "frozen", None]
    assert report.missing_norm == ["c"], "one way out of c passes the norm by"


def test_an_activation_in_between_hides_the_norm():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3))
    assert convert_(net, AdderConfig(keep=())).missing_norm == ["0"]


class Remembering(nn.Module):
    """A forward with side effects."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("calls", torch.zeros(()))
        self.seen = []

    def forward(self, x):
        self.calls += 1
        self.last = x
        self.seen.append(x)
        torch.rand(3)
        return self.norm(self.conv(x))


def test_the_search_leaves_nothing_behind():
    net = Remembering()
    ran = []
    net.register_forward_hook(lambda *_: ran.append(1))
    state = torch.random.get_rng_state()
    report = convert_(net, AdderConfig(keep=(), init="keep"))
    assert report.order == "trace"
    assert not hasattr(net, "last")
    assert net.seen == []
    assert net.calls.item() == 0
    assert ran == []
    assert torch.equal(torch.random.get_rng_state(), state)


def test_hooks_move_and_their_handles_still_work():
    net = conv_net()
    conv = net[3]
    log = []

    def note(name):
        return lambda *args, **kwargs: log.append((name, args[0]))

    handles = [
        conv.register_forward_pre_hook(note("pre")),
        conv.register_forward_pre_hook(note("pre kwargs"), with_kwargs=True),
        conv.register_forward_hook(note("forward")),
        conv.register_forward_hook(note("forward kwargs"), with_kwargs=True, always_call=True),
        conv.register_full_backward_pre_hook(note("backward pre")),
        conv.register_full_backward_hook(note("backward")),
        conv.register_state_dict_post_hook(note("save")),
        conv.register_state_dict_pre_hook(note("save pre")),
        conv.register_load_state_dict_pre_hook(note("load pre")),
        conv.register_load_state_dict_post_hook(note("load")),
    ]
    del conv
    convert_(net)
    gc.collect()
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    net.load_state_dict(net.state_dict())
    names = [name for name, _ in log]
    assert names == [
        *("pre", "pre kwargs", "forward", "forward kwargs", "backward pre", "backward"),
        *("save pre", "save", "load pre", "load"),
    ]
    assert all(module is net[3] for _, module in log)
    for handle in handles:
        handle.remove()
    log.clear()
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    net.load_state_dict(net.state_dict())
    assert log == []


def test_own_attributes_and_buffers_move():
    net = conv_net()
    net[3].note = "kept"
    net[3].register_buffer("mask", torch.ones(4), persistent=False)
    convert_(net)
    assert net[3].note == "kept"
    assert torch.equal(net[3].mask, torch.ones(4))
    assert "3.mask" not in net.state_dict()


def test_a_module_under_two_names_stays_one():
    net = conv_net()
    net.add_module("again", net[3])
    report = convert_(net)
    assert net.again is net[3]
    assert isinstance(net.again, Adder2d)
    row = next(layer for layer in report.layers if layer.name == "3")
    assert row.aliases == ("again",)


def test_weights_tied_between_converted_layers_stay_tied():
    net = nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(4)))
    net[2].weight = net[1].weight
    report = convert_(net)
    assert report.converted == ["1", "2"]
    assert net[2].weight is net[1].weight


def test_a_weight_tied_to_a_kept_layer_is_not_overwritten():
    net = nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(4)))
    net[1].weight = net[0].weight
    net[2].bias = net[1].bias
    before = copy.deepcopy(net.state_dict())
    report = convert_(net)
    assert report.converted == []
    assert report.kept["1"] == "shares its weight with 0"
    assert report.kept["2"] == "shares its weight with 1"
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_a_weight_tied_to_a_module_of_another_kind_is_not_overwritten():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 8)
            self.decoder = nn.Linear(8, 10)
            self.decoder.weight = self.embedding.weight
            self.free = nn.Linear(8, 8)
            self.own = nn.Linear(8, 8)
            self.shift = self.own.bias

    net = Tied()
    before = copy.deepcopy(net.embedding.state_dict())
    report = convert_(net, AdderConfig(keep=(), linear=True))
    assert report.converted == ["free"]
    assert report.kept == {
        "decoder": "shares its weight with embedding",
        "own": "shares its weight with the model itself",
    }
    torch.testing.assert_close(net.embedding.state_dict(), before, rtol=0, atol=0)


class Preset(nn.Conv2d):
    """Another constructor, the same computation."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, padding=1)


class Standardized(nn.Conv2d):
    def forward(self, input):
        weight = self.weight - self.weight.mean()
        return self._conv_forward(input, weight, self.bias)


def test_subclasses():
    net = nn.Sequential(
        nn.Conv2d(3, 3, 1),
        Preset(3),
        Standardized(3, 3, 1),
        timm.layers.Conv2dSame(3, 3, 3),
        timm.layers.StdConv2d(3, 3, 3),
        nn.Conv3d(3, 3, 1),
        nn.ConvTranspose1d(3, 3, 1),
        nn.LazyConv2d(3, 1),
        nn.Conv2d(3, 3, 1),
        nn.Conv2d(3, 3, 1),
    )
    net[8].forward = lambda x: x
    report = convert_(net)
    assert report.converted == ["1"]
    assert report.kept == {
        "0": "first",
        "2": "subclass Standardized",
        "3": "subclass Conv2dSame",
        "4": "subclass StdConv2d",
        "5": "no adder twin of Conv3d",
        "6": "no adder twin of ConvTranspose1d",
        "7": "lazy, its shape is not known yet",
        "8": "forward replaced on the instance",
        "9": "last",
    }
    assert next(layer for layer in report.layers if layer.name == "7").shape == ()


def test_layers_whose_parent_reads_the_weight_are_left_alone():
    net = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 2))
    report = convert_(net, AdderConfig(keep=(), linear=True))
    assert report.converted == ["1"]
    assert len(report.kept) == 3


def test_parametrized_and_pruned_layers_are_refused_and_nothing_is_changed():
    for spoil in (
        nn.utils.parametrizations.weight_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ):
        net = conv_net()
        spoil(net[6])
        with pytest.raises(ValueError, match="layer '6' is parametrized or pruned"):
            convert_(net)
        assert adders(net) == []
        report = convert_(net, AdderConfig(keep=("6",)))
        assert report.converted == ["0", "3"]


def test_parametrizing_an_adder_layer():
    net = conv_net()
    convert_(net)
    nn.utils.parametrizations.weight_norm(net[3])
    report = convert_(net)
    assert parametrize.is_parametrized(net[3])
    assert report.converted == []
    assert next(row for row in report.layers if row.name == "3").kind == "Adder2d"
    net(torch.randn(2, 3, 8, 8)).sum().backward()


def test_meta_device_and_dtype():
    with torch.device("meta"):
        net = conv_net().bfloat16()
    report = convert_(net)
    assert report.converted == ["3", "6"]
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in net.parameters())
    assert net(torch.empty(2, 3, 8, 8, device="meta", dtype=torch.bfloat16)).shape == (2, 5)


def test_deepcopy_and_state_dict():
    net = conv_net()
    convert_(net)
    twin = copy.deepcopy(net)
    stream = io.BytesIO()
    torch.save(net.state_dict(), stream)
    stream.seek(0)
    other = conv_net()
    convert_(other)
    other.load_state_dict(torch.load(stream))
    image = torch.randn(2, 3, 8, 8)
    assert torch.equal(net.eval()(image), twin.eval()(image))
    assert torch.equal(net(image), other.eval()(image))


def test_compile_fullgraph():
    net = conv_net()
    convert_(net)
    image = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(net.eval(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), net(image))
    compiled(image).sum().backward()
    assert net[3].weight.grad is not None


def test_a_compiled_model_can_be_converted():
    net = conv_net().eval()
    compiled = torch.compile(net, backend="aot_eager")
    image = torch.randn(2, 3, 8, 8)
    compiled(image)
    report = convert_(compiled)
    assert report.converted == ["_orig_mod.3", "_orig_mod.6"]
    torch.testing.assert_close(compiled(image), net(image))


def test_a_part_of_a_model():
    model = torchvision_model("resnet18")
    report = convert_(model.layer1, AdderConfig(keep=()))
    assert report.converted == ["0.conv1", "0.conv2", "1.conv1", "1.conv2"]
    assert len(convert_(model).converted) == 15


def test_a_model_without_layers():
    report = convert_(nn.ReLU())
    assert report.layers == ()
    assert str(report).endswith("0 converted (0 without a norm), 0 kept, 0 adder layers before")


def test_no_warning_where_nothing_lacks_a_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = conv_net()
        convert_(net)
        bare = nn.Sequential(nn.Conv2d(3, 3, 1))
        with pytest.raises(UserWarning, match="without a normalisation"):
            convert_(bare, AdderConfig(keep=()))
        assert convert_(bare, AdderConfig(keep=())).missing_norm == []


def test_the_model_itself_is_a_layer():
    for layer in (nn.Conv2d(3, 3, 3), nn.Linear(3, 3), Preset(3)):
        with pytest.raises(ValueError, match=f"model is itself a {type(layer).__name__}"):
            convert_(layer)
    report = convert_(Adder2d(3, 3, 3))
    assert [row.action for row in report.layers] == ["already adder"]


def test_wrong_types():
    with pytest.raises(TypeError, match="model must be"):
        convert_(torchvision.models.resnet18)
    with pytest.raises(TypeError, match="config must be"):
        convert_(conv_net(), {"keep": ()})
    with pytest.raises(TypeError, match="filter_fn must be"):
        convert_(conv_net(), filter_fn="conv")
    with pytest.raises(ValueError, match="keep names 'layer9', which matches no layer"):
        convert_(conv_net(), AdderConfig(keep=("first", "layer9")))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep": "first"}, TypeError, "keep must be a tuple"),
        ({"keep": None}, TypeError, "keep must be a tuple"),
        ({"keep": (1,)}, TypeError, "keep must hold strings"),
        ({"keep": ("",)}, ValueError, "empty name"),
        ({"grad": "soft"}, ValueError, "grad must be one of"),
        ({"init": "zeros"}, ValueError, "init must be one of normal, keep"),
        ({"linear": 1}, TypeError, "linear must be a bool"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        AdderConfig(**options)


def test_config_is_frozen_and_hashable():
    config = AdderConfig(keep=["first"])
    assert config.keep == ("first",)
    assert hash(config) == hash(AdderConfig(keep=("first",)))
    with pytest.raises(AttributeError):
        config.grad = "sign"
