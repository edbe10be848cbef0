"""Gradients of the terms of a loss: against torch's own, term by term."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

import torchadder as ta
from torchadder.distill import AT, KD, PKKD, Dropout, Snapshot, term_gradients


def batch(size=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 2, 8, 8, generator=generator), torch.arange(size) % 3


def net_gradients(net, loss):
    """Gradients by layer of one loss alone."""
    net.zero_grad()
    loss.backward(retain_graph=True)
    return {
        name.removesuffix(".weight"): (0 * p if p.grad is None else p.grad).detach().flatten()
        for name, p in net.named_parameters()
        if p.dim() > 1
    }


def test_terms_are_those_of_the_loss(adder_net, conv_net):
    torch.manual_seed(0)
    loss = PKKD(adder_net(), conv_net(), alpha=3.0, beta=0.5)
    images, labels = batch()
    pulls = term_gradients(loss, images, labels)

    loss.train()
    teacher, student = loss.run_teacher(images), loss.run_student(images)
    constant = teacher._replace(logits=teacher.logits.detach())
    terms = {"ce": (1.0, F.cross_entropy(student.logits, labels))}
    terms |= loss.distillation_terms(student, constant)
    want = {name: net_gradients(loss.student, w * term) for name, (w, term) in terms.items()}
    assert {(pull.layer, pull.term) for pull in pulls} == {
        (layer, term) for term in ("ce", "kd", "mid") for layer in want["ce"]
    }
    for pull in pulls:
        mine, of_labels = want[pull.term].get(pull.layer), want["ce"][pull.layer]
        norm = float(mine.norm())
        assert pull.norm == pytest.approx(norm, rel=1e-4)
        assert pull.ratio == pytest.approx(norm / float(of_labels.norm()), rel=1e-4)
        cosine = F.cosine_similarity(mine, of_labels, dim=0) if norm else 0.0
        assert pull.cosine == pytest.approx(float(cosine), abs=1e-4)
    assert {pull.ratio for pull in pulls if pull.term == "ce"} == {1.0}


def test_twice_the_weight_pulls_twice_as_hard(adder_net, conv_net):
    images, labels = batch()
    student, teacher = adder_net(), conv_net()
    once, twice = (
        term_gradients(KD(copy.deepcopy(student), copy.deepcopy(teacher), alpha=a), images, labels)
        for a in (1.0, 2.0)
    )
    for one, two in zip(once, twice, strict=True):
        factor = 2.0 if one.term == "kd" else 1.0
        assert two.norm == pytest.approx(factor * one.norm, rel=1e-5)
        assert two.cosine == pytest.approx(one.cosine, abs=1e-6)


@pytest.mark.parametrize("method", [PKKD, AT])
def test_nothing_is_changed(adder_net, conv_net, method):
    loss = method(adder_net(), conv_net())
    loss.student.eval()
    before = copy.deepcopy(loss.state_dict())
    modes = [module.training for module in loss.modules()]
    pulls = term_gradients(loss, *batch())
    assert pulls == term_gradients(loss, *batch())
    assert modes == [module.training for module in loss.modules()]
    assert all(p.grad is None for p in loss.parameters())
    for name, value in loss.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_normalised_weights_and_chosen_layers():
    torch.manual_seed(0)
    student, teacher = ta.models.lenet5_bn(), ta.models.lenet5_bn(conv="conv")
    ta.awn.apply_(student)
    images = torch.randn(4, 1, 28, 28)
    pulls = term_gradients(KD(student, teacher), images, torch.arange(4), ["conv[23]", "fc"])
    assert list(dict.fromkeys(pull.layer for pull in pulls)) == ["conv2", "conv3", "fc"]
    assert all(math.isfinite(pull.ratio) and pull.norm > 0 for pull in pulls)


def test_bad_input(adder_net, conv_net):
    images, labels = batch()
    with pytest.raises(ValueError, match="Dropout has no term that reads a teacher"):
        term_gradients(Dropout(adder_net()), images, labels)
    with pytest.raises(ValueError, match="Snapshot has no term that reads a teacher"):
        term_gradients(Snapshot(adder_net()), images, labels)
    with pytest.raises(ValueError, match=r"no layer .* fits 'stage\*'; there are conv1"):
        term_gradients(PKKD(adder_net(), conv_net()), images, labels, ["stage*"])
