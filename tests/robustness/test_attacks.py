"""Each attack against its formula, written plainly, and against a worst case that is known."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import plain_attacks as plain
from attacked_nets import labelled, small
from torchadder.robustness import ATTACKS, Normalised, bim, fgsm, mifgsm, pgd, rfgsm, square
from torchadder.robustness.square import side

EPSILON, STEP = 8 / 255, 2 / 255


def linear(num_inputs, seed=0):
    """Two classes whose difference is w'x + b: the worst case in a ball is x -+ epsilon sign(w)."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(num_inputs, 2)).eval()
    return model, (model[1].weight[0] - model[1].weight[1]).detach()


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "mifgsm"])
def test_worst_case_of_a_linear_model(name):
    model, w = linear(3 * 4 * 4)
    images = torch.rand(9, 3, 4, 4)
    labels = torch.arange(9) % 2
    away = torch.where(labels == 0, -1.0, 1.0).view(-1, 1, 1, 1) * w.sign().view(3, 4, 4)
    worst = (images + EPSILON * away).clamp(0, 1)
    # Enough steps to come from any start to the corner.
    options = {} if name == "fgsm" else {"iterations": 10}
    found = ATTACKS[name](model, images, labels, epsilon=EPSILON, everything=True, **options)
    assert torch.allclose(found.images, worst, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(found.success, model(found.images).argmax(1) != labels)


def test_square_reaches_the_worst_case_of_a_linear_model():
    model, w = linear(2 * 3 * 3)
    images = torch.full((4, 2, 3, 3), 0.5)
    labels = torch.arange(4) % 2
    with torch.no_grad():
        # So far apart that nothing fools it: the search has to go on to the end.
        model[1].bias.copy_(torch.tensor([50.0, -50.0]))
    labels[:] = 0
    found = square(model, images, labels, epsilon=0.1, queries=600, share=0.5)
    worst = images - 0.1 * w.sign().view(2, 3, 3)
    margin = ((found.images - 0.5).flatten(1) * w).sum(1)
    least = ((worst - 0.5).flatten(1) * w).sum(1)
    assert not found.success.any()
    assert torch.allclose(margin, least, rtol=1e-3)
    assert (found.num_calls == 602).all()


@pytest.mark.parametrize("kind", ["conv", "adder"])
def test_gradient_attacks_are_their_formulas(kind):
    model = small(kind)
    images, labels = labelled(model)
    everything = {"everything": True}
    e, a = EPSILON, STEP
    got = fgsm(model, images, labels, **everything).images
    assert torch.allclose(got, plain.each(plain.fgsm, model, images, labels, e), atol=1e-6)
    got = bim(model, images, labels, iterations=6, **everything).images
    want = plain.each(plain.steps, model, images, labels, e, a, 6)
    assert torch.allclose(got, want, atol=1e-6)
    got = mifgsm(model, images, labels, iterations=6, decay=0.7, **everything).images
    want = plain.each(plain.steps, model, images, labels, e, a, 6, decay=0.7)
    assert torch.allclose(got, want, atol=1e-6)

    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(5))
    starts = plain.clip(images + e * (2 * noise - 1), images, e)
    got = pgd(model, images, labels, iterations=4, seed=5, **everything).images
    want = plain.each(plain.steps, model, images, labels, e, a, 4, starts=starts)
    assert torch.allclose(got, want, atol=1e-6)

    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(5)).sign()
    starts = plain.clip(images + a * noise, images, e)
    got = rfgsm(model, images, labels, alpha=a, iterations=3, seed=5, **everything).images
    want = plain.each(plain.steps, model, images, labels, e, e - a, 3, starts=starts)
    assert torch.allclose(got, want, atol=1e-6)


