"""Every method of the registry: the interface, and the losses by hand."""

import copy
import inspect
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchadder as ta
from torchadder.distill import (
    AT,
    FSP,
    KD,
    METHODS,
    PKKD,
    SP,
    Dropout,
    FitNet,
    Snapshot,
    attention_map,
    cycle_starts,
    find_method,
    find_stages,
    fsp_matrix,
    methods_with,
    options_of,
    share_initial_values,
    similarity_matrix,
    soft_cross_entropy,
)

STAGES = ("body.2", "body.5")
"""The activations of the test net's two inner layers."""


def batch(size=8):
    return torch.randn(size, 2, 8, 8), torch.arange(size) % 4


def build(method, student, teacher, **options):
    kind = METHODS[method]
    if kind.wants_teacher:
        options.setdefault("progressive", True)
    if method == "fsp":
        options.setdefault("taps", STAGES)
    return kind(student, teacher if kind.wants_teacher else None, **options)


def total(output):
    return output.loss if output.teacher_loss is None else output.loss + output.teacher_loss


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "kinds", [("adder", "conv"), ("conv", "adder"), ("conv", "conv"), ("adder", "adder")]
)
def test_any_kinds_of_nets(adder_net, conv_net, method, kinds):
    nets = [{"adder": adder_net, "conv": conv_net}[kind]() for kind in kinds]
    distiller = build(method, *nets)
    optimizer = torch.optim.SGD([p for p in distiller.parameters() if p.requires_grad], 0.01)
    plain = copy.deepcopy(nets[0].state_dict())
    for epoch in range(4):
        distiller.start_epoch(epoch, 4)
        output = distiller(*batch())
        optimizer.zero_grad()
        total(output).backward()
        optimizer.step()
        assert torch.isfinite(output.loss)
    assert list(nets[0].state_dict()) == list(plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in distiller.modules())
    assert all(torch.isfinite(p).all() for p in distiller.parameters())


@pytest.mark.parametrize("method", ["kd", "at", "sp", "fsp", "fitnet"])
def test_only_the_student_learns_from_a_fixed_teacher(adder_net, conv_net, method):
    teacher = conv_net(dropout=0.5)
    distiller = build(method, adder_net(), teacher, progressive=False).train()
    before = copy.deepcopy(teacher.state_dict())
    output = distiller(*batch())
    assert output.teacher_loss is None
    output.loss.backward()
    assert all(p.grad is not None for p in distiller.student.parameters())
    assert all(p.grad is not None for p in distiller.own_parameters())
    assert all(p.grad is None for p in teacher.parameters())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(("method", "part"), [("at", "at"), ("sp", "sp"), ("fitnet", "hint")])
def test_nets_of_different_widths(adder_net, conv_net, method, part):
    distiller = build(method, adder_net(width=6), conv_net(width=9))
    output = distiller(*batch())
    total(output).backward()
    assert output.parts[part] > 0
    weighted = output.parts["ce"] + distiller.beta * output.parts[part]
    torch.testing.assert_close(output.loss.detach(), weighted)


def test_kd_takes_nets_of_any_shape(adder_net):
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(128, 4))
    inputs, labels = batch()
    output = KD(adder_net(), teacher, alpha=3.0, temperature=2.0)(inputs, labels)
    soft = soft_cross_entropy(output.student_logits, output.teacher_logits, 2.0)
    torch.testing.assert_close(
        output.loss, F.cross_entropy(output.student_logits, labels) + 3 * soft
    )


def test_kd_is_pkkd_without_features(adder_net, conv_net):
    student, teacher = adder_net(), conv_net()
    data = batch()
    want = PKKD(student, teacher, beta=0)(*data)
    got = KD(student, teacher, progressive=True)(*data)
    assert torch.equal(got.loss, want.loss)
    assert torch.equal(got.teacher_loss, want.teacher_loss)


def test_attention_map_by_hand():
    # Energies 1 + 9 = 10 and 4 + 16 = 20: divided by sqrt(500).
    maps = torch.tensor([[[1.0, -2.0], [-3.0, 4.0]]])
    root = math.sqrt(500)
    torch.testing.assert_close(attention_map(maps), torch.tensor([[10 / root, 20 / root]]))


def test_at_by_hand(conv_net):
    at = AT(conv_net(), conv_net(), taps=["body.2"], beta=1.0)
    student = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])  # maps (1, 0) and (0, 1)
    teacher = torch.tensor([[[3.0, 0.0]], [[5.0, 0.0]]])  # maps (1, 0) and (1, 0)
    got = at.distance({"body.2": student}, {"body.2": teacher})
    assert got.item() == pytest.approx((0 + 0 + 1 + 1) / 4)


