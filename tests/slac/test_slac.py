"""The SLAC head and loss against densities and terms worked out by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

import torchadder as ta
from torchadder.slac import SlacHead, angle_term, class_distances, slac_loss
from torchadder.slac import head as head_module


def random_head(num_features, num_classes, dtype=torch.float64):
    """A head with parameters of no special value."""
    head = SlacHead(num_features, num_classes).to(dtype)
    with torch.no_grad():
        head.mu.normal_()
        head.log_sigma.normal_(std=0.5)
        head.gamma.normal_()
    return head


def density(x, mu, sigma, gamma):
    """The paper's density of one class, in plain arithmetic, up to the normaliser."""
    alpha = math.sqrt(1 + sum(g * g / s for g, s in zip(gamma, sigma, strict=True)))
    squares = sum((a - m) ** 2 / s for a, m, s in zip(x, mu, sigma, strict=True))
    skew = sum((a - m) * g / s for a, m, g, s in zip(x, mu, gamma, sigma, strict=True))
    return math.exp(-alpha * math.sqrt(squares) + skew) / (alpha * math.sqrt(math.prod(sigma)))


# The density --------------------------------------------------------------------------------------


def test_one_dimension_by_hand():
    """Sigma = 4, gamma = 3, mu = 1: alpha = sqrt(13)/2; at x = 5, m = 2 and the skew term is 3."""
    head = SlacHead(1, 1).double()
    with torch.no_grad():
        head.mu.fill_(1), head.log_sigma.fill_(math.log(4)), head.gamma.fill_(3)
    alpha = math.sqrt(13) / 2
    want = -math.log(2) - math.log(alpha) - 2 * alpha + 3
    assert head(torch.tensor([[5.0]], dtype=torch.float64)).item() == pytest.approx(want)


@pytest.mark.parametrize("num_features", [1, 2, 7])
def test_log_densities_in_plain_arithmetic(num_features):
    head = random_head(num_features, 3)
    x = torch.randn(4, num_features, dtype=torch.float64)
    got = head(x)
    for n in range(4):
        for k in range(3):
            parameters = (head.mu[k], head.log_sigma[k].exp(), head.gamma[k])
            want = density(x[n].tolist(), *(p.tolist() for p in parameters))
            assert got[n, k].item() == pytest.approx(math.log(want))


def test_one_dimension_integrates_to_one():
    head = random_head(1, 3)
    x = torch.linspace(-300, 300, 600_001, dtype=torch.float64)
    densities = (head(x[:, None]) - head.log_normaliser).exp()
    integrals = torch.trapezoid(densities, x, dim=0)
    torch.testing.assert_close(integrals, torch.ones_like(integrals), rtol=1e-5, atol=0)
    assert head.log_normaliser == pytest.approx(math.log(2))