def run(name, model, images, labels, **options):
    budget = {"square": {"queries": 6}, "fgsm": {}}.get(name, {"iterations": 3})
    return ATTACKS[name](model, images, labels, **budget, **options)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(ATTACKS)),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    epsilon=st.sampled_from([0.0, 1e-8, 1e-3, 1 / 255, 8 / 255, 0.1, 0.3, 1.0, 1.5]),
    grid=st.booleans(),
    batch_size=st.sampled_from([None, 1, 2]),
    seed=st.integers(0, 2**31),
)
def test_no_attack_leaves_the_ball_or_the_unit_interval(
    name, shape, epsilon, grid, batch_size, seed
):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(shape, generator=generator)
    if grid:  # pixels of 8 bits, 0 and 1 among them
        images = (images * 3).round() / 3
    model, _ = linear(shape[1] * shape[2] * shape[3], seed % 100)
    labels = torch.randint(2, (shape[0],), generator=generator)
    options = {"epsilon": epsilon, "batch_size": batch_size}
    options |= {} if name in ("fgsm", "rfgsm", "square") else {"step": 0.4 * epsilon + 1e-9}
    found = run(name, model, images, labels, **options)
    assert found.images.shape == images.shape
    assert found.images.dtype == images.dtype
    assert float(found.images.min()) >= 0
    assert float(found.images.max()) <= 1
    change = (found.images - images).abs()
    assert float(change.max()) <= epsilon
    assert float((found.images.double() - images.double()).abs().max()) <= epsilon
    untouched = found.wrong_before
    assert torch.equal(found.images[untouched], images[untouched])


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_success_is_what_the_model_says_of_the_images(name, net, batch):
    images, labels = batch
    found = run(name, net, images, labels, epsilon=0.1, batch_size=5)
    with torch.no_grad():
        assert torch.equal(found.success, net(found.images).argmax(1) != labels)
        assert torch.equal(found.wrong_before, net(images).argmax(1) != labels)
    assert found.wrong_before.tolist() == [False] * 10 + [True] * 2
    assert found.success.sum() > 2
    assert found.success[-2:].all()
    assert found.accuracy == pytest.approx(1 - found.success.sum().item() / 12)


def test_numbers_of_calls(net, batch):
    calls = []
    handle = net.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    found = pgd(net, *batch, iterations=3)
    assert found.num_calls.tolist() == [5] * 10 + [1] * 2
    assert sum(calls) == int(found.num_calls.sum())
    handle.remove()


@pytest.mark.parametrize("name", ["rfgsm", "pgd", "square"])
def test_random_attacks_depend_on_the_seed_alone(name, net, batch):
    torch.manual_seed(3)
    first = run(name, net, *batch, seed=7)
    state = torch.get_rng_state()
    torch.manual_seed(4)
    again = run(name, net, *batch, seed=7, batch_size=5)
    other = run(name, net, *batch, seed=8)
    assert torch.allclose(first.images, again.images, atol=1e-6)
    assert not torch.allclose(first.images, other.images, atol=1e-3)
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_skipping_what_is_wrong_changes_nothing_else(net, batch):
    images, labels = batch
    found = pgd(net, images, labels)
    alone = pgd(net, images, labels, everything=True)
    right = ~found.wrong_before
    assert torch.allclose(found.images[right], alone.images[right], atol=1e-6)
    assert not torch.equal(alone.images[~right], images[~right])


def test_restarts_only_add_successes(net, batch):
    images, labels = batch
    options = {"epsilon": 0.02, "step": 0.004, "iterations": 3}
    single = [pgd(net, images, labels, seed=0, **options)]
    found = pgd(net, images, labels, restarts=4, **options)
    assert (found.success >= single[0].success).all()
    fooled_first = single[0].success & ~single[0].wrong_before
    calls = found.num_calls - single[0].num_calls
    assert (calls[fooled_first] == 1).all()  # what the first start fools is not started again
    left = ~found.success
    assert (found.num_calls[left] == 2 + 4 * (3 + 1)).all()
    with torch.no_grad():
        assert torch.equal(found.success, net(found.images).argmax(1) != labels)


class Saturated(nn.Module):
    """Logits that some images do not move: those whose first pixel is dark."""

    def forward(self, x):
        moves = torch.relu(x[:, 0, 0, :1] - 0.5) * x.flatten(1).mean(1, keepdim=True)
        return torch.cat([moves + 1, 0 * moves], 1)