def test_similarity_matrix_by_hand():
    # Rows (1, 2) and (0, 3): products 5, 6 and 6, 9.
    maps = torch.tensor([[[1.0], [2.0]], [[0.0], [3.0]]])
    want = torch.tensor(
        [[5 / math.sqrt(61), 6 / math.sqrt(61)], [6 / math.sqrt(117), 9 / math.sqrt(117)]]
    )
    torch.testing.assert_close(similarity_matrix(maps), want)


def test_sp_by_hand(conv_net):
    sp = SP(conv_net(), conv_net(), taps=["body.2", "body.5"])
    alike, different = torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    half = math.sqrt(0.5)
    # |G_S - G_T|_F^2 / N^2 with rows (half, half) against (1, 0) and (0, 1), for one of two layers.
    want = 2 * ((half - 1) ** 2 + half**2) / 4
    got = sp.distance(
        {"body.2": alike, "body.5": alike}, {"body.2": different, "body.5": 7 * alike}
    )
    assert got.item() == pytest.approx(want, rel=1e-6)


def test_fsp_matrix_by_hand():
    first = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 2, 2)
    second = torch.stack([torch.ones(2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]])])[None]
    torch.testing.assert_close(fsp_matrix(first, second), torch.tensor([[[2.5, 0.25]]]))
    pooled = fsp_matrix(first, torch.full((1, 1, 1, 1), 5.0))
    torch.testing.assert_close(pooled, torch.tensor([[[4.0 * 5.0]]]))


def test_fsp_matrix_of_sequences_and_volumes():
    first, second = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), torch.tensor([[[1.0, 5.0]]])
    torch.testing.assert_close(fsp_matrix(first, second), torch.tensor([[[(2.0 + 20.0) / 2]]]))
    volume = torch.arange(8.0).view(1, 1, 2, 2, 2)
    got = fsp_matrix(volume, torch.full((1, 1, 1, 1, 1), 3.0))
    torch.testing.assert_close(got, torch.tensor([[[7.0 * 3.0]]]))


def test_fsp_by_hand(conv_net):
    fsp = FSP(conv_net(), conv_net(), taps=STAGES)
    one, two = torch.ones(3, 1, 2, 2), torch.full((3, 2, 2, 2), 2.0)
    # G_S = (2, 2) and G_T = (4, 4) for every sample.
    got = fsp.distance({"body.2": one, "body.5": two}, {"body.2": 2 * one, "body.5": two})
    assert got.item() == pytest.approx(4.0)


def test_hint_by_hand(conv_net):
    features, hint = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[2.0, 7.0]]])
    plain = FitNet(conv_net(), conv_net(), taps=["body.2"], linear_map=False)
    assert plain.distance({"body.2": features}, {"body.2": hint}).item() == (1 + 16) / 2 / 2
    fitnet = FitNet(conv_net(width=6), conv_net(width=9), taps=["body.2"])
    regressor = fitnet.regressors["body/2"]
    assert (regressor.in_features, regressor.out_features) == (12, 18)
    features, hint = torch.randn(2, 12, 3, 3), torch.randn(2, 18, 3, 3)
    mapped = F.conv2d(features, regressor.weight[:, :, None, None], regressor.bias)
    got = fitnet.distance({"body.2": features}, {"body.2": hint})
    torch.testing.assert_close(got, F.mse_loss(mapped, hint) / 2)


def test_stages_are_read_behind_their_activation():
    nets = [ta.models.lenet5_bn(conv=kind) for kind in ("adder", "conv")]
    at = AT(*nets, progressive=True)
    assert at.taps == ("bn2", "bn3", "bn4")
    output = at.run_student(torch.randn(4, 1, 28, 28))
    assert all((maps >= 0).all() and (maps > 0).any() for maps in output.taps.values())


@pytest.mark.parametrize(
    ("model", "want"),
    [
        ("resnet20", ("layer1", "layer2", "layer3")),
        ("resnet50", ("layer1", "layer2", "layer3", "layer4")),
        ("vgg_small", ("bn2", "bn3", "bn4", "bn5", "bn6")),
    ],
)
def test_stages_of_the_models(model, want):
    nets = [ta.models.build(model, conv=kind) for kind in ("adder", "conv")]
    assert find_stages(*nets) == want


