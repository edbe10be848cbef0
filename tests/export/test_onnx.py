"""Nets as ONNX models: what is written computes what torch computes, and says what it is."""

import warnings

import pytest
import torch
from torch import nn

import torchadder as ta
from closeness import forward_in_float64
from torchadder.export import ExportError, to_onnx, to_torch
from torchadder.ops.geometry import make_geometry

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from export.onnx_runs import rounding_bound, run, session  # noqa: E402
from torchadder.export import adder_function  # noqa: E402


class EveryLayer(nn.Module):
    """All adder layers, in all that geometry can be."""

    def __init__(self):
        super().__init__()
        self.stem = ta.nn.Adder2d(3, 8, (3, 2), stride=(2, 1), padding=(1, 0))
        self.norm = nn.BatchNorm2d(8)
        self.grouped = ta.nn.Adder2d(8, 12, 3, padding="same", dilation=2, groups=4, bias=False)
        self.reflected = ta.nn.Adder2d(12, 6, (1, 3), padding=(0, 1), padding_mode="reflect")
        self.up = ta.nn.AdderTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.sequence = ta.nn.Adder1d(4, 5, 3, stride=2, padding=1)
        self.linear = ta.nn.AdderLinear(5, 7)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = self.up(self.reflected(self.grouped(x)))
        x = self.sequence(x.mean(2))
        return self.linear(x.transpose(1, 2)).sum(1)


def settle(model, *shapes):
    """Weights and statistics with which the net's outputs differ from image to image."""
    torch.manual_seed(5)
    model.train()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # the mean over all batches
    with torch.no_grad():
        for shape in 2 * shapes:
            model(torch.randn(4, *shape))
    return model.eval()


def exposed(path):
    """The model with the operands and results of its adder layers as further outputs."""
    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.op_type == "Adder2d"]
    known = {value.name for value in model.graph.output}
    for node in nodes:
        for name in (node.input[0], node.output[0]):
            if name not in known:
                known.add(name)
                kind = onnx.TensorProto.FLOAT
                model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    return model, nodes


def assert_is_the_net(path, model, images):
    """Each adder layer is the operator within its bound, and the outputs are torch's.

    Two ways of rounding the same net are two draws of one error. It is torch's own distance from
    float64 that says how large: a factor of 8 allows for other orders of summation.
    """
    opened, nodes = exposed(path)
    weights = {tensor.name: tensor for tensor in opened.graph.initializer}
    opened_session = session(opened)
    outputs = run(opened_session, images)
    values = dict(zip((o.name for o in opened_session.get_outputs()), outputs, strict=True))
    source = opened.graph.input[0].name
    values[source] = images
    for node in nodes:
        weight = torch.from_numpy(onnx.numpy_helper.to_array(weights[node.input[1]]).copy())
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        geometry = make_geometry(
            attributes["strides"], attributes["pads"][:2], attributes["dilations"],
            attributes["group"],
        )  # fmt: skip
        x, got = values[node.input[0]], values[node.output[0]]
        want, magnitude = forward_in_float64(x, weight, None, geometry)
        _, Cg, R, S = weight.shape
        bound = rounding_bound(adder_function.terms_in_a_row(Cg, R * S), magnitude, x.dtype)
        assert ((got.double() - want).abs() <= bound).all(), node.name
    with torch.no_grad():
        single = model(images)
        double = model.double()(images.double())
    model.float()
    singles = list(single.values()) if isinstance(single, dict) else [single]
    doubles = list(double.values()) if isinstance(double, dict) else [double]
    for got, near, want in zip(outputs, singles, doubles, strict=False):
        assert got.shape == want.shape
        assert want.std() > 0.01
        error = (near.double() - want).abs().max()
        assert 0 < error < 1e-3 * want.abs().max()
        assert (got.double() - want).abs().max() <= 8 * error


@pytest.fixture(scope="module")
def every_layer(tmp_path_factory):
    model = settle(EveryLayer(), (3, 12, 10))
    path = tmp_path_factory.mktemp("onnx") / "every_layer.onnx"
    assert to_onnx(model, path, torch.randn(1, 3, 12, 10)) == path
    return model, path