@pytest.mark.parametrize("name", ["fgsm", "bim", "mifgsm", "pgd", "rfgsm"])
def test_an_image_without_gradient_stays_and_is_reported(name):
    images = torch.full((4, 1, 3, 3), 0.25)
    images[2:] = 0.75
    found = run(name, Saturated().eval(), images, torch.zeros(4, dtype=torch.int64), epsilon=0.1)
    assert torch.isfinite(found.images).all()
    assert found.zero_gradient.tolist() == [True, True, False, False]
    assert found.zero_share == 0.5
    if name in ("fgsm", "bim", "mifgsm"):
        assert torch.equal(found.images[:2], images[:2])
        assert not torch.equal(found.images[2:], images[2:])


def test_gradients_that_are_not_finite_give_no_nan():
    class Broken(nn.Module):
        def forward(self, x):
            row = x.flatten(1)
            return torch.cat([1 + row[:, :1].sqrt(), 0 * row[:, 1:2]], 1)  # infinite slope at 0

    images = torch.zeros(2, 1, 2, 2)
    found = mifgsm(Broken().eval(), images, torch.zeros(2, dtype=torch.int64), iterations=3)
    assert torch.isfinite(found.images).all()


class Overflowing(nn.Module):
    """Names the brighter of two pixels, and nothing at all where the first is above a half."""

    def forward(self, x):
        row = x.flatten(1)
        return torch.where(row[:, :1] > 0.5, torch.nan, row)


@pytest.mark.parametrize("attack", [fgsm, square])
def test_logits_that_are_not_finite_name_no_class(attack):
    """The index of the highest one would be 0, which is the label here."""
    model = Overflowing().eval()
    images = torch.tensor([[0.9, 0.1], [0.45, 0.2], [0.2, 0.1]]).view(3, 1, 1, 2)
    labels = torch.zeros(3, dtype=torch.int64)
    found = attack(model, images, labels, epsilon=0.0)
    assert found.wrong_before.tolist() == [True, False, False]
    assert found.success.tolist() == [True, False, False]
    bright = torch.tensor([[[[1.0]], [[0.4]]]])
    model = nn.Sequential(nn.Flatten(), Excluding()).eval()
    assert attack(model, bright, labels[:1], epsilon=0.0).accuracy == 1


class Excluding(nn.Module):
    """A third class that is never named: its logit is minus infinity."""

    def forward(self, x):
        return torch.cat([x, torch.full_like(x[:, :1], -torch.inf)], 1)


def test_square_takes_an_answer_that_is_not_finite_for_success():
    images = torch.tensor([[0.45, 0.2]]).view(1, 1, 1, 2)
    model, label = Overflowing().eval(), torch.tensor([0])
    found = square(model, images, label, epsilon=0.1, queries=20)
    assert found.success.all()
    assert float(found.images[0, 0, 0, 0]) > 0.5


def state_of(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
    )


@pytest.mark.parametrize("kind", ["conv", "adder"])
@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_the_model_is_left_as_it_was(name, kind):
    model = small(kind)
    images, labels = labelled(model)
    model.head.bias.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before, kept = state_of(model), (images.clone(), labels.clone())
    run(name, model, images, labels)
    after = state_of(model)
    assert all(torch.equal(before[0][key], after[0][key]) for key in before[0])
    assert before[2] == after[2]
    for one, other in zip(before[1], after[1], strict=True):
        assert one[0] == other[0]
        assert one[1] is other[1]
    assert torch.equal(images, kept[0])
    assert torch.equal(labels, kept[1])
    assert not images.requires_grad