def test_strength_scales_all_terms_and_nothing_else(adder_net, conv_net):
    pkkd = PKKD(adder_net(), conv_net(), alpha=2.0, beta=3.0)
    data = batch()
    pkkd(*data)
    for strength in (0.0, 0.25, 1.0):
        pkkd.strength.fill_(strength)
        output = pkkd(*data)
        terms = 2 * output.parts["kd"] + 3 * output.parts["mid"]
        torch.testing.assert_close(output.loss.detach(), output.parts["ce"] + strength * terms)
    assert "strength" not in pkkd.state_dict()


def test_snapshot_takes_its_teacher_at_the_start_of_a_cycle(adder_net):
    student = adder_net()
    distiller = Snapshot(student, cycles=2, alpha=2.0, temperature=4.0)
    inputs, labels = batch()
    taught = []
    for epoch in range(4):
        distiller.start_epoch(epoch, 4)
        if epoch == 2:
            snapshot = copy.deepcopy(student.state_dict())
        output = distiller(inputs, labels)
        taught.append("kd" in output.parts)
        with torch.no_grad():
            student.fc.weight += 1
    assert taught == [False, False, True, True]
    for name, value in distiller.teacher.state_dict().items():
        assert torch.equal(value, snapshot[name]), name
    targets = F.softmax(output.teacher_logits / 4, dim=1)
    want = -(targets * F.log_softmax(output.student_logits, dim=1)).sum(1).mean()
    torch.testing.assert_close(output.parts["kd"], want.detach())
    torch.testing.assert_close(
        output.loss, F.cross_entropy(output.student_logits, labels) + 2 * want
    )
    assert not distiller.teacher.training
    assert distiller.own_parameters() == []


def test_cycles():
    assert cycle_starts(400, 4) == [0, 100, 200, 300]
    assert cycle_starts(5, 4) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="cycles = 4: at most the number of epochs, 3"):
        cycle_starts(3, 4)


def test_dropout_drops_inputs_of_the_classifier_in_training_only(adder_net):
    student = adder_net()
    distiller = Dropout(student, dropout=0.5)
    assert distiller.dropped == ("fc",)
    seen = []
    student.fc.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    inputs, labels = batch(64)
    output = distiller(inputs, labels)
    assert list(output.parts) == ["ce"]
    assert output.teacher_logits is None
    before = student.body(student.bn1(student.conv1(inputs)).relu()).mean((2, 3))
    is_dropped = (seen[0] == 0) & (before != 0)
    torch.testing.assert_close(seen[0], torch.where(is_dropped, 0, 2 * before))
    share = is_dropped.float().mean() / (before != 0).float().mean()
    assert 0.35 < share < 0.65  # 5 standard deviations of 384 draws are 0.13
    distiller.eval()
    seen.clear()
    distiller(inputs, labels)
    with torch.no_grad():
        want = student.body(student.bn1(student.conv1(inputs)).relu()).mean((2, 3))
    torch.testing.assert_close(seen[0], want)


def test_dropout_of_named_layers(adder_net):
    assert Dropout(adder_net(), taps=["body.?"]).dropped == tuple(f"body.{i}" for i in range(6))
    with pytest.raises(ValueError, match=r"'body\.9', which the student does not have; it has Net"):
        Dropout(adder_net(), taps=["body.9"])


def test_shared_initial_values(adder_net, conv_net):
    student, teacher = adder_net(), conv_net()
    spread = student.body[0].weight.std()
    names = share_initial_values(student, teacher)
    assert set(names) == {name for name, _ in student.named_parameters()}
    assert torch.equal(student.conv1.weight, teacher.conv1.weight)
    assert torch.equal(student.fc.bias, teacher.fc.bias)
    ratio = student.body[0].weight / teacher.body[0].weight
    torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio))
    torch.testing.assert_close(student.body[0].weight.std(), spread)
    twin = conv_net()
    share_initial_values(twin, teacher)
    assert torch.equal(twin.body[0].weight, teacher.body[0].weight)


