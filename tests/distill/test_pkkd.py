import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchadder.distill import (
    PKKD,
    Distiller,
    FitNet,
    GaussianKernel,
    LaplacianKernel,
    NetOutput,
    soft_cross_entropy,
)


def batch(size=8):
    return torch.randn(size, 2, 8, 8), torch.arange(size) % 4


def total(output):
    return output.loss if output.teacher_loss is None else output.loss + output.teacher_loss


def hooks_of(net):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def gradients(net):
    return {n: None if p.grad is None else p.grad.clone() for n, p in net.named_parameters()}


def train(pkkd, steps=3, lr=0.1):
    optimizer = torch.optim.SGD(pkkd.parameters(), lr, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        total(pkkd(*batch())).backward()
        optimizer.step()


def test_loss_is_the_weighted_sum(adder_net, conv_net):
    pkkd = PKKD(adder_net(), conv_net(), alpha=2.0, beta=3.0, temperature=4.0)
    inputs, labels = batch()
    output = pkkd(inputs, labels)
    parts = output.parts
    assert list(parts) == ["ce", "kd", "mid"]
    assert not any(part.requires_grad for part in parts.values())
    torch.testing.assert_close(output.loss, parts["ce"] + 2 * parts["kd"] + 3 * parts["mid"])
    torch.testing.assert_close(parts["ce"], F.cross_entropy(output.student_logits, labels))
    torch.testing.assert_close(output.teacher_loss, F.cross_entropy(output.teacher_logits, labels))
    soft = soft_cross_entropy(output.student_logits, output.teacher_logits, 4.0)
    torch.testing.assert_close(parts["kd"], soft)


@pytest.mark.parametrize("kernel", ["paper", "laplacian"])
@pytest.mark.parametrize("progressive", [True, False])
def test_checking_the_agreement_changes_nothing(adder_net, conv_net, kernel, progressive):
    pkkd = PKKD(adder_net(), conv_net(), kernel=kernel, progressive=progressive)
    part = next(m for m in pkkd.student.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    modes = {name: module.training for name, module in pkkd.named_modules()}
    state = copy.deepcopy(pkkd.state_dict())
    random = torch.get_rng_state()
    pkkd.check_agreement(torch.zeros(1, 2, 8, 8))
    assert {name: module.training for name, module in pkkd.named_modules()} == modes
    assert not part.training
    assert all(torch.equal(value, state[name]) for name, value in pkkd.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not pkkd.was_checked
    assert all(sigma == 0 for sigma in pkkd.sigmas().values())
    assert hooks_of(pkkd) == 0
    assert all(parameter.grad is None for parameter in pkkd.parameters())


def test_nets_that_do_not_agree_are_found_without_labels(adder_net, conv_net):
    teacher = nn.Sequential(nn.Upsample(scale_factor=2), conv_net())
    student = nn.Sequential(nn.Identity(), adder_net())
    pkkd = PKKD(student, teacher)
    with pytest.raises(ValueError, match=r"PKKD compares layers of the same shape; the student"):
        pkkd.check_agreement(torch.zeros(1, 2, 8, 8))
    assert pkkd.training
    assert PKKD(student, teacher, alpha=0, beta=0).check_agreement(torch.zeros(0)) is None


def test_features_are_averaged_over_the_layers(adder_net, conv_net, taps):
    student, teacher = adder_net(), conv_net()
    data = batch()
    single = [
        PKKD(student, teacher, taps=[name], linear_map=False)(*data).parts["mid"] for name in taps
    ]
    both = PKKD(student, teacher, linear_map=False)(*data).parts["mid"]
    torch.testing.assert_close(both, torch.stack(single).mean())


def test_equal_nets_have_no_feature_distance(conv_net):
    student = conv_net()
    assert PKKD(student, copy.deepcopy(student))(*batch()).parts["mid"].item() < 1e-6


@pytest.mark.parametrize("student_kind", ["adder", "conv"])
@pytest.mark.parametrize("teacher_kind", ["adder", "conv"])
def test_kernels_follow_the_layers(adder_net, conv_net, taps, student_kind, teacher_kind):
    build = {"adder": adder_net, "conv": conv_net}
    kernels = {"adder": LaplacianKernel, "conv": GaussianKernel}
    pkkd = PKKD(build[student_kind](), build[teacher_kind]())
    assert pkkd.taps == taps
    for alignment in pkkd.alignments.values():
        assert isinstance(alignment.student_kernel, kernels[student_kind])
        assert isinstance(alignment.teacher_kernel, kernels[teacher_kind])
    assert torch.isfinite(pkkd(*batch()).loss)


def test_student_loss_leaves_the_teacher_alone(adder_net, conv_net):
    pkkd = PKKD(adder_net(), conv_net())
    pkkd(*batch()).loss.backward()
    assert all(p.grad is None for p in pkkd.teacher.parameters())
    assert all(p.grad is not None for p in pkkd.student.parameters())
    assert all(p.grad is not None for p in pkkd.own_parameters())


def test_teacher_loss_leaves_the_student_alone(adder_net, conv_net):
    pkkd = PKKD(adder_net(), conv_net())
    pkkd(*batch()).teacher_loss.backward()
    assert all(p.grad is None for p in pkkd.student.parameters())
    assert all(p.grad is None for p in pkkd.own_parameters())
    assert all(p.grad is not None for p in pkkd.teacher.parameters())


def test_progressive_teacher_trains_as_if_alone(adder_net, conv_net):
    teacher = conv_net()
    alone = copy.deepcopy(teacher)
    pkkd = PKKD(adder_net(), teacher)
    joint = torch.optim.SGD(pkkd.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    single = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for size in (8, 8, 3):
        inputs, labels = batch(size)
        joint.zero_grad()
        single.zero_grad()
        total(pkkd(inputs, labels)).backward()
        F.cross_entropy(alone(inputs), labels).backward()
        joint.step()
        single.step()
    for (name, got), expected in zip(
        teacher.state_dict().items(), alone.state_dict().values(), strict=True
    ):
        assert torch.equal(got, expected), name


def test_fixed_teacher_does_not_change(adder_net, conv_net):
    teacher = conv_net(dropout=0.5)
    pkkd = PKKD(adder_net(), teacher, progressive=False)
    before = copy.deepcopy(teacher.state_dict())
    pkkd.train()
    assert pkkd.training
    assert pkkd.student.training
    assert not any(module.training for module in teacher.modules())
    output = pkkd(*batch())
    assert output.teacher_loss is None
    assert not output.teacher_logits.requires_grad
    train(pkkd)
    assert all(p.grad is None for p in teacher.parameters())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_progressive_teacher_follows_the_mode(adder_net, conv_net):
    pkkd = PKKD(adder_net(), conv_net())
    assert pkkd.eval().teacher.training is False
    assert pkkd.train().teacher.training is True


@pytest.fixture
def captures(monkeypatch):
    """Calls of `capture`, which sets the hooks."""
    calls = []
    monkeypatch.setattr("torchadder.distill.distiller.capture", lambda *a, **k: calls.append(a))
    return calls


def test_beta_zero_taps_nothing(adder_net, conv_net, captures):
    pkkd = PKKD(adder_net(), conv_net(), beta=0)
    output = pkkd(*batch())
    assert captures == []
    assert list(output.parts) == ["ce", "kd"]
    assert pkkd.own_parameters() == []
    assert pkkd.taps == ()


def test_beta_zero_needs_no_common_layers(adder_net):
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(128, 4))
    assert torch.isfinite(PKKD(adder_net(), teacher, beta=0)(*batch()).loss)


def test_alpha_zero_compares_no_logits(adder_net, conv_net, monkeypatch):
    monkeypatch.setattr("torchadder.distill.pkkd.soft_cross_entropy", None)
    output = PKKD(adder_net(), conv_net(num_classes=7), alpha=0, progressive=False)(*batch())
    assert list(output.parts) == ["ce", "mid"]


def test_parameters_of_the_loss_are_where_the_student_is(adder_net, conv_net):
    nets = adder_net().to("meta"), conv_net().to("meta")
    for distiller in (PKKD(*nets), FitNet(*nets)):
        own = distiller.own_parameters()
        assert own
        assert all(parameter.is_meta for parameter in own)


@pytest.mark.parametrize("progressive", [False, True])
def test_both_zero_is_plain_training(adder_net, conv_net, progressive):
    student = adder_net()
    plain = copy.deepcopy(student)
    pkkd = PKKD(student, conv_net(), alpha=0, beta=0, progressive=progressive)
    inputs, labels = batch()
    output = pkkd(inputs, labels)
    assert (output.teacher_logits is not None) == progressive
    output.loss.backward()
    F.cross_entropy(plain(inputs), labels).backward()
    for got, expected in zip(student.parameters(), plain.parameters(), strict=True):
        assert torch.equal(got.grad, expected.grad)


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("linear_map", [False, True])
@pytest.mark.parametrize("progressive", [False, True])
def test_switches(adder_net, conv_net, kernel, linear_map, progressive):
    pkkd = PKKD(
        adder_net(), conv_net(), kernel=kernel, linear_map=linear_map, progressive=progressive
    )
    assert len(pkkd.own_parameters()) == 2 * (2 * kernel + linear_map)
    assert len(pkkd.sigmas()) == 4 * kernel
    train(pkkd)
    assert all(torch.isfinite(p).all() for p in pkkd.parameters())


@pytest.mark.parametrize("learned", ["both", "student", "none"])
def test_learned_scales(adder_net, conv_net, learned):
    pkkd = PKKD(adder_net(), conv_net(), learned_scales=learned)
    pkkd(*batch())  # sets the initial scales
    before = pkkd.sigmas()
    train(pkkd)
    moved = {
        name.rpartition("/")[2] for name, sigma in pkkd.sigmas().items() if sigma != before[name]
    }
    assert moved == {"both": {"student", "teacher"}, "student": {"student"}, "none": set()}[learned]
    shapes = [tuple(parameter.shape) for parameter in pkkd.own_parameters()]
    assert shapes.count(()) == {"both": 4, "student": 2, "none": 0}[learned]
    with pytest.raises(ValueError, match="both, student, none, got 'teacher'"):
        PKKD(adder_net(), conv_net(), learned_scales="teacher")


def test_student_is_a_plain_net_afterwards(adder_net, conv_net):
    pkkd = PKKD(adder_net(), conv_net())
    train(pkkd)
    student = pkkd.student
    assert hooks_of(student) == hooks_of(pkkd.teacher) == 0
    plain = adder_net()
    assert list(student.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(student.state_dict())
    assert [type(m) for m in student.modules()] == [type(m) for m in plain.modules()]
    inputs, _ = batch()
    assert torch.equal(student.eval()(inputs), plain.eval()(inputs))


@pytest.mark.parametrize("size", [1, 2, 5, 33])
def test_any_batch_size(adder_net, conv_net, size):
    pkkd = PKKD(adder_net(), conv_net())
    train(pkkd, steps=1)
    output = pkkd(*batch(size))
    total(output).backward()
    assert output.student_logits.shape == (size, 4)
    assert all(torch.isfinite(p.grad).all() for p in pkkd.parameters())


def test_eval_mode(adder_net, conv_net):
    pkkd = PKKD(adder_net(), conv_net())
    train(pkkd)
    before = copy.deepcopy(pkkd.state_dict())
    inputs, labels = batch()
    with torch.no_grad():
        output = pkkd.eval()(inputs, labels)
    assert torch.equal(output.student_logits, pkkd.student(inputs))
    assert torch.equal(output.teacher_logits, pkkd.teacher(inputs))
    for name, value in pkkd.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("steps", [0, 2])
def test_state_dict_round_trip(adder_net, conv_net, steps):
    source, target = PKKD(adder_net(), conv_net()), PKKD(adder_net(), conv_net())
    train(source, steps)
    train(target, 1)
    stored = io.BytesIO()
    torch.save(source.state_dict(), stored)
    stored.seek(0)
    target.load_state_dict(torch.load(stored, weights_only=True), strict=True)
    data = batch()
    for _ in range(2):
        assert torch.equal(source(*data).loss, target(*data).loss)
    assert source.sigmas().keys() == target.sigmas().keys()


def test_deepcopy(adder_net, conv_net):
    pkkd = PKKD(adder_net(), conv_net())
    train(pkkd)
    other = copy.deepcopy(pkkd)
    data = batch()
    assert torch.equal(other(*data).loss, pkkd(*data).loss)
    train(other)
    assert not torch.equal(other.student.fc.weight, pkkd.student.fc.weight)


def test_gradient_accumulation(conv_net):
    # With BN in eval mode the terms of two halves add up. The feature term is left out: it takes
    # statistics over the batch, as BN does in training.
    pkkd = PKKD(conv_net(), conv_net(), beta=0).eval()
    inputs, labels = batch()
    total(pkkd(inputs, labels)).backward()
    whole = gradients(pkkd)
    pkkd.zero_grad()
    for half in (slice(0, 4), slice(4, 8)):
        (total(pkkd(inputs[half], labels[half])) / 2).backward()
    for name, value in gradients(pkkd).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("progressive", [False, True])
def test_autocast(adder_net, conv_net, progressive):
    pkkd = PKKD(adder_net(), conv_net(), progressive=progressive)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = pkkd(*batch())
    assert output.loss.dtype == torch.float32
    assert all(part.dtype == torch.float32 for part in output.parts.values())
    total(output).backward()
    assert all(
        torch.isfinite(p.grad).all() and p.grad.dtype == torch.float32
        for p in pkkd.parameters()
        if p.requires_grad
    )


def test_large_and_constant_outputs(adder_net, conv_net):
    pkkd = PKKD(adder_net(), conv_net())
    with torch.no_grad():
        pkkd.student.body[0].weight.fill_(1e4)
        pkkd.teacher.body[0].weight.zero_()
    train(pkkd)
    assert all(torch.isfinite(p).all() for p in pkkd.parameters())


def test_training_lowers_every_part(adder_net, conv_net):
    pkkd = PKKD(adder_net(), conv_net(), alpha=1, beta=1)
    optimizer = torch.optim.Adam(pkkd.parameters(), lr=0.01)
    data = batch(32)
    first = pkkd(*data).parts
    for _ in range(40):
        optimizer.zero_grad()
        output = pkkd(*data)
        total(output).backward()
        optimizer.step()
    assert all(output.parts[name] < first[name] for name in first)


@pytest.mark.parametrize("whole", [False, True])
def test_compiled_nets(adder_net, conv_net, whole):
    student, teacher = adder_net(), conv_net()
    plain = PKKD(student, teacher)
    compiled = copy.deepcopy(plain)
    if whole:
        compiled.student = torch.compile(compiled.student, backend="eager")
        compiled.teacher = torch.compile(compiled.teacher, backend="eager")
    else:
        compiled.student.compile(backend="eager")
        compiled.teacher.compile(backend="eager")
    data = batch()
    for _ in range(2):
        expected, got = plain(*data), compiled(*data)
        torch.testing.assert_close(got.loss, expected.loss)
        total(got).backward()
    torch._dynamo.reset()


def test_nets_compiled_before(adder_net, conv_net, taps):
    student = torch.compile(adder_net(), backend="eager")
    pkkd = PKKD(student, torch.compile(conv_net(), backend="eager"))
    assert pkkd.taps == taps
    assert torch.isfinite(pkkd(*batch()).loss)
    torch._dynamo.reset()


def test_further_methods_need_only_their_terms(adder_net, conv_net, taps):
    class SquaredLogits(Distiller):
        def distillation_terms(self, student: NetOutput, teacher: NetOutput):
            return {"logits": (2.0, F.mse_loss(student.logits, teacher.logits))}

    output = SquaredLogits(adder_net(), conv_net(), progressive=True)(*batch())
    torch.testing.assert_close(output.loss, output.parts["ce"] + 2 * output.parts["logits"])


def test_bad_arguments(adder_net, conv_net):
    for name in ("alpha", "beta"):
        for value in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"{name} must be a finite number"):
                PKKD(adder_net(), conv_net(), **{name: value})
    with pytest.raises(ValueError, match="temperature must be a positive number, got 0"):
        PKKD(adder_net(), conv_net(), temperature=0)
    with pytest.raises(ValueError, match="scale must be one of"):
        PKKD(adder_net(), conv_net(), scale="unit")
    student = adder_net()
    with pytest.raises(ValueError, match="share parameters"):
        PKKD(student, student)


def test_nets_that_are_trained_are_not_frozen(adder_net, conv_net):
    teacher = conv_net()
    PKKD(adder_net(), teacher, progressive=False)  # it is fixed from here on
    with pytest.raises(ValueError, match=r"trains the teacher, of which no .* teacher.requires_gr"):
        PKKD(adder_net(), teacher)
    teacher.requires_grad_(True)
    PKKD(adder_net(), teacher)
    with pytest.raises(ValueError, match="trains the student"):
        PKKD(adder_net().requires_grad_(False), conv_net())


def test_maps_of_another_size(adder_net, conv_net):
    teacher = conv_net()
    teacher.body[0].stride = (1, 1)
    with pytest.raises(ValueError, match=r"student has body\.0 \(8, 12, 4, 4\), .*\(8, 12, 8, 8\)"):
        PKKD(adder_net(), teacher)(*batch())


def test_another_number_of_classes(adder_net, conv_net):
    with pytest.raises(ValueError, match=r"\(8, 4\) and \(8, 7\)"):
        PKKD(adder_net(), conv_net(num_classes=7))(*batch())