def test_weights_have_no_gradient_computed(adder, monkeypatch):
    """Only the input gradient is needed; that of adder weights would cost as much again."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    images, labels = labelled(adder)
    with Record():
        fgsm(adder, images, labels)
    assert sum("adder2d_backward_input" in name for name in seen) == 1
    assert not [name for name in seen if "backward_weight" in name]


def test_inside_no_grad_and_inference_mode(net, batch):
    want = bim(net, *batch).images
    with torch.no_grad():
        assert torch.equal(bim(net, *batch).images, want)
    with torch.inference_mode():
        inside = [value.clone() for value in batch]
        assert inside[0].is_inference()
        assert torch.equal(bim(net, *inside).images, want)
        model = copy.deepcopy(net)
        assert next(model.parameters()).is_inference()
    assert torch.equal(bim(model, *batch).images, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_precision(dtype, net, batch):
    model = Normalised(copy.deepcopy(net).to(dtype), [0.0] * 3, [1.0] * 3).eval()
    images, labels = batch
    found = mifgsm(model, images, labels, epsilon=0.1, step=0.03)
    assert found.images.dtype == torch.float32
    assert float((found.images - images).abs().max()) <= 0.1
    assert found.success.sum() > found.wrong_before.sum()


def test_images_of_float64(net, batch):
    images, labels = batch[0].double(), batch[1]
    model = copy.deepcopy(net).double()
    found = pgd(model, images, labels)
    assert found.images.dtype == torch.float64
    assert float((found.images - images).abs().max()) <= EPSILON


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": torch.rand(2, 3, 8, 8) * 2}, ValueError, r"images must lie in \[0, 1\]"),
        ({"images": torch.rand(2, 3, 8, 8) - 1}, ValueError, "Normalised"),
        ({"images": torch.full((2, 3, 8, 8), float("nan"))}, ValueError, "images must lie"),
        ({"images": torch.rand(2, 3, 8, 8).half()}, TypeError, "float32 or float64"),
        ({"images": torch.rand(0, 3, 8, 8)}, ValueError, "not be empty"),
        ({"labels": None}, ValueError, "labels are missing"),
        ({"labels": torch.tensor([0.0, 1.0])}, TypeError, "int64"),
        ({"labels": torch.tensor([0])}, ValueError, r"labels must have shape \(2,\)"),
        ({"labels": torch.tensor([0, 4])}, ValueError, r"labels must lie in 0 \.\. 3"),
        ({"epsilon": -0.1}, ValueError, "epsilon must be a number of at least 0, got -0.1"),
        ({"epsilon": float("nan")}, ValueError, "epsilon must be"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"iterations": 0}, ValueError, "iterations must be at least 1"),
        ({"step": 0.0}, ValueError, "step must be a positive number"),
        ({"restarts": 0}, ValueError, "restarts must be at least 1"),
    ],
)
def test_bad_input(net, changes, error, message):
    arguments = {"images": torch.rand(2, 3, 8, 8), "labels": torch.tensor([0, 1])} | changes
    with pytest.raises(error, match=message):
        pgd(net, **arguments)


def test_a_model_in_training_mode_is_refused(net, batch):
    net.norm.train()
    with pytest.raises(ValueError, match=r"training mode \(its module 'norm'\).*model\.eval\(\)"):
        fgsm(net, *batch)


def test_a_model_without_gradient_is_refused_and_square_works(net, batch):
    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x).detach()

    with pytest.raises(ValueError, match=r"no input gradient.*Square"):
        fgsm(Rounded().eval(), *batch)
    assert square(Rounded().eval(), *batch, queries=2).images.shape == batch[0].shape


@pytest.mark.parametrize(
    ("query", "want"), [(1, 29), (10, 29), (11, 20), (51, 14), (201, 10), (9999, 1)]
)
def test_windows_shrink_by_the_paper_schedule(query, want):
    """round(sqrt(p 32 32)) with p = 0.8 halved after 10, 50, 200 ... of 10,000 queries."""
    assert side(0.8, query, 10_000, 32, 32) == want


def test_a_square_query_changes_one_window_or_nothing(net, batch):
    images, labels = batch
    before = square(net, images, labels, epsilon=0.01, queries=40, seed=1)
    after = square(net, images, labels, epsilon=0.01, queries=40, seed=1)
    assert torch.equal(before.images, after.images)
    inner = (images > 0.02) & (images < 0.98)
    moved = ((before.images - images).abs() - 0.01).abs()[~before.wrong_before]
    assert float(moved[inner[~before.wrong_before]].max()) < 1e-6  # always at the ends of the ball
    assert not before.zero_gradient.any()