def test_patterns(adder_net, conv_net):
    nets = [ta.models.resnet20(conv=kind) for kind in ("adder", "conv")]
    blocks = ("layer2.0.conv1", "layer2.1.conv1", "layer2.2.conv1")
    assert PKKD(*nets, taps=["layer2.*.conv1"]).taps == blocks
    assert PKKD(*nets, taps=["layer1.0.conv1", "layer2.*.conv1"]).taps == (
        "layer1.0.conv1",
        *blocks,
    )
    with pytest.raises(ValueError, match=r"no layer fits the pattern 'stage\*'; there are layer1"):
        PKKD(*nets, taps=["stage*"])
    assert AT(*nets, taps=["layer?"]).taps == ("layer1", "layer2", "layer3")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda a, c: FSP(a(), c(width=9), taps=STAGES),
            r"equal widths, got body\.2 with 12 channels, ",
        ),
        (
            lambda a, c: FitNet(a(), c(width=9), linear_map=False, taps=["body.2"]),
            r"linear_map=False needs .* widths, .*body\.2 with 12 .*body\.2 with 18 channels",
        ),
        (
            lambda a, c: PKKD(a(), c(width=9)),
            r"equal widths, got body\.0 \(12, 6, 3, 3\), body\.3 \(6, 12, 1, 1\) in the student",
        ),
        (lambda a, c: FSP(a(), c(), taps=["body.2"]), "at least two layers, got taps"),
        (lambda a, c: KD(a(), None), "KD needs a teacher, got None"),
        (lambda a, c: Snapshot(a(), c()), "takes no teacher"),
        (lambda a, c: Dropout(a(), c()), "takes no teacher"),
        (lambda a, c: Snapshot(a(), cycles=1), "cycles must be at least 2, got 1"),
        (lambda a, c: Dropout(a(), dropout=1.0), r"dropout must be in \[0, 1\), got 1\.0"),
        (lambda a, c: AT(a(), c(), taps=["body.7"]), r"'body\.7', which the student does not have"),
        (lambda a, c: AT(a(), c(), taps="body.2"), "sequence of layer names"),
        (lambda a, c: KD(a(), c(), temperature=0), "temperature must be a positive number, got 0"),
        (lambda a, c: FitNet(a(), nn.Sequential(nn.Flatten())), "no layer to compare"),
    ],
)
def test_bad_nets_and_options(adder_net, conv_net, build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build(adder_net, conv_net)


@pytest.mark.parametrize("name", [n for n in METHODS if "alpha" in options_of(n)])
@pytest.mark.parametrize("weight", ["alpha", "beta"])
def test_negative_weights(adder_net, conv_net, name, weight):
    if weight in options_of(name):
        with pytest.raises(ValueError, match=f"{weight} must be a finite number of at least 0"):
            build(name, adder_net(), conv_net(), **{weight: -1.0})


def test_maps_that_do_not_match(adder_net, conv_net):
    teacher = conv_net(width=9)
    teacher.body[0].stride = (1, 1)
    with pytest.raises(ValueError, match=r"maps of the same size; .*body\.2 \(8, 18, 8, 8\)"):
        AT(adder_net(), teacher, taps=["body.2"])(*batch())
    assert torch.isfinite(SP(adder_net(), teacher)(*batch()).loss)


def fully_connected(layer):
    return nn.Sequential(nn.Conv2d(2, 4, 8), nn.Flatten(), layer(4, 7), nn.ReLU(), nn.Linear(7, 4))


@pytest.mark.parametrize("layer", [nn.Linear, ta.nn.AdderLinear])
@pytest.mark.parametrize("taps", [["2"], ["3"]])
def test_hints_of_fully_connected_layers(layer, taps):
    method = FitNet(fully_connected(layer), fully_connected(nn.Linear), taps=taps)
    (regressor,) = method.regressors.values()
    assert (regressor.in_features, regressor.out_features) == (7, 7)
    assert torch.isfinite(method(*batch()).loss)


@pytest.mark.parametrize("method", [AT, FSP])
def test_layers_without_positions_have_no_maps(method):
    nets = [fully_connected(nn.Linear) for _ in range(2)]
    with pytest.raises(ValueError, match=r"compares maps, which layer '2' has not: .*\(\d, 7\)"):
        method(*nets, taps=["0", "2"])(*batch())


def test_registry():
    assert {"pkkd", "kd", "at", "sp", "fsp", "fitnet", "snapshot", "dropout"} <= set(METHODS)
    with pytest.raises(ValueError, match="unknown method 'pkd'; did you mean 'pkkd'"):
        find_method("pkd")
    with pytest.raises(ValueError, match="unknown method 'xyz'; known are pkkd, kd"):
        find_method("xyz")
    assert methods_with("kernel") == ["pkkd"]
    for name, method in METHODS.items():
        parameters = list(inspect.signature(method).parameters)
        assert parameters[:2] == ["student", "teacher"]
        assert "arXiv" in str(method.__doc__) or "CVPR" in str(method.__doc__), name
