"""The table, the curve, the signs of masking."""

import csv
import json

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from attacked_nets import labelled, small
from torchadder.robustness import (
    ATTACKS,
    Normalised,
    batch_statistics,
    evaluate,
    fgsm,
    input_gradient,
    mifgsm,
    pgd,
    transfer,
    zero_gradients,
)
from torchadder.robustness.masking import find_signs
from torchadder.robustness.report import Curve, Measurement, Zeros
from torchadder.robustness.rows import ROWS, Settings
from torchadder.robustness.zeros import ZeroGradients

QUICK = {"strong_iterations": 3, "restarts": 2, "queries": 5, "epsilons": (0.02, 0.6)}


@pytest.fixture(scope="module")
def adder_report():
    model = small("adder")
    images, labels = labelled(model)
    seen = []
    source = small("conv")
    report = evaluate(
        model,
        images,
        labels,
        epsilon=0.05,
        batch_size=5,
        transfer_from=source,
        progress=seen.append,
        **QUICK,
    )
    return model, images, labels, report, seen


def test_every_row_in_every_setting(adder_report):
    report = adder_report[3]
    found = {(m.row, m.statistics, m.gradient) for m in report.measurements}
    settings = [(s, g) for s in ("running", "batch") for g in ("surrogate", "sign")]
    white = ("fgsm", "bim7", "pgd7", "mim5", "rfgsm5", "pgd50")
    want = {(row, *setting) for row in white for setting in settings}
    want |= {
        (row, s, None) for row in ("clean", "square", "transfer") for s in ("running", "batch")
    }
    assert found == want
    assert {(z.statistics, z.gradient) for z in report.zeros} == set(settings)
    assert {(c.statistics, c.gradient) for c in report.curves} == set(settings)
    assert report.accuracy("clean", "running") == pytest.approx(10 / 12)


def test_rows_are_the_attacks_with_the_settings_around_them(adder_report):
    model, images, labels, report, _ = adder_report
    options = {"epsilon": 0.05, "step": 0.0125, "batch_size": 5}
    with batch_statistics(model), input_gradient(model, "sign"):
        want = mifgsm(model, images, labels, iterations=5, **options).accuracy
    assert report.accuracy("mim5", "batch", "sign") == pytest.approx(want)
    found = pgd(model, images, labels, iterations=3, restarts=2, **options)
    assert report.accuracy("pgd50", "running", "surrogate") == pytest.approx(found.accuracy)
    with pytest.raises(KeyError):
        report.accuracy("apgd", "running", "sign")


@pytest.mark.parametrize(("step", "alpha"), [(0.01, 0.01), (0.05, 0.025), (0.2, 0.025)])
def test_rfgsm_leaves_the_gradient_half_of_epsilon(step, alpha):
    settings = Settings(epsilon=0.05, step=step, batch_size=5)
    assert ROWS["rfgsm5"].options(settings)["alpha"] == pytest.approx(alpha)


def test_a_curve_starts_clean_and_falls(adder_report):
    for curve in adder_report[3].curves:
        assert curve.epsilons == (0.0, 0.02, 0.6)
        clean = adder_report[3].accuracy("clean", curve.statistics)
        assert curve.accuracies[0] == pytest.approx(clean)
        if curve.statistics == "running":
            assert list(curve.accuracies) == sorted(curve.accuracies, reverse=True)


def test_progress_and_expected_time(adder_report):
    seen = adder_report[4]
    shares = [step.share for step in seen]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] < 1
    assert all(step.expected_s > 0 and step.text for step in seen)


def test_text_csv_markdown_and_json(adder_report, tmp_path):
    report = adder_report[3]
    text = str(report)
    rows = ("clean", "FGSM", "BIM-7", "PGD-3 x2", "Square-5", "transfer, MI-FGSM-10")
    assert all(any(line.startswith(row) for line in text.splitlines()) for row in rows)
    assert "batch BN, sign" in text
    assert "83.3" in text
    assert "Batch BN: batches of 4 in the given order" in text  # 12 images by at most 5
    assert report.verdict in text
    markdown = report.to_markdown()
    assert "| attack | running BN, surrogate | running BN, sign | batch BN, surrogate |" in markdown
    assert "| PGD, 255 epsilon | 0 | 5.1 | 153 |" in markdown
    report.to_csv(tmp_path / "r.csv")
    lines = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert len(lines) == len(report.measurements) + 4 * 3
    line = next(line for line in lines if line["row"] == "clean" and line["batch_norm"] == "batch")
    accuracy = report.accuracy("clean", "batch")
    assert float(line["accuracy"]) == accuracy
    assert int(line["num_right"]) == round(12 * accuracy)
    described = json.loads(json.dumps(report.to_dict()))
    assert described["num_images"] == 12
    assert described["settings"]["epsilon"] == 0.05
    assert described["verdict"] == report.verdict


