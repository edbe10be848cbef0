"""Outputs, structure, configs and errors of the models."""

import copy
import functools
import itertools
import json

import pytest
import torch
from torch import nn

from torchadder import models
from torchadder.nn import Adder1d, Adder2d, AdderModule, AdderTranspose2d

CIFAR = ["vgg_small", "resnet20", "resnet32"]
IMAGENET = ["resnet18", "resnet34", "resnet50", "resnet101"]


def meta(name, **kwargs):
    with torch.device("meta"):
        return models.build(name, **kwargs)


@pytest.mark.parametrize("conv", ["conv", "adder"])
@pytest.mark.parametrize("name", models.MODELS)
def test_shapes(name, conv):
    model = meta(name, conv=conv, num_classes=7)
    images = torch.empty(2, *model.image_shape, device="meta")
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features)
    assert model(images).shape == (2, 7)
    assert model.forward_head(features).shape == (2, 7)


@pytest.mark.parametrize("name", ["lenet5_bn", "resnet20"])
@pytest.mark.parametrize("conv", ["conv", "adder"])
def test_trains_on_cpu(name, conv):
    model = models.build(name, conv=conv)
    images = torch.randn(2, *model.image_shape)
    nn.functional.cross_entropy(model(images), torch.tensor([1, 2])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", models.MODELS)
def test_first_and_last_layer_are_multiplicative(name):
    model = meta(name)
    layers = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, AdderModule | nn.Conv2d | nn.Linear)
    ]
    assert layers[0][0] == "conv1"
    assert layers[-1][0] == "fc"
    assert isinstance(layers[0][1], nn.Conv2d)
    assert isinstance(layers[-1][1], nn.Conv2d | nn.Linear)
    assert all(isinstance(module, Adder2d) for _, module in layers[1:-1])


@pytest.mark.parametrize("name", models.MODELS)
def test_twins_have_the_same_modules(name):
    adder, conv = meta(name), meta(name, conv="conv")
    assert not any(isinstance(module, AdderModule) for module in conv.modules())
    assert [n for n, _ in adder.named_modules()] == [n for n, _ in conv.named_modules()]


@pytest.mark.parametrize("name", models.MODELS)
def test_batch_norm_follows_every_adder_layer(name):
    for module in meta(name).modules():
        children = list(module.children())
        for layer, follower in itertools.pairwise(children):
            if isinstance(layer, AdderModule):
                assert isinstance(follower, nn.BatchNorm2d)
                assert follower.num_features == layer.out_channels


def test_second_layer_of_each_vgg_pair_is_pooled_before_its_norm():
    model = meta("vgg_small").eval()
    sizes = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(
                lambda _, __, output, name=name: sizes.update({name: output.shape[-1]})
            )
    model.forward_features(torch.empty(1, 3, 32, 32, device="meta"))
    assert sizes == {"bn1": 32, "bn2": 16, "bn3": 16, "bn4": 8, "bn5": 8, "bn6": 4}