@pytest.fixture(scope="module")
def lenet(tmp_path_factory):
    """LeNet with normalised weights, for images of any size."""
    torch.manual_seed(2)
    model = ta.models.lenet5_bn()
    ta.awn.apply_(model)
    settle(model, (1, 28, 28))
    path = tmp_path_factory.mktemp("onnx") / "new_folder" / "lenet.onnx"
    to_onnx(model, path, torch.randn(1, 1, 28, 28), dynamic_size=True, input_name="digits")
    return model, path


@pytest.mark.parametrize("batch", [1, 5])
def test_every_layer(every_layer, batch):
    model, path = every_layer
    assert_is_the_net(path, model, torch.randn(batch, 3, 12, 10))


@pytest.mark.parametrize("shape", [(1, 1, 28, 28), (3, 1, 28, 28), (2, 1, 41, 30)])
def test_any_size(lenet, shape):
    model, path = lenet
    assert_is_the_net(path, model, torch.randn(shape))


def test_normalised_weights_stay_normalised_in_the_model_and_are_plain_in_the_file(lenet):
    model, path = lenet
    assert list(ta.awn.normalised_layers(model)) == ["conv2", "conv3", "conv4"]
    tensors = {t.name: t for t in onnx.load(path).graph.initializer}
    stored = onnx.numpy_helper.to_array(tensors["conv2.weight"])
    assert torch.equal(torch.from_numpy(stored.copy()), model.conv2.weight)


def test_the_file_says_what_it_is(lenet):
    _, path = lenet
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    shape = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert (model.graph.input[0].name, shape) == ("digits", ["batch", 1, "height", "width"])
    assert [output.name for output in model.graph.output] == ["output"]
    assert [f"{f.domain}.{f.name}" for f in model.functions] == ["torchadder.Adder2d"]
    names = [node.name for node in model.graph.node if node.op_type == "Adder2d"]
    assert names == ["conv2/Adder2d", "conv3/Adder2d", "conv4/Adder2d"]
    assert "_symbolic" not in str(model.graph)
    # Sources and folders of the machine that wrote it are nobody's business.
    assert b".py" not in path.read_bytes()


def test_exported_programs_run_and_come_back(every_layer, tmp_path):
    model, _ = every_layer
    path = to_torch(model, tmp_path / "net.pt2", torch.randn(1, 3, 12, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(path)
    images = torch.randn(4, 3, 12, 10)
    with torch.no_grad():
        assert torch.equal(program.module()(images), model(images))
    operators = [str(node.target) for node in program.graph.nodes]
    assert operators.count("torchadder.adder2d.default") == 6


@pytest.mark.slow
def test_half_precision_is_summed_in_single(tmp_path):
    torch.manual_seed(3)
    model = nn.Sequential(ta.nn.Adder2d(40, 4, 3, padding=1)).eval().half()
    images = torch.randn(2, 40, 6, 6).half()
    path = to_onnx(model, tmp_path / "half.onnx", images)
    (got,) = run(path, images)
    layer = model[0]
    geometry = make_geometry((1, 1), (1, 1), (1, 1), 1)
    want, magnitude = forward_in_float64(images, layer.weight, layer.bias, geometry)
    last = want.abs() * torch.finfo(torch.float16).eps
    assert got.dtype == torch.float16
    assert ((got - want).abs() <= last + rounding_bound(50, magnitude, torch.float32)).all()


class Keyed(nn.Module):
    """An adder layer without bias whose sums are an output."""

    def __init__(self, *keys):
        super().__init__()
        self.adder = ta.nn.Adder2d(3, 4, 3, bias=False)
        self.keys = keys

    def forward(self, x):
        return {key: self.adder(x) + i if i else self.adder(x) for i, key in enumerate(self.keys)}


def test_the_sums_of_an_adder_layer_are_an_output(tmp_path):
    torch.manual_seed(3)
    model, images = Keyed("sums", "more").eval(), torch.randn(2, 3, 8, 8)
    path = to_onnx(model, tmp_path / "net.onnx", images)
    assert [output.name for output in onnx.load(path).graph.output] == ["sums", "more"]
    sums, more = run(path, images)
    assert torch.allclose(sums, model.adder(images), rtol=1e-5)
    assert torch.equal(more, sums + 1)


# Bad input ---------------------------------------------------------------------------------------


class Sorted(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x):
        return torch.linalg.eigvals(self.inner(x))


def bad_models():
    lp = nn.Sequential(nn.Conv2d(1, 2, 3), ta.lp.LpAdder2d(2, 2, 3))
    return {
        "training": (nn.Conv2d(1, 2, 3), "in training mode: call model.eval"),
        "lp": (lp.eval(), "^1: layers of the operator"),
        "operator": (Sorted().eval(), r"the operator aten\.linalg_eig has no ONNX form"),
    }


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "operator")) for name in bad_models()],
)
def test_what_cannot_be_exported_is_named(name, tmp_path):
    model, message = bad_models()[name]
    with pytest.raises(ExportError, match=message) as caught:
        to_onnx(model, tmp_path / "net.onnx", torch.randn(1, 1, 8, 8))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "example", "message"),
    [
        ("net.pt", torch.zeros(1, 1, 8, 8), "path must end in .onnx, got"),
        ("net.onnx", torch.zeros(0, 1, 8, 8), r"example must hold a batch .* \(0, 1, 8, 8\)"),
        ("net.onnx", torch.zeros(8), r"example must hold a batch .* \(8,\)"),
        ("folder.onnx", torch.zeros(1, 1, 8, 8), "path must be a file, got the folder"),
    ],
)
def test_bad_arguments(name, example, message, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ValueError, match=message):
        to_onnx(nn.Conv2d(1, 2, 3).eval(), tmp_path / name, example)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


