"""The widths and types of FitNet's regressors, for nets that say nothing about their widths."""

import copy

import pytest
import torch
from torch import nn

import torchadder as ta
from torchadder.distill import FSP, FitNet
from torchadder.distill.dry_run import dry_run
from torchadder.distill.taps import find_widths
from torchadder.nn import Adder2d


def images(size=2):
    return torch.randn(size, 3, 12, 12)


class Joined(nn.Module):
    """Branches that are joined: the layer registered last has the width of one of them."""

    def __init__(self, conv, widths):
        super().__init__()
        self.branches = nn.ModuleList([conv(6, width, 1) for width in widths])

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


class Inception(nn.Module):
    """Parts that join maps; an activation that is registered behind the classifier."""

    def __init__(self, conv, widths=(4, 8)):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.mixed = Joined(conv, widths)
        self.norm = nn.BatchNorm2d(sum(widths))
        self.fc = nn.Linear(sum(widths), 5)
        self.act = nn.ReLU()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        x = self.act(self.norm(self.mixed(self.stem(x))))
        return self.fc(x.mean((2, 3)))


class Peeking(Inception):
    """The same, but it cannot run without data."""

    def forward(self, x):
        if x.sum().isnan():
            raise ValueError("no images")
        return super().forward(x)


def pair(kind=Inception, **of_teacher):
    return kind(Adder2d), kind(nn.Conv2d, **of_teacher)


@pytest.mark.parametrize("tap", ["mixed", "act"])
@pytest.mark.parametrize("widths", [(4, 8), (8, 4), (3, 7)])
def test_widths_of_joined_maps(tap, widths):
    method = FitNet(*pair(widths=widths), taps=[tap])
    (regressor,) = method.regressors.values()
    assert (regressor.in_features, regressor.out_features) == (12, sum(widths))
    assert set(method.regressors.state_dict()) == {f"{tap}.weight", f"{tap}.bias"}
    method.check_agreement(images(1))
    method(images(), torch.arange(2)).loss.backward()
    assert regressor.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("build", ["mnasnet0_5", "densenet121", "shufflenet_v2_x0_5", "googlenet"])
def test_parts_of_torchvision(build):
    models = pytest.importorskip("torchvision.models")
    options = {"aux_logits": False, "init_weights": False} if build == "googlenet" else {}
    nets = [getattr(models, build)(num_classes=4, **options) for _ in range(2)]
    taps = {"mnasnet0_5": ["layers"], "densenet121": ["features.denseblock1"]}.get(build)
    FitNet(*nets, taps=taps).check_agreement(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("method", [FSP, FitNet])
@pytest.mark.parametrize("kind", [Inception, Peeking])
def test_equal_widths_of_joined_maps_are_not_refused(method, kind):
    # Their last branches have 8 and 4 channels.
    options = {"linear_map": False} if method is FitNet else {}
    method(*pair(kind, widths=(8, 4)), taps=["norm", "mixed"], **options).check_agreement(images(1))


@pytest.mark.parametrize("method", [FSP, FitNet])
def test_unequal_widths_of_joined_maps_are_refused(method):
    options = {"linear_map": False} if method is FitNet else {}
    message = r"equal widths, got mixed with 12 channels, act .*, act with 14 channels in the teach"
    with pytest.raises(ValueError, match=message):
        method(*pair(widths=(6, 8)), taps=["mixed", "act"], **options)


def test_a_wrong_guess_is_found_in_the_first_batch():
    method = FitNet(*pair(Peeking), taps=["mixed"])
    message = (
        r"the width of layer 'mixed' could not be known without images: .* maps 8 to 8 channels, "
        r"got \(1, 12, 12, 12\) in the student, \(1, 12, 12, 12\) in the teacher; name with taps="
    )
    with pytest.raises(ValueError, match=message):
        method.check_agreement(images(1))
    method = FitNet(*pair(Peeking, widths=(6, 8)), taps=["mixed"], linear_map=False)
    message = r"equal widths, got from layer 'mixed' \(2, 12, 12, 12\) in .*; use linear_map=True"
    with pytest.raises(ValueError, match=message):
        method(images(), torch.arange(2))


def test_parts_that_ran_before_a_head_of_another_size():
    nets = [nn.Sequential(Inception(nn.Conv2d).mixed, nn.Flatten(), nn.Linear(48, 4)) for _ in "ab"]
    for net in nets:
        net.insert(0, nn.Conv2d(3, 6, 1))
    method = FitNet(*nets, taps=["1"])
    assert method.regressors["1"].weight.shape == (12, 12)
    assert torch.isfinite(method(torch.randn(3, 3, 2, 2), torch.arange(3)).loss)


def test_the_run_without_data_touches_nothing():
    net = Inception(Adder2d)
    net.mixed.register_forward_hook(lambda *_: pytest.fail("a hook of the user ran"))
    state, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    assert find_widths(net, ["mixed", "act", "norm"]) == {"norm": 12, "mixed": 12, "act": 12}
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert net.calls == 0
    assert net.training
    assert len(net.mixed._forward_hooks) == 1


def test_the_run_without_data_of_other_nets():
    volumes = nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU()).double()
    assert dry_run(volumes, {"1": volumes[1]}) == {"1": (2, 4, 222, 222, 222)}
    rows = nn.Sequential(ta.nn.AdderLinear(7, 3), nn.ReLU())
    assert dry_run(rows, {"1": rows[1]}) == {"1": (2, 3)}
    assert dry_run(nn.Sequential(nn.ReLU()), {"": nn.ReLU()}) == {}


def test_compiled_nets_and_parts():
    net = Inception(Adder2d)
    assert find_widths(torch.compile(net, backend="eager"), ["mixed"]) == {"mixed": 12}
    net.mixed = torch.compile(net.mixed, backend="eager")
    assert find_widths(net, ["mixed"]) == {"mixed": 12}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("part", ["nets", "all"])
def test_other_types(dtype, part):
    student, teacher = pair(widths=(3, 7))
    if part == "nets":
        student, teacher = student.to(dtype), teacher.to(dtype)
    method = FitNet(student, teacher, taps=["mixed", "norm"])
    if part == "all":
        method = method.to(dtype)
    method.check_agreement(images(1).to(dtype))
    output = method(images().to(dtype), torch.arange(2))
    output.loss.backward()
    assert output.parts["hint"].dtype == torch.promote_types(dtype, torch.float32)
    for parameter in method.own_parameters():
        assert parameter.dtype == (torch.float32 if part == "nets" else dtype)
        assert parameter.grad.abs().sum() > 0


def test_a_double_teacher_of_a_float_student():
    method = FitNet(Inception(Adder2d), Inception(nn.Conv2d), taps=["norm"])
    features, hint = torch.randn(2, 12, 3, 3), torch.randn(2, 12, 3, 3).double()
    want = method.double().distance({"norm": features.double()}, {"norm": hint})
    got = method.float().distance({"norm": features}, {"norm": hint})
    torch.testing.assert_close(got, want)