def test_examples_are_attacked_images(adder_report):
    model, _, _, report, _ = adder_report
    examples = report.examples
    assert len(examples.clean) == len(examples.adversarial) == len(examples.named) == 8
    assert float((examples.adversarial - examples.clean).abs().max()) <= 0.05
    with torch.no_grad():
        assert torch.equal(model(examples.adversarial).argmax(1), examples.named)
    fooled = int((examples.named != examples.labels).sum())
    assert fooled > 0


def test_a_plain_cnn_has_one_gradient_and_a_net_without_batch_norm_one_setting():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    images = torch.rand(4, 3, 2, 2)
    report = evaluate(model, images, torch.zeros(4, dtype=torch.int64), rows=["fgsm"], epsilons=())
    assert [(m.row, m.statistics, m.gradient) for m in report.measurements] == [
        ("fgsm", "running", "true")
    ]
    assert str(report).splitlines()[0].split() == ["attack", "running", "BN"]


def test_the_model_is_left_as_it_was(adder_report):
    model = adder_report[0]
    assert model.layer.grad == "clip"
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m.training or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradients": ["sign"]}, r"'sign' does not fit, Small has no adder layers; true would"),
        ({"rows": ["fgsm", "apgd"]}, "rows must be of clean, fgsm"),
        ({"rows": ["transfer"]}, "wants another model, transfer_from"),
        ({"rows": "fgsm"}, "rows must be a list"),
        ({"statistics": ["train"]}, "statistics must be of running, batch"),
        ({"epsilon": -1}, "epsilon must be a number of at least 0, got -1"),
        ({"epsilon": 0}, "epsilon must be above 0"),
        ({"epsilons": (0.2, 0.1)}, "above 0 and ascending"),
        ({"labels": None}, "labels are missing"),
        ({"images": torch.rand(12, 3, 8, 8) * 255}, r"images must lie in \[0, 1\]"),
        ({"transfer_from": small(classes=5)}, "4 classes of the model, got 5"),
        ({"transfer_from": small().train()}, "transfer_from is in training mode"),
        (
            {"transfer_from": small(), "rows": ["clean", "fgsm"]},
            "transfer_from is given, but rows leave 'transfer' out, got clean, fgsm",
        ),
        ({"batch_size": 1}, "at least 2 images in every batch, got 12 images with batch_size = 1"),
        ({"images": torch.rand(1, 3, 8, 8), "labels": torch.tensor([0])}, "got 1 images"),
        (
            {"images": torch.rand(3, 3, 8, 8), "labels": torch.tensor([0, 1, 2]), "batch_size": 2},
            "got 3 images with batch_size = 2",
        ),
        ({"images": torch.rand(12, 192)}, r"must have shape \(N, C, H, W\), got \(12, 192\)"),
        ({"step": 0.0}, "step must be a positive number, got 0"),
        ({"strong_iterations": 0}, "strong_iterations must be at least 1, got 0"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"curve_iterations": 0}, "curve_iterations must be at least 1, got 0"),
    ],
)
def test_bad_input(net, batch, changes, message):
    """Said before anything is attacked."""
    arguments = dict(zip(("images", "labels"), batch, strict=True)) | changes
    with pytest.raises(ValueError, match=message):
        evaluate(net, **arguments, progress=lambda step: pytest.fail(step.text))


def test_a_single_image_can_be_evaluated_with_running_statistics(net):
    images, labels = labelled(net)
    options = {"rows": ["clean", "fgsm"], "statistics": ["running"], "epsilons": ()}
    report = evaluate(net, images[:1], labels[:1], **options)
    assert report.accuracy("clean", "running") == 1


@pytest.mark.parametrize(
    ("rows", "statistics"),
    [(["clean", "bim7"], ["running"]), (["fgsm", "mim5"], ["batch"]), (["rfgsm5", "fgsm"], None)],
)
def test_examples_are_those_of_the_strongest_row_that_was_run(net, rows, statistics):
    images, labels = labelled(net)
    options = {"rows": rows, "statistics": statistics, "batch_size": 6, "epsilons": ()}
    report = evaluate(net, images, labels, epsilon=0.05, **options)
    own = [m for m in report.measurements if m.statistics == (statistics or ["running"])[0]]
    strongest = min((m for m in own if m.gradient), key=lambda m: m.num_right)
    assert report.examples.label == strongest.label
    num_fooled = int((report.examples.named != report.examples.labels).sum())
    assert num_fooled == min(8, 12 - strongest.num_right)


