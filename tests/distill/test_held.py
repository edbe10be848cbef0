"""Standing taps give what taps of a single call give, and can be compiled with the nets."""

import copy

import pytest
import torch
from torch import nn

from torchadder.distill import PKKD
from torchadder.distill.held import HeldTaps
from torchadder.tasks import Distillation
from torchadder.training.graph import FastStep


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 2, 12, 12, generator=generator), torch.arange(6) % 4


def total(output):
    return output.loss + output.teacher_loss


def test_the_loss_is_the_same_and_the_hooks_go(adder_net, conv_net):
    plain = PKKD(adder_net(), conv_net())
    plain(*batch())
    held = copy.deepcopy(plain)
    with held.hold_taps():
        for _ in range(2):
            assert torch.equal(total(held(*batch())), total(plain(*batch())))
        held.student(batch()[0])  # outside of the loss nothing is read
        assert torch.equal(total(held(*batch())), total(plain(*batch())))
    assert not any(module._forward_hooks for module in held.modules())
    assert torch.equal(total(held(*batch())), total(plain(*batch())))


def test_the_whole_loss_is_one_graph(adder_net, conv_net):
    plain = PKKD(adder_net(), conv_net())
    plain(*batch())
    held = copy.deepcopy(plain)
    with held.hold_taps():
        compiled = torch.compile(held, backend="eager", fullgraph=True)
        for _ in range(2):
            want, got = total(plain(*batch())), total(compiled(*batch()))
            assert torch.equal(got, want)
            want.backward()
            got.backward()
    for mine, theirs in zip(held.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
    torch._dynamo.reset()


def overwritten():
    """A net whose first ReLU overwrites what the layer before it put out."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def test_outputs_that_are_overwritten_are_not_read():
    method = PKKD(overwritten(), overwritten(), taps=["0"], kernel=False)
    with pytest.raises(RuntimeError, match="must be called once before its taps are held"):
        method.hold_taps().__enter__()
    step = FastStep(Distillation(method, num_classes=4), compile=True)
    with pytest.raises(RuntimeError, match=r"'0' of Sequential was overwritten in place"):
        step(*batch())


def test_a_run_that_goes_on_was_checked_in_its_first_step(adder_net, conv_net):
    task = Distillation(PKKD(adder_net(), conv_net(), kernel=False), num_classes=4)
    assert task.step_key is None
    task.on_load_checkpoint({})
    assert task.step_key is not None


class Shared(nn.Module):
    """A layer that runs a given number of times."""

    def __init__(self, times):
        super().__init__()
        self.times = times
        self.layer = nn.Conv2d(2, 2, 1)

    def forward(self, x):
        for _ in range(self.times):
            x = self.layer(x)
        return x


@pytest.mark.parametrize(("times", "words"), [(0, "did not run"), (2, "ran twice")])
def test_a_layer_must_run_once(times, words):
    held = HeldTaps(Shared(times), ["layer"], detach=False, readings={})
    with pytest.raises(RuntimeError, match=f"layer 'layer' {words}"):
        held.run(batch()[0])
    held.remove()
