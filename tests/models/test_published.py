"""Loading state dicts with the names that the authors released."""

import pytest
import torch
from torch import nn

from torchadder import models
from torchadder.models.published import convert_state_dict
from torchadder.nn import AdderModule


def released(model, prefix=""):
    """The state dict of `model` under the authors' names, with other values."""
    adders = {name for name, module in model.named_modules() if isinstance(module, AdderModule)}
    renamed = {}
    for name, tensor in model.state_dict().items():
        module, _, leaf = name.rpartition(".")
        if module in adders:
            name = f"{module}.{ {'weight': 'adder', 'bias': 'b'}[leaf] }"
        value = torch.randn(tensor.shape) if tensor.is_floating_point() else tensor + 3
        renamed[prefix + name] = value
    return renamed


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", ["resnet20", "resnet50"])
def test_round_trip(name, prefix):
    model = models.build(name)
    file = released(model, prefix)
    assert f"{prefix}layer1.0.conv1.adder" in file
    model.load_state_dict(convert_state_dict(file, model))
    loaded = model.state_dict()
    assert len(loaded) == len(file)
    for own, theirs in zip(loaded.values(), file.values(), strict=True):
        assert torch.equal(own, theirs)


def test_names_of_the_released_resnet20():
    names = set(released(models.resnet20()))
    assert {
        "conv1.weight",
        "bn1.running_var",
        "layer1.2.conv2.adder",
        "layer2.0.downsample.0.adder",
        "layer3.0.downsample.1.weight",
        "fc.weight",
        "bn2.weight",
    } <= names
    assert "fc.bias" not in names
    assert "layer1.0.downsample.0.adder" not in names


def test_adder_bias():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            from torchadder.nn import Adder2d

            self.body = Adder2d(1, 2, 3)
            self.b = nn.Parameter(torch.zeros(1))

    file = {"body.adder": torch.ones(2, 1, 3, 3), "body.b": torch.ones(2), "b": torch.ones(1)}
    assert set(convert_state_dict(file, Net())) == {"body.weight", "body.bias", "b"}


def test_missing_counters_come_from_the_model():
    model = models.resnet20()
    file = {k: v for k, v in released(model).items() if not k.endswith("num_batches_tracked")}
    assert convert_state_dict(file, model)["bn1.num_batches_tracked"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("fc.weight"), "does not fit CifarResNet: missing fc.weight$"),
        (lambda file: file.update(extra=torch.zeros(1)), "unexpected extra$"),
        (
            lambda file: file.update({"fc.weight": torch.zeros(100, 64, 1, 1)}),
            r"shape of fc.weight is \[100, 64, 1, 1\] instead of \[10, 64, 1, 1\]$",
        ),
        (
            lambda file: file.update({"layer1.0.conv1.weight": torch.zeros(16, 16, 3, 3)}),
            "holds 'layer1.0.conv1.weight' under two names",
        ),
        (
            lambda file: [file.pop(name) for name in list(file) if "layer3" in name],
            "missing layer3.0.conv1.weight, .* and 30 more$",
        ),
    ],
)
def test_errors_name_the_entries(change, message):
    model = models.resnet20()
    file = released(model)
    change(file)
    with pytest.raises(ValueError, match=message):
        convert_state_dict(file, model)