def test_rows_without_a_gradient_leave_no_examples(net):
    images, labels = labelled(net)
    options = {"rows": ["clean", "square"], "queries": 2, "epsilons": ()}
    assert evaluate(net, images, labels, **options).examples is None


class NoFloat64(TorchDispatchMode):
    """A device without float64, such as Apple's."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.dtype == torch.float64:
            raise TypeError(f"{func}: this device has no float64")
        return found


def test_a_device_without_float64(net):
    images, labels = labelled(net)
    bare = {"rows": ["clean"], "epsilons": (), "batch_size": 6}
    attacked = pgd(net, images, labels, epsilon=0.05)
    with NoFloat64():
        model = Normalised(net, [0.5] * 3, [0.25] * 3).eval()
        report = evaluate(model, images, labels, **bare)
        shares = zero_gradients(model, images, labels)
        found = attacked.accuracy, attacked.zero_share
    assert report.measurements[0].calls_per_image == 1
    assert shares.images == 0
    assert found == (1 - int(attacked.success.sum()) / 12, 0)


@pytest.mark.gpu
def test_labels_that_lie_elsewhere_than_the_images():
    model = small()
    images, labels = labelled(model)
    options = {"rows": ["clean", "fgsm"], "epsilons": (0.1,), "batch_size": 6}
    report = evaluate(model.cuda(), images.cuda(), labels, **options)
    assert report.accuracy("clean", "running") == pytest.approx(10 / 12)
    assert report.examples.labels.device.type == "cpu"


@pytest.mark.gpu
def test_images_that_lie_elsewhere_than_the_model():
    model = small().cuda()
    images, labels = labelled(small())
    for attack in (fgsm, pgd):
        found = attack(model, images, labels, epsilon=0.1)
        assert found.images.device.type == "cpu"
        assert (found.images - images).abs().max() <= 0.1


def test_switches_that_do_not_fit_the_model(adder):
    images, labels = labelled(adder)
    with pytest.raises(ValueError, match="has adder layers; surrogate and sign would"):
        evaluate(adder, images, labels, gradients=["true"])
    bare = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval()
    with pytest.raises(ValueError, match="wants a model with batch norm, Sequential has none"):
        evaluate(bare, images, labels, statistics=["batch"])
    with pytest.raises(ValueError, match="training mode"):
        evaluate(adder.train(), images, labels)


def test_transfer_makes_images_on_one_net_and_tries_them_on_another(net):
    images, labels = labelled(net)
    source = small("conv", seed=3)
    options = {"epsilon": 0.1, "step": 0.03, "iterations": 4}
    made = ATTACKS["mifgsm"](source, images, labels, everything=True, **options)
    found = transfer(source, net, images, labels, **options)
    right = ~found.wrong_before
    assert torch.equal(found.images[right], made.images[right])
    with torch.no_grad():
        assert torch.equal(found.success, net(found.images).argmax(1) != labels)
    itself = transfer(net, net, images, labels, **options)
    assert torch.equal(itself.success, mifgsm(net, images, labels, **options).success)
    with pytest.raises(ValueError, match="attack must be one of fgsm"):
        transfer(source, net, images, labels, attack="apgd")


def test_zero_gradients_are_counted():
    class Half(nn.Module):
        def forward(self, x):
            row = torch.relu(x.flatten(1) - 0.5)
            return torch.stack([row[:, 0] + 1, 0 * row[:, 1]], 1)

    images = torch.full((4, 1, 2, 2), 0.25)
    images[3] = 0.75
    shares = zero_gradients(Half().eval(), images, torch.zeros(4, dtype=torch.int64))
    assert (shares.images, shares.pixels) == (0.75, 15 / 16)


def measured(kind, right, gradient="surrogate", statistics="running", total=100):
    is_right = torch.arange(total) < right
    return Measurement("row", kind, kind, statistics, gradient, is_right, 1.0, 0.0)


def names(*measurements, curves=(), zeros=()):
    signs, num_checks = find_signs(measurements, curves, zeros)
    assert len(signs) <= num_checks
    return [sign.name for sign in signs]


CLEAN = measured("clean", 95, None)


@pytest.mark.parametrize(
    ("one_step", "iterative", "is_sign"),
    [(30, 29.4, True), (30, 30, True), (30, 40, True), (30, 20, False), (4, 4, False), (90, 90, 0)],
)
def test_iterative_no_stronger_than_one_step(one_step, iterative, is_sign):
    rows = [measured("clean", 950, None, total=1000)]
    rows.append(measured("one-step", 10 * one_step, total=1000))
    rows.append(measured("iterative", 10 * iterative, total=1000))
    assert names(*rows) == ["iterative no stronger than one-step"] * bool(is_sign)
    for sign in find_signs(rows, [], [])[0]:
        assert f"iterative leaves {iterative:.1f} %, not a point below the 30.0 %" in sign.text


def test_black_box_stronger_than_white_box():
    rows = [CLEAN, measured("iterative", 40), measured("black-box", 20, None)]
    assert names(*rows) == ["black-box stronger than white-box"]
    signs, _ = find_signs(rows, [], [])
    assert "black-box leaves 20.0 %, iterative leaves 40.0 %; 20 images withstand" in signs[0].text
    assert not names(CLEAN, measured("iterative", 20), measured("black-box", 40, None))
    other = measured("black-box", 5, None, "batch")
    assert not names(CLEAN, measured("iterative", 20), other)


def test_surrogate_weaker_than_the_true_gradient():
    assert names(measured("iterative", 40), measured("iterative", 10, "sign")) == [
        "surrogate weaker than the true gradient"
    ]
    assert not names(measured("iterative", 10), measured("iterative", 40, "sign"))


def test_surrogate_weaker_than_the_true_gradient_in_a_small_ball():
    """Where the attacks' own epsilon leaves nothing, the curve still tells the two apart."""
    radii = (0.0, 1 / 255, 2 / 255, 8 / 255)
    weak = Curve("batch", "surrogate", radii, (0.8, 0.35, 0.15, 0.0))
    strong = Curve("batch", "sign", radii, (0.8, 0.2, 0.1, 0.0))
    signs, _ = find_signs([], [weak, strong], [])
    (sign,) = signs
    assert sign.name == "surrogate weaker than the true gradient"
    assert "epsilon 1/255: PGD with the surrogate gradient leaves 35.0 %" in sign.text
    assert "the true sign 20.0 %" in sign.text
    swapped = [Curve("batch", "sign", radii, weak.accuracies)]
    swapped.append(Curve("batch", "surrogate", radii, strong.accuracies))
    assert not names(curves=swapped)
    assert not names(curves=[weak, Curve("running", "sign", radii, strong.accuracies)])


