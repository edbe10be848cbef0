"""Gradient rules and batch statistics that hold in one block, one thread and one model."""

import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.overrides import _get_current_function_mode_stack

import torchadder as ta
from attacked_nets import labelled, small
from torchadder.robustness import Normalised, batch_statistics, fgsm, input_gradient, pgd, square
from torchadder.robustness.switching import is_coupled


def gradient(model, x):
    x = x.clone().requires_grad_()
    model(x).sum().backward()
    return x.grad


def layer(grad="clip"):
    torch.manual_seed(0)
    return ta.nn.Adder2d(2, 3, 3, bias=True, grad=grad)


X = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(1)) * 0.5


def wanted(rule):
    return gradient(layer(rule), X)


@pytest.mark.parametrize("rule", ["clip", "sign", "l2", "exact"])
def test_rule_of_a_block(rule):
    model = nn.Sequential(layer())
    with input_gradient(model, rule) as same:
        assert same is model
        assert torch.equal(gradient(model, X), wanted(rule))
        assert model[0].grad == "clip"
    assert torch.equal(gradient(model, X), wanted("clip"))
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not torch.equal(wanted("sign"), wanted("clip"))


def test_the_innermost_block_counts_and_others_are_left_alone():
    model, other = nn.Sequential(layer()), layer()
    with input_gradient(model, "sign"):
        with input_gradient(model, "l2"):
            assert torch.equal(gradient(model, X), wanted("l2"))
        assert torch.equal(gradient(model, X), wanted("sign"))
        assert torch.equal(gradient(other, X), wanted("clip"))


def test_weights_keep_their_gradient_in_a_block():
    model = nn.Sequential(layer())
    with input_gradient(model, "sign"):
        gradient(model, X)
    got = model[0].weight.grad
    model = nn.Sequential(layer())
    gradient(model, X)
    assert torch.equal(got, model[0].weight.grad)  # "clip" and "sign" share the weight gradient


def test_after_an_exception_everything_is_as_before():
    model = nn.Sequential(layer())
    with pytest.raises(ValueError, match="channels"), input_gradient(model, "sign"):
        model(torch.rand(1, 7, 5, 5))
    assert torch.equal(gradient(model, X), wanted("clip"))
    with input_gradient(model, "sign"):
        with pytest.raises(ValueError, match="channels"):
            model(torch.rand(1, 7, 5, 5))
        assert torch.equal(gradient(model, X), wanted("sign"))
    with pytest.raises(KeyError), input_gradient(model, "sign"):
        raise KeyError
    assert torch.equal(gradient(model, X), wanted("clip"))
    assert not model._forward_hooks


