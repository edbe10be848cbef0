"""Figures of a robustness evaluation."""

import pytest
import torch

from attacked_nets import labelled, small
from torchadder.report.robustness_figures import accuracy_over_epsilon, perturbed, write_figures
from torchadder.report.style import THEMES, save
from torchadder.robustness import evaluate
from torchadder.robustness.report import Curve, Examples


@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark"])
def test_a_line_for_each_setting(theme):
    curves = [
        Curve("running", "sign", (0.0, 4 / 255, 0.5), (0.9, 0.4, 0.0)),
        Curve("batch", "surrogate", (0.0, 4 / 255, 0.5), (0.8, 0.7, 0.3)),
    ]
    (axes,) = accuracy_over_epsilon(curves, theme).axes
    one, other = axes.get_lines()
    assert list(one.get_ydata()) == [90.0, 40.0, 0.0]
    assert list(other.get_ydata()) == pytest.approx([80.0, 70.0, 30.0])
    assert list(one.get_xdata()) == pytest.approx([2.0, 4.0, 127.5])
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["running BN, sign gradient", "batch BN, surrogate gradient"]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_change_magnified_and_what_is_named(channels):
    clean = torch.full((2, channels, 4, 4), 0.5)
    adversarial = clean + 0.1
    examples = Examples("PGD-7", clean, adversarial, torch.tensor([0, 1]), torch.tensor([1, 1]))
    figure = perturbed(examples, 0.1, ["cat", "dog"], THEMES[0])
    panels = figure.axes
    values = [float(panel.get_images()[0].get_array().max()) for panel in panels]
    assert values == pytest.approx([0.5, 0.5, 1.0, 1.0, 0.6, 0.6])
    assert [panels[i].get_title() for i in (0, 1)] == ["cat", "dog"]
    assert [panels[i].get_xlabel() for i in (4, 5)] == ["dog", "dog"]


def test_names_of_classes_are_no_formulas(tmp_path):
    names = ["price_$1_$2", "\N{CJK UNIFIED IDEOGRAPH-732B}"]
    clean = torch.full((2, 3, 4, 4), 0.5)
    examples = Examples("PGD-7", clean, clean, torch.tensor([0, 1]), torch.tensor([1, 0]))
    save([perturbed(examples, 0.1, names, theme) for theme in THEMES], tmp_path, "images")
    assert {path.name for path in tmp_path.iterdir()} == {"images.png", "images-dark.png"}


def test_files(tmp_path):
    model = small()
    images, labels = labelled(model)
    report = evaluate(model, images, labels, rows=["clean", "fgsm"], epsilons=(0.1,))
    names = {path.name for path in write_figures(report, list("abcd"), tmp_path)}
    assert names == {path.name for path in tmp_path.iterdir()}
    assert "accuracy_over_epsilon.png" in names
    assert "perturbed_images-dark.png" in names