def test_wrong_types(tmp_path):
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        to_onnx("net", tmp_path / "net.onnx", torch.zeros(1, 1, 8, 8))
    with pytest.raises(TypeError, match=r"example must be a torch.Tensor, got tuple"):
        to_onnx(nn.Conv2d(1, 2, 3).eval(), tmp_path / "net.onnx", (1, 1, 8, 8))


def test_nets_that_torch_cannot_follow(tmp_path):
    model = nn.Conv2d(3, 2, 3).eval()
    with pytest.raises(ExportError, match=r"torch.export cannot follow the net: .*channels"):
        to_torch(model, tmp_path / "net.pt2", torch.randn(1, 1, 8, 8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["input"], "output 0: its key 'input' is the name of the input; give it another"),
        (["a", "adder.weight"], "output 1: its key 'adder.weight' is the name of a weight"),
        (["1", 1], "output 1: its key '1' is the name of an earlier output"),
        ([""], "output 0: its key '' is empty"),
    ],
)
def test_names_that_are_taken(keys, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        to_onnx(Keyed(*keys).eval(), tmp_path / "net.onnx", torch.zeros(1, 3, 8, 8))
    with pytest.raises(ExportError, match=r"input_name: 'adder.weight' is the name of a weight"):
        to_onnx(
            Keyed("a").eval(),
            tmp_path / "net.onnx",
            torch.zeros(1, 3, 8, 8),
            input_name="adder.weight",
        )
    assert list(tmp_path.iterdir()) == []


def test_missing_packages(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"needs the package onnxscript: pip install 'torchadder"):
        to_onnx(nn.Conv2d(1, 2, 3).eval(), tmp_path / "net.onnx", torch.randn(1, 1, 8, 8))


# Whole nets --------------------------------------------------------------------------------------


def converted_resnet18():
    import torchvision

    torch.manual_seed(4)
    model = torchvision.models.resnet18(num_classes=10)
    ta.convert_(model, ta.AdderConfig())
    return model


def backbone():
    from torchadder.detection.backbone import ResNetBackbone

    return ResNetBackbone("resnet18", is_adder=True, grad="sign", width=16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "shape", "other"),
    [
        (ta.models.vgg_small, (3, 32, 32), None),
        (ta.models.resnet20, (3, 32, 32), (3, 40, 24)),
        (converted_resnet18, (3, 64, 64), (3, 96, 80)),
        (backbone, (3, 64, 64), (3, 96, 128)),
    ],
)
def test_whole_nets(make, shape, other, tmp_path):
    model = settle(make(), shape, *([other] if other else []))
    path = to_onnx(
        model, tmp_path / "net.onnx", torch.randn(1, *shape), dynamic_size=other is not None
    )
    assert_is_the_net(path, model, torch.randn(2, *shape))
    if other is not None:
        assert_is_the_net(path, model, torch.randn(1, *other))
