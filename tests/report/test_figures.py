"""Figures hold what they were given, cut nothing off, and leave matplotlib's settings alone."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from torchadder.report import figures
from torchadder.report.alignment_figure import alignment
from torchadder.report.detection import Panel, draw_panels, draw_precision
from torchadder.report.evaluation import LayerWeights, Mistake
from torchadder.report.figures import Cloud, Curve, WeightRow
from torchadder.report.kernel_space import Sample
from torchadder.report.kernel_space_figure import kernel_space
from torchadder.report.style import DARK, DPI, LIGHT, THEMES, save

DIGITS = [str(digit) for digit in range(10)]


def _rows(epochs, prefix=""):
    return [
        {
            "epoch": epoch,
            f"{prefix}train_accuracy": 1 - 0.5 / epoch,
            f"{prefix}train_loss": 1.0 / epoch,
            f"{prefix}val_accuracy": 1 - 0.6 / epoch,
            f"{prefix}val_loss": 1.1 / epoch,
            "train_ce": 1.0 / epoch,
            "train_kd": 2.0 / epoch,
            "sigma/conv2/student": 3.0 + epoch,
            "sigma/conv2/teacher": 2.0 + epoch,
        }
        for epoch in range(1, epochs + 1)
    ]


def _weights(count=5000, name="conv2"):
    return LayerWeights(name, True, np.random.default_rng(0).laplace(size=count).astype("f4"))


def _curves(epochs):
    return [Curve(kind, kind, _rows(epochs)) for kind in LIGHT.nets]


def _counts(num_classes):
    counts = np.random.default_rng(0).poisson(0.3, (num_classes, num_classes))
    np.fill_diagonal(counts, 1000)
    return counts


def _cloud(name):
    rng = np.random.default_rng(1)
    return Cloud(name, rng.normal(size=(200, 2)) * [30, 4], rng.integers(0, 10, 200))


def _mistakes(count, channels):
    image = np.full((8, 8, channels), 0.5, "f4")
    return [Mistake(image, index % 10, (index + 1) % 10, 0.99) for index in range(count)]


def _samples(layer):
    values = 400 * np.random.default_rng(0).laplace(size=5000)
    kernel = np.exp(np.clip(values / 400, -6, 6))
    return [
        Sample(layer, side, side == "student", "features", stage, array)
        for stage, array in (("before", values), ("kernel", kernel))
        for side in ("student", "teacher")
    ]


DRAWINGS = {
    "curves": lambda theme: figures.learning_curves(_curves(12), theme),
    "curves of one epoch": lambda theme: figures.learning_curves(_curves(1), theme),
    "curves of many epochs": lambda theme: figures.learning_curves(_curves(400), theme),
    "clouds": lambda theme: figures.feature_clouds(
        [_cloud("CNN"), _cloud("Adder net")], DIGITS, theme
    ),
    "weights": lambda theme: figures.weight_histograms(
        [WeightRow("CNN", "conv", [_weights()] * 3), WeightRow("Adder net", "adder", [_weights()])],
        theme,
    ),
    "digits": lambda theme: figures.confusion_matrix(_counts(10), DIGITS, "adder", theme),
    "words": lambda theme: figures.confusion_matrix(
        _counts(12), [f"long class name {i}" for i in range(12)], "conv", theme
    ),
    "hundred classes": lambda theme: figures.confusion_matrix(
        _counts(100), [f"class {i}" for i in range(100)], "pkkd", theme
    ),
    "mistakes": lambda theme: figures.misclassified(_mistakes(11, 1), DIGITS, theme),
    "one mistake": lambda theme: figures.misclassified(_mistakes(1, 3), DIGITS, theme),
    "distillation": lambda theme: figures.distillation(
        _rows(12),
        {"train_ce": "cross-entropy", "train_kd": "soft labels"},
        {"sigma/conv2/student": "conv2, student", "sigma/conv2/teacher": "conv2, teacher"},
        theme,
    ),
    "alignment": lambda theme: alignment(
        [{"epoch": e, "alignment/layer1.0.conv1": 0.1 * e, "alignment/b": -0.01} for e in (1, 2)],
        {"alignment/layer1.0.conv1": "layer1.0.conv1", "alignment/b": "b"},
        theme,
    ),
    "kernel space": lambda theme: kernel_space(_samples("layer3.2.conv2"), "features", theme),
    "distillation without kernels": lambda theme: figures.distillation(
        _rows(3), {"train_ce": "cross-entropy"}, {}, theme
    ),
}


def _texts(figure):
    return [text for text in figure.findobj(matplotlib.text.Text) if text.get_text().strip()]


@pytest.mark.parametrize("name", DRAWINGS)
def test_no_text_is_cut_off_and_settings_stay(name):
    before = dict(matplotlib.rcParams)
    figure = DRAWINGS[name](LIGHT)
    assert isinstance(figure, Figure)
    FigureCanvasAgg(figure).draw()
    edge = figure.bbox
    for text in _texts(figure):
        if not text.get_visible() or (text.axes and not text.axes.get_visible()):
            continue
        box = text.get_window_extent()
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= edge.x1 and box.y1 <= edge.y1
        # Tick labels beyond the limits of an axis exist, but are not drawn.
        is_tick = text in [label for axes in figure.axes for label in _hidden_ticks(axes)]
        assert inside or is_tick, f"{text.get_text()!r} reaches beyond the figure: {box}"
    assert dict(matplotlib.rcParams) == before


def _hidden_ticks(axes):
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        low, high = sorted((low, high))
        for tick in axis.get_major_ticks():
            if not axes.axison or not low <= tick.get_loc() <= high:
                yield tick.label1
                yield tick.label2


def test_curves_show_error_in_percent_and_the_column_that_was_named():
    rows = [{"epoch": 1, "val_accuracy": 0.75, "val_loss": 0.4, "train_ce": 0.25}]
    figure = figures.learning_curves([Curve("x", "pkkd", rows, "train_ce")], LIGHT)
    error, loss = figure.axes
    assert [list(line.get_ydata()) for line in error.get_lines()] == [[25.0]]
    assert [list(line.get_ydata()) for line in loss.get_lines()] == [[0.25], [0.4]]


def test_clouds_have_equal_scales_and_keep_every_point():
    figure = figures.feature_clouds([_cloud("CNN")], DIGITS, LIGHT)
    axes = figure.axes[0]
    assert np.ptp(axes.get_xlim()) == pytest.approx(np.ptp(axes.get_ylim()))
    assert axes.get_box_aspect() == 1
    points = np.concatenate([c.get_offsets() for c in axes.collections])
    assert len(points) == 200
    assert (points > [axes.get_xlim()[0], axes.get_ylim()[0]]).all()
    assert (points < [axes.get_xlim()[1], axes.get_ylim()[1]]).all()


def test_histograms_are_densities_of_all_weights():
    layer = _weights(20_000)
    axes = figures.weight_histograms([WeightRow("", "adder", [layer])], LIGHT).axes[0]
    heights, edges, _ = axes.patches[0].get_data()
    inside = np.mean((layer.values >= edges[0]) & (layer.values <= edges[-1]))
    assert np.sum(heights * np.diff(edges)) == pytest.approx(inside)
    assert inside > 0.99
    assert any("Laplace by" in text.get_text() for text in axes.texts)


def test_confusion_matrix_prints_every_count_but_zeros():
    counts = np.array([[5, 0], [3, 7]])
    axes = figures.confusion_matrix(counts, ["a", "b"], "adder", LIGHT).axes[0]
    shown = {(text.get_position(), text.get_text()) for text in axes.texts}
    assert shown == {((0.5, 0.5), "5"), ((0.5, 1.5), "3"), ((1.5, 1.5), "7")}


@pytest.mark.parametrize("theme", THEMES)
def test_text_on_every_colour_can_be_read(theme):
    for colour in theme.nets.values():
        for strength in np.linspace(0, 1, 9):
            behind = theme.ramp(colour)(strength)
            text = theme.readable_on(behind)
            # 3 : 1 is what the Web Content Accessibility Guidelines ask for large or bold text.
            assert _contrast(text, behind) >= 3


def _contrast(first, second):
    levels = []
    for colour in (first, second):
        rgb = np.array(matplotlib.colors.to_rgb(colour))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        levels.append(linear @ [0.2126, 0.7152, 0.0722] + 0.05)
    return max(levels) / min(levels)


def test_spread_keeps_both_ends():
    layers = [_weights(10, str(index)) for index in range(20)]
    assert [layer.name for layer in figures.spread(layers, 6)] == ["0", "4", "8", "11", "15", "19"]
    assert figures.spread(layers[:3], 6) == layers[:3]


HARD_NAMES = ["price_$1_$2", "$\\alpha$ {", "\N{CJK UNIFIED IDEOGRAPH-732B}", "a_b^c \\$"]


def test_names_are_no_formulas_and_may_lack_glyphs(tmp_path):
    """Classes, layers and folders are called what they are called; warnings would be errors."""
    cloud = Cloud(HARD_NAMES[0], np.random.default_rng(1).normal(size=(40, 2)), np.arange(40) % 4)
    rows = [WeightRow("", "adder", [_weights(name=HARD_NAMES[0])])]
    drawn = {
        "clouds": lambda theme: figures.feature_clouds([cloud], HARD_NAMES, theme),
        "mistakes": lambda theme: figures.misclassified(_mistakes(3, 3), 3 * HARD_NAMES, theme),
        "counts": lambda theme: figures.confusion_matrix(_counts(4), HARD_NAMES, "adder", theme),
        "weights": lambda theme: figures.weight_histograms(rows, theme),
    }
    for stem, function in drawn.items():
        figure = function(LIGHT)
        assert any(HARD_NAMES[0] in text.get_text() for text in _texts(figure))
        assert save([figure, function(DARK)], tmp_path, stem)[0].is_file()


def test_names_of_detected_classes_are_no_formulas(tmp_path):
    precision = {name: np.linspace(1, 0, 101) for name in HARD_NAMES}
    draw_precision(tmp_path, precision, dict.fromkeys(HARD_NAMES, 0.5), "adder")
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    boxes = np.array([[2.0, 2, 20, 20]] * 4)
    draw_panels(tmp_path / "boxes.png", [Panel(HARD_NAMES[0], image, boxes, HARD_NAMES, range(4))])
    assert (tmp_path / "boxes.png").is_file()


def test_both_themes_are_saved(tmp_path):
    drawn = [figures.learning_curves(_curves(2), theme) for theme in THEMES]
    light, dark = save(drawn, tmp_path, "curves")
    assert (light.name, dark.name) == ("curves.png", "curves-dark.png")
    for path, theme in ((light, LIGHT), (dark, DARK)):
        pixels = matplotlib.image.imread(path)
        assert pixels.shape[1] == figures.WIDTH * DPI
        assert pixels[0, 0, :3] == pytest.approx(
            matplotlib.colors.to_rgb(theme.background), abs=0.01
        )