def test_accuracy_that_does_not_go_to_zero_and_zero_gradients():
    held = Curve("running", "sign", (0.0, 0.1, 0.6), (0.9, 0.5, 0.2))
    assert names(curves=[held]) == ["accuracy does not go to 0"]
    falls = Curve("running", "sign", (0.0, 0.1, 0.6), (0.9, 0.5, 0.0))
    short = Curve("running", "sign", (0.0, 0.1), (0.9, 0.5))
    assert not names(curves=[falls, short])
    assert names(zeros=[Zeros("batch", "sign", ZeroGradients(0.3, 0.5))]) == ["zero gradients"]
    assert not names(zeros=[Zeros("batch", "sign", ZeroGradients(0.0, 0.5))])


class Masked(nn.Module):
    """A linear model whose logits are so steep that float32 gradients vanish: not robust at all."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))

    def forward(self, x):
        return 1e6 * self.net(x)


def test_a_masked_model_is_seen_through():
    model = Masked().eval()
    images = torch.rand(20, 1, 3, 3)
    labels = model(images).argmax(1)
    report = evaluate(model, images, labels, epsilon=0.2, rows=["clean", "bim7", "square"])
    assert report.accuracy("bim7", "running", "true") == 1
    assert report.accuracy("square", "running") < 0.7
    found = {sign.name for sign in report.signs}
    assert found == {
        "black-box stronger than white-box",
        "accuracy does not go to 0",
        "zero gradients",
    }
    assert "do not take the higher accuracies for robustness" in report.verdict


def test_normalised():
    model = Normalised(nn.Identity(), [0.5, 0.25], [0.5, 0.25])
    x = torch.rand(2, 2, 3, 3)
    want = torch.stack([(x[:, 0] - 0.5) / 0.5, (x[:, 1] - 0.25) / 0.25], 1)
    assert torch.equal(model(x), want)
    with pytest.raises(ValueError, match="one value a channel"):
        Normalised(nn.Identity(), [0.5], [0.5, 0.5])
    for shape in ((2, 3, 3, 3), (2, 1, 3, 3), (2, 2)):
        with pytest.raises(ValueError, match=r"shape \(N, 2, H, W\), a channel for each mean, got"):
            model(torch.rand(shape))
    with pytest.raises(ValueError, match="std must be positive"):
        Normalised(nn.Identity(), [0.5], [0.0])