def test_two_dimensions_integrate_to_one():
    head = random_head(2, 3)
    x = torch.linspace(-40, 40, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(x, x)
    densities = (head(grid) - head.log_normaliser).exp().reshape(801, 801, 3)
    integrals = torch.trapezoid(torch.trapezoid(densities, x, dim=0), x, dim=0)
    torch.testing.assert_close(integrals, torch.ones_like(integrals), rtol=5e-3, atol=0)
    assert head.log_normaliser == pytest.approx(math.log(2 * math.pi))


def test_initial_values():
    head = SlacHead(64, 10)
    assert torch.equal(head.log_sigma, torch.zeros(10, 64))
    assert torch.equal(head.gamma, torch.zeros(10, 64))
    bound = math.sqrt(6 / 74)
    assert 0.95 * bound < head.mu.abs().max() <= bound
    x = torch.randn(3, 64)
    torch.testing.assert_close(head(x), -torch.cdist(x, head.mu))


# Gradients and safety -----------------------------------------------------------------------------


def test_gradcheck_of_the_whole_loss():
    head = random_head(3, 4)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 1])
    names = ("mu", "log_sigma", "gamma")

    def run(x, *values):
        state = dict(zip(names, values, strict=True))
        for name, value in state.items():
            delattr(head, name)
            setattr(head, name, value)
        return slac_loss(head(x), labels, head, nll_weight=0.3, ac_weight=0.7).loss

    values = [getattr(head, name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(run, (x, *values))


def test_gradient_at_a_location_is_that_of_the_skew_alone():
    head = random_head(4, 2, torch.float32)
    x = head.mu[:1].detach().clone().requires_grad_()
    output = head(x)
    assert output.isfinite().all()
    output[0, 0].backward()
    torch.testing.assert_close(x.grad[0], (head.gamma / head.log_sigma.exp())[0].detach())
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_initial_state_has_finite_gradients_even_where_all_classes_coincide():
    head = SlacHead(6, 3)
    with torch.no_grad():
        head.mu.zero_()
    x = torch.zeros(3, 6, requires_grad=True)
    slac_loss(head(x), torch.arange(3), head).loss.backward()
    assert all(p.grad.isfinite().all() for p in (x, *head.parameters()))


def test_near_locations_keep_their_digits():
    """Differences, not x^2 - 2 x mu + mu^2, which would lose all of these."""
    head = SlacHead(3, 1)
    with torch.no_grad():
        head.mu.fill_(1000)
    x = head.mu.detach() + torch.tensor([[0.0, 2**-10, 0.0]])
    assert head(x).item() == pytest.approx(-(2**-10), rel=1e-6)


def test_log_densities_far_away_do_not_underflow():
    head = random_head(5, 3, torch.float32)
    x = torch.full((2, 5), 1e6)
    loss = slac_loss(head(x), torch.tensor([0, 1]), head)
    assert loss.loss.isfinite()


def test_chunks_of_classes_give_the_same(monkeypatch):
    head = random_head(6, 7)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    g = torch.randn(4, 7, dtype=torch.float64)
    inputs = (x, *head.parameters())
    want, gradients = head(x), torch.autograd.grad(head(x), inputs, g)
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", 13)
    torch.testing.assert_close(head(x), want)
    torch.testing.assert_close(torch.autograd.grad(head(x), inputs, g), gradients)


def test_autocast_leaves_the_densities_in_float32():
    head = random_head(8, 3, torch.float32)
    x = torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = head(x.bfloat16())
        angles = angle_term(head)
    torch.testing.assert_close(output, head(x.bfloat16().float()))
    torch.testing.assert_close(angles, angle_term(head))


@pytest.mark.parametrize("shape", [(3,), (2, 5), (2, 4, 1)])
def test_bad_features(shape):
    with pytest.raises(ValueError, match=r"features must have shape \(N, 4\), got"):
        SlacHead(4, 2)(torch.zeros(shape))
    with pytest.raises(ValueError, match="must be at least 1, got 4 and 0"):
        SlacHead(4, 0)


# The loss -----------------------------------------------------------------------------------------


def test_loss_by_hand():
    """Two classes at -1 and 1, Sigma 1 and 4, gamma 0 and 3, x = 1 of class 0."""
    head = SlacHead(1, 2).double()
    with torch.no_grad():
        head.mu.copy_(torch.tensor([[-1.0], [1.0]]))
        head.log_sigma.copy_(torch.tensor([[0.0], [math.log(4)]]))
        head.gamma.copy_(torch.tensor([[0.0], [3.0]]))
    log_f0 = -2.0
    log_f1 = -math.log(2) - math.log(13 / 4) / 2
    lc = -(log_f0 - math.log(math.exp(log_f0) + math.exp(log_f1)))
    nll = -(log_f0 - math.log(2))
    # D(0,1) = 4/4, D(1,0) = 4/1: the targets are 1 on the diagonal and -1 beside it.
    cosine = 9 / (9 + 1e-4)
    lac = (1 + 1 + 1 + (cosine - 1) ** 2) / 4
    torch.testing.assert_close(class_distances(head).tolist(), [[0.0, 1.0], [4.0, 0.0]])
    x = torch.tensor([[1.0]], dtype=torch.float64)
    got = slac_loss(head(x), torch.tensor([0]), head, nll_weight=0.5, ac_weight=0.25)
    assert got.classification.item() == pytest.approx(lc)
    assert got.likelihood.item() == pytest.approx(nll)
    assert got.angles.item() == pytest.approx(lac)
    assert got.loss.item() == pytest.approx(lc + 0.5 * nll + 0.25 * lac)


def test_angle_term_in_loops():
    head = random_head(5, 4)
    sigma, total = head.log_sigma.exp(), 0.0
    for m in range(4):
        row = [((head.mu[m] - head.mu[n]) ** 2 / sigma[n]).sum().item() for n in range(4)]
        torch.testing.assert_close(class_distances(head)[m].tolist(), row)
        for n in range(4):
            target = (max(row) - 2 * row[n]) / max(row)
            cosine = F.cosine_similarity(head.gamma[m], head.gamma[n], dim=0).item()
            total += (cosine - target) ** 2 / 16
    assert angle_term(head).item() == pytest.approx(total, rel=1e-3)  # the cosine is smoothed


def test_far_locations_make_it_a_linear_softmax_classifier():
    """|x - R u| = R - u'x + O(|x|^2 / R) for |u| = 1: L_c becomes cross-entropy on u'x."""
    head = SlacHead(5, 4).double()
    directions = F.normalize(torch.randn(4, 5, dtype=torch.float64), dim=1)
    with torch.no_grad():
        head.mu.copy_(1e7 * directions)
    x, labels = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    loss = slac_loss(head(x), labels, head).classification
    torch.testing.assert_close(
        loss, F.cross_entropy(x @ directions.t(), labels), rtol=1e-6, atol=1e-6
    )


# Models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ta.models.MODELS))
def test_every_model_takes_the_head(name):
    with torch.device("meta"):
        net = ta.models.build(name, head="slac", num_classes=7)
        images = torch.empty(2, *net.image_shape)
        assert net(images).shape == (2, 7)
    assert isinstance(net.head, SlacHead)
    names = {key.partition(".")[0] for key in net.state_dict()}
    assert "fc" not in names
    assert net.config["kwargs"]["head"] == "slac"


def test_checkpoint_brings_the_head_back(tmp_path):
    net = ta.models.build("resnet20", head="slac", num_classes=5).eval()
    with torch.no_grad():
        net.head.gamma.normal_()
    loaded = ta.load(ta.save(net, tmp_path / "net.safetensors"))
    assert isinstance(loaded.head, SlacHead)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), net(images))
    plain = ta.models.resnet20(num_classes=5)
    with pytest.raises(ta.checkpoint.CheckpointError, match="does not fit resnet20"):
        ta.checkpoint.load_into(plain, tmp_path / "net.safetensors")


def test_export_and_energy():
    net = ta.models.build("lenet5_bn", head="slac").eval()
    images = torch.randn(3, 1, 28, 28)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (images,), dynamic_shapes=({0: batch},))
    other = torch.randn(5, 1, 28, 28)
    torch.testing.assert_close(program.module()(other), net(other))
    slac = ta.energy.count(net, images[:1])
    plain = ta.energy.count(ta.models.lenet5_bn(), images[:1])
    # Per feature and class: the square times 1/Sigma and the skew; a plain head has one product.
    assert slac.num_mul - plain.num_mul == 2 * 840 - 840
