"""The alignment of two nets, against a plain version."""

import pytest
import torch

from torchadder.distill import capture, layer_alignment, linear_cka


def plain_hsic(first, second):
    """Song et al. 2012, estimator 1, over all quadruples of different samples."""
    n = len(first)
    k, l = first.flatten(1) @ first.flatten(1).T, second.flatten(1) @ second.flatten(1).T
    total = 0.0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def features(size=6, width=3):
    return torch.randn(size, width, dtype=torch.float64)


def test_equals_the_average_over_quadruples():
    first, second = features(), features(width=5)
    want = plain_hsic(first, second) / torch.sqrt(
        plain_hsic(first, first) * plain_hsic(second, second)
    )
    torch.testing.assert_close(linear_cka(first, second), want)


def test_is_blind_to_rotation_scale_and_offset():
    first, second = features(20), features(20, 7)
    rotation = torch.linalg.qr(features(7, 7))[0]
    want = linear_cka(first, second)
    torch.testing.assert_close(linear_cka(first - 300, 5 * second @ rotation + 9), want)
    torch.testing.assert_close(linear_cka(second, first), want)
    torch.testing.assert_close(linear_cka(first, 3 * first - 1), torch.ones_like(want))


def test_unrelated_features_have_none_however_many_there_are():
    values = [linear_cka(features(32, 2000), features(32, 2000)).item() for _ in range(20)]
    # A single value spreads by 1.4 / n = 0.045; the biased estimator gives nearly 1 here.
    assert abs(sum(values) / 20) < 0.05
    assert max(values) < 0.25


def test_constant_features_have_none():
    assert linear_cka(torch.ones(8, 3), torch.randn(8, 3)).item() == 0


def test_large_offsets_cost_no_digits():
    first, second = torch.randn(64, 50), torch.randn(64, 50)
    second = second + first
    want = linear_cka(first, second)
    torch.testing.assert_close(linear_cka(first - 300, second), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    # Products of 5000 features leave the range of float16, and most digits of bfloat16.
    first = 3 * torch.randn(16, 5000)
    second = first + torch.randn(16, 5000)
    net = torch.nn.Identity()
    want = linear_cka(first, second)
    with torch.autocast("cpu", dtype=dtype):
        got = linear_cka(first, second)
        alignment = layer_alignment(net, net, [""], first)[""]
    assert torch.equal(got, want)
    torch.testing.assert_close(alignment, torch.ones(()))


def test_layers_of_two_nets(adder_net, conv_net, taps):
    student, teacher = adder_net(width=6).eval(), conv_net(width=9).eval()
    images = torch.randn(12, 2, 8, 8)
    got = layer_alignment(student, teacher, taps, images)
    read = []
    for net in (student, teacher):
        with torch.no_grad(), capture(net, taps, detach=True) as outputs:
            net(images)
        read.append(dict(outputs))
    assert list(got) == list(taps)
    for name, value in got.items():
        torch.testing.assert_close(value, linear_cka(read[0][name], read[1][name]))
    assert not any(m._forward_hooks for net in (student, teacher) for m in net.modules())
    assert layer_alignment(student, student, taps, images)["body.0"] == pytest.approx(1.0)


def test_compiled_nets_are_read_too(adder_net, conv_net, taps):
    student, teacher = adder_net().eval(), conv_net().eval()
    images = torch.randn(12, 2, 8, 8)
    want = layer_alignment(student, teacher, taps, images)
    student.compile(backend="eager")
    student(images)
    got = layer_alignment(student, teacher, taps, images)
    assert {name: value.item() for name, value in got.items()} == pytest.approx(
        {name: value.item() for name, value in want.items()}, rel=1e-5
    )
    torch._dynamo.reset()


def test_too_few_samples(adder_net, conv_net, taps):
    with pytest.raises(ValueError, match="at least 4, got 3 and 3"):
        linear_cka(torch.randn(3, 2), torch.randn(3, 2))
    with pytest.raises(ValueError, match=r"same samples on both sides, .* got 5 and 6"):
        linear_cka(torch.randn(5, 2), torch.randn(6, 2))
    with pytest.raises(ValueError, match=r"has no layer 'body\.77'"):
        layer_alignment(adder_net(), conv_net(), ["body.77"], torch.randn(4, 2, 8, 8))
    with pytest.raises(ValueError, match="at least 4 images, got 2"):
        layer_alignment(adder_net(), conv_net(), taps, torch.randn(2, 2, 8, 8))