class Interrupted(nn.Module):
    """Ctrl-C in the forward pass, once the model is called for the `after`-th time."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def forward(self, x):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return x


@pytest.mark.parametrize("after", [1, 2])  # before the attack, and while it takes the gradient
def test_ctrl_c_in_a_forward_leaves_nothing_switched(after):
    """Torch runs the hooks after a call for exceptions, and for KeyboardInterrupt not."""
    model = small("adder")
    other, norm = layer(), nn.BatchNorm2d(2).eval()
    images, labels = labelled(model)
    model.norm = nn.Sequential(model.norm, Interrupted(after))
    with pytest.raises(KeyboardInterrupt), input_gradient(model, "sign"), batch_statistics(model):
        fgsm(model.eval(), images, labels)
    assert _get_current_function_mode_stack() == []
    assert torch.equal(gradient(other, X), wanted("clip"))
    assert torch.equal(norm(X), X / (1 + norm.eps) ** 0.5)
    other(X).sum().backward()
    assert other.weight.grad is not None
    with input_gradient(other, "sign"):
        assert torch.equal(gradient(other, X), wanted("sign"))


def test_threads_do_not_see_each_other():
    model = nn.Sequential(layer())
    barrier = threading.Barrier(3, timeout=30)
    found = {}

    def work(rule):
        def compute():
            barrier.wait()
            found[rule] = [gradient_of(model, X) for _ in range(20)]
            barrier.wait()

        if rule == "clip":
            compute()
            return
        with input_gradient(model, rule):
            compute()

    def gradient_of(model, x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(model(x).sum(), x)[0]

    threads = [threading.Thread(target=work, args=(rule,)) for rule in ("clip", "sign", "l2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rule in ("clip", "sign", "l2"):
        assert len(found[rule]) == 20
        assert all(torch.equal(got, wanted(rule)) for got in found[rule]), rule


def test_layers_of_every_kind_and_parametrised_weights():
    class Twice(nn.Module):
        def forward(self, weight):
            return 2 * weight

    torch.manual_seed(0)
    layers = {
        "1d": (ta.nn.Adder1d(2, 3, 3), torch.randn(2, 2, 6) / 2),
        "linear": (ta.nn.AdderLinear(4, 3), torch.randn(5, 4) / 2),
        "transpose": (ta.nn.AdderTranspose2d(2, 3, 3), X),
        "parametrised": (ta.nn.Adder2d(2, 3, 3), X),
        "lp at 1": (ta.lp.LpAdder2d(2, 3, 3, p=1.0), X),
    }
    parametrize.register_parametrization(layers["parametrised"][0], "weight", Twice())
    for name, (module, x) in layers.items():
        before = gradient(module, x)
        with input_gradient(module, "sign"):
            got = gradient(module, x)
        module.grad = "sign"
        assert torch.equal(got, gradient(module, x)), name
        assert not torch.equal(got, before), name


def test_powers_have_their_true_gradient_unless_clipped():
    module = ta.lp.LpAdder2d(2, 3, 3, p=1.5, clip=True)
    clipped = gradient(module, X)
    with input_gradient(module, "sign"):
        true = gradient(module, X)
    module.clip = False
    assert torch.equal(true, gradient(module, X))
    assert not torch.equal(true, clipped)


def test_switches_that_do_not_fit():
    with pytest.raises(ValueError, match="no adder layers"), input_gradient(small(), "sign"):
        pass
    with pytest.raises(ValueError, match="signum"), input_gradient(small("adder"), "signum"):
        pass
    bare = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no batch norm"), batch_statistics(bare):
        pass


def test_batch_statistics_are_those_of_training_and_leave_no_trace(net):
    x = torch.rand(6, 3, 8, 8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    running = net(x)
    with batch_statistics(net):
        got = net(x)
        assert not net.training
    after = net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(net(x), running)
    want = net.train()(x)
    assert torch.equal(got, want)
    assert not torch.allclose(got, running, atol=1e-3)


def test_both_switches_together_and_under_a_wrapper(adder):
    model = Normalised(adder, [0.1] * 3, [0.3] * 3).eval()
    x = torch.rand(6, 3, 8, 8)
    adder.layer.grad = "sign"
    want = gradient(Normalised(adder, [0.1] * 3, [0.3] * 3).train(), x)
    adder.layer.grad = "clip"
    model.eval()
    with input_gradient(adder, "sign"), batch_statistics(model):
        assert torch.equal(gradient(model, x), want)


def test_images_of_a_batch_are_attacked_together(net):
    """With batch statistics no image may be left out, or the others would see another batch."""
    images, labels = labelled(net)
    sizes = []
    handle = net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    with batch_statistics(net):
        for attack, options in ((fgsm, {}), (pgd, {"restarts": 2}), (square, {"queries": 5})):
            found = attack(net, images, labels, batch_size=6, epsilon=0.3, **options)
            assert set(sizes) == {6}
            with torch.no_grad():
                halves = torch.cat([net(found.images[:6]), net(found.images[6:])])
            assert torch.equal(found.success, halves.argmax(1) != labels)
    handle.remove()


def test_a_batch_norm_without_running_statistics_always_couples(net):
    assert not is_coupled(net)
    images, labels = labelled(net)
    net.norm = nn.BatchNorm2d(6, track_running_stats=False).eval()
    assert is_coupled(net)
    sizes = []
    handle = net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    found = pgd(net, images, labels, batch_size=6, epsilon=0.3, restarts=2)
    handle.remove()
    assert set(sizes) == {6}
    with torch.no_grad():
        halves = torch.cat([net(found.images[:6]), net(found.images[6:])])
    assert torch.equal(found.success, halves.argmax(1) != labels)


def test_batches_are_of_nearly_equal_size(net):
    images, labels = labelled(net, num_images=13)
    sizes = []
    handle = net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    with batch_statistics(net):
        fgsm(net, images, labels, batch_size=4)
    handle.remove()
    assert sizes[:4] == [4, 3, 3, 3]