@pytest.mark.parametrize("name", models.MODELS)
def test_batch_norm_follows_the_classifier(name):
    model = meta(name).eval()
    *_, norm = (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    outputs = []
    norm.register_forward_hook(lambda _, __, output: outputs.append(output))
    model(torch.empty(1, *model.image_shape, device="meta"))
    assert [tuple(output.shape) for output in outputs] == [(1, model.num_classes, 1, 1)]


def test_global_pooling_equals_the_8x8_window_of_the_original():
    model = models.resnet20(conv="conv").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        maps = model.layer3(model.layer2(model.layer1(model.forward_stem(images))))
        window = nn.functional.avg_pool2d(maps, 8, stride=1).flatten(1)
        torch.testing.assert_close(model.forward_features(images), window)


@pytest.mark.parametrize("name", CIFAR)
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (33, 47), (64, 64)])
def test_cifar_nets_take_other_sizes(name, size):
    model = meta(name, conv="conv", in_channels=1)
    assert model(torch.empty(2, 1, *size, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_nets_take_other_sizes(name):
    assert meta(name)(torch.empty(2, 3, 65, 130, device="meta")).shape == (2, 1000)


def test_stride_variant():
    original, late = meta("resnet50", stride_in_1x1=True), meta("resnet50")
    for model, strides in ((original, [(2, 2), (1, 1)]), (late, [(1, 1), (2, 2)])):
        for stage in (model.layer2, model.layer3, model.layer4):
            assert [stage[0].conv1.stride, stage[0].conv2.stride] == strides
            assert stage[0].downsample[0].stride == (2, 2)
    images = torch.empty(1, 3, 224, 224, device="meta")
    assert original.eval()(images).shape == late.eval()(images).shape


def test_initial_values():
    model = models.resnet50()
    weight = model.layer3[0].conv2.weight
    assert abs(weight.mean().item()) < 0.01
    assert abs(weight.std().item() - 1) < 0.01
    # He's normal distribution over the fan-out: variance 2 / (O * R * S).
    assert model.conv1.weight.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)
    assert all(
        (m.weight == 1).all() and (m.bias == 0).all()
        for m in model.modules()
        if isinstance(m, nn.BatchNorm2d)
    )


@pytest.mark.parametrize("dim", [1, 2, 16])
@pytest.mark.parametrize("head", ["conv", "adder"])
def test_lenet_embedding(dim, head):
    model = models.lenet5_bn(feature_dim=dim, head=head).eval()
    features = model.forward_features(torch.randn(3, 1, 28, 28))
    assert features.shape == (3, dim)
    # No ReLU: the embedding takes both signs over the whole plane.
    model.embedding[1].bias.data.fill_(-1e3)
    assert (model.forward_features(torch.randn(3, 1, 28, 28)) < 0).all()
    assert isinstance(model.fc, {"conv": nn.Conv2d, "adder": Adder2d}[head])
    assert model(torch.randn(3, 1, 28, 28)).shape == (3, 10)


@pytest.mark.parametrize(
    ("conv", "description"),
    [
        (Adder2d, "adder"),
        (nn.Conv2d, "conv"),
        ("adder", "adder"),
        ({"type": "adder", "grad": "sign"}, {"type": "adder", "grad": "sign"}),
        (functools.partial(Adder2d, grad="l2"), {"type": "adder", "grad": "l2"}),
        (
            functools.partial(functools.partial(Adder2d, grad="l2"), grad="sign"),
            {"type": "adder", "grad": "sign"},
        ),
    ],
)
def test_config_rebuilds_the_model(conv, description):
    model = models.resnet20(3, conv, in_channels=1)
    assert model.config == {
        "name": "resnet20",
        "kwargs": {"num_classes": 3, "conv": description, "in_channels": 1},
    }
    config = json.loads(json.dumps(model.config))
    again = models.build(config["name"], **config["kwargs"])
    assert repr(again) == repr(model)
    assert copy.deepcopy(model).config == model.config


def test_config_names_a_foreign_layer_but_does_not_import_it():
    class Quiet(nn.Conv2d):
        pass

    config = models.resnet20(conv=Quiet).config
    assert config["kwargs"]["conv"]["type"].endswith("Quiet")
    with pytest.raises(ValueError, match=r"conv=.*Quiet.* needs a 'type' that is one of 'adder'"):
        models.build(config["name"], **config["kwargs"])


def test_gradient_rule_reaches_every_layer():
    model = models.resnet20(conv=functools.partial(Adder2d, grad="sign"))
    assert {m.grad for m in model.modules() if isinstance(m, AdderModule)} == {"sign"}


@pytest.mark.parametrize("value", [0, -1, 2.5, "10", True, None])
@pytest.mark.parametrize("argument", ["num_classes", "in_channels"])
@pytest.mark.parametrize("name", ["lenet5_bn", "vgg_small", "resnet20", "resnet18"])
def test_bad_counts(name, argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be an integer of at least 1, got"):
        meta(name, **{argument: value})


@pytest.mark.parametrize("value", [0, 1.5])
def test_bad_feature_dim(value):
    with pytest.raises(ValueError, match="feature_dim must be an integer of at least 1"):
        models.lenet5_bn(feature_dim=value)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("lenet5_bn", (1, 1, 27, 28), "at least 28x28 pixels, got 27x28"),
        ("vgg_small", (1, 3, 32, 7), "at least 8x8 pixels, got 32x7"),
        ("resnet20", (1, 1, 32, 32), "in_channels=3, got images with 1 channels"),
        ("resnet20", (3, 32, 32), r"shape \(N, 3, H, W\), got \(3, 32, 32\)"),
        ("resnet18", (0, 3, 0, 0), "at least 1x1 pixels, got 0x0"),
    ],
)
def test_bad_images(name, shape, message):
    with pytest.raises(ValueError, match=message):
        meta(name)(torch.empty(shape, device="meta"))


@pytest.mark.parametrize(
    ("name", "nearest"), [("resnet21", "resnet20"), ("lenet", "lenet5_bn"), ("vgg", "vgg_small")]
)
def test_unknown_model(name, nearest):
    with pytest.raises(
        ValueError, match=f"model '{name}' is unknown; the nearest names .*{nearest}"
    ):
        models.build(name)


def test_unknown_argument():
    with pytest.raises(TypeError, match=r"'resnet20' takes no argument 'stride_in_1x1'; it takes"):
        models.build("resnet20", stride_in_1x1=True)


@pytest.mark.parametrize(
    ("conv", "error", "message"),
    [
        (
            "adder3d",
            ValueError,
            "conv='adder3d' is unknown; wanted one of 'adder', 'adder_lp', 'conv'",
        ),
        ({"grad": "sign"}, ValueError, "needs a 'type'"),
        ({"type": ["adder"]}, ValueError, "needs a 'type'"),
        ({"type": "adder", "bias": True}, ValueError, "conv sets bias, which the model sets"),
        (functools.partial(nn.Conv2d, stride=3), ValueError, "conv sets stride, which the model"),
        ({"type": "adder", "grad": "round"}, ValueError, "round"),
        ({"type": "adder", "gradient": "sign"}, TypeError, "cannot be called like torch.nn.Conv2d"),
        (nn.ReLU(), TypeError, "got an instance of ReLU"),
        (3, TypeError, "got int 3"),
        (nn.Linear, TypeError, "conv=Linear cannot be called like torch.nn.Conv2d"),
        (nn.Conv1d, TypeError, "conv=Conv1d built a Conv1d with a weight of shape"),
        (Adder1d, TypeError, "conv=Adder1d built a Adder1d"),
        (nn.ConvTranspose2d, TypeError, "conv=ConvTranspose2d built a ConvTranspose2d"),
        (AdderTranspose2d, TypeError, "conv=AdderTranspose2d built a AdderTranspose2d"),
        (lambda *args, **kwargs: 3, TypeError, "must return an nn.Module, got int 3"),
    ],
)
def test_bad_conv(conv, error, message):
    with pytest.raises(error, match=message):
        models.build("resnet20", conv=conv)


def test_bad_head_is_named():
    with pytest.raises(ValueError, match="head='linear' is unknown"):
        models.lenet5_bn(head="linear")


@pytest.mark.parametrize("name", ["lenet5_bn", "vgg_small", "resnet20", "resnet50"])
def test_exports(name):
    model = models.build(name).eval()
    images = torch.randn(2, *model.image_shape)
    program = torch.export.export(model, (images,))
    with torch.no_grad():
        if name == "lenet5_bn":
            torch.testing.assert_close(program.module()(images), model(images))
    ops = {node.target for node in program.graph.nodes}
    assert torch.ops.torchadder.adder2d.default in ops
