"""Sentences say what the numbers say, whichever way these fall."""

import numpy as np
import torch

from torchadder import energy, models
from torchadder.report import sentences
from torchadder.report.page import NO_BREAK
from torchadder.report.statistics import Fit, WeightFits


def _plain(text):
    return text.replace(NO_BREAK, " ")


def _correct(count, total=1000):
    return np.arange(total) < count


def _accuracy(first, second):
    return _plain(sentences.accuracy_sentence("the adder net", first, "the CNN", second))


def test_a_clear_difference_is_called_one():
    text = _accuracy(_correct(900), _correct(950))
    assert text.startswith("The adder net gets 90.0 % of the 1,000 validation images right, ")
    assert "5.0 points less than the CNN (95.0 %)" in text
    assert "0 images only by the former, 50 images only by the latter" in text
    assert "more than chance explains" in text
    assert "p < 0.001" in text


def test_a_small_difference_is_not():
    text = _accuracy(_correct(951), _correct(950))
    assert "0.1 points more than the CNN" in text
    assert "1 image only by the former" in text
    assert "too few to tell the two apart" in text


def test_ties():
    assert _accuracy(_correct(950), _correct(950)).endswith("exactly the same images as the CNN.")
    other = ~_correct(50)
    assert "as many as the CNN: 50 images only by the former" in _accuracy(_correct(950), other)


def test_energy_in_both_directions():
    conv = energy.count(models.build("lenet5_bn", conv="conv"), (1, 1, 28, 28))
    adder = energy.count(models.build("lenet5_bn", conv="adder"), (1, 1, 28, 28))
    less = _plain(sentences.energy_sentence("the adder net", adder, "the CNN", conv))
    factor = conv.energy_pj / adder.energy_pj
    assert less.endswith(f": {factor:.3g} times less.")
    assert f"({adder.num_mul / 1e3:.2f}K against {conv.num_mul / 1e3:.2f}K)" in less
    more = _plain(sentences.energy_sentence("the CNN", conv, "the adder net", adder))
    assert more.endswith(f": {factor:.3g} times more.")
    same = _plain(sentences.energy_sentence("the CNN", conv, "its twin", conv))
    assert same.endswith(": the same.")
    assert "as many multiplications" in same


def test_nets_without_multiplications():
    none = energy.count(torch.nn.ReLU(), (1, 4))
    conv = energy.count(torch.nn.Conv2d(1, 1, 1), (1, 1, 2, 2))
    assert "more multiplications (4 against 0)" in sentences.energy_sentence("a", conv, "b", none)
    assert sentences.energy_sentence("a", none, "b", none).endswith(": the same.")


def test_clouds_as_in_the_paper_and_not():
    as_printed = _plain(sentences.cloud_sentence(0.95, 0.55))
    assert "95 % points outwards" in as_printed
    assert "as in figure 1" in as_printed
    assert "too" not in as_printed
    assert "far from rays" not in as_printed
    assert "long, too" in sentences.cloud_sentence(0.95, 0.8)
    assert "far from rays" in sentences.cloud_sentence(0.6, 0.5)
    assert "not seen here" in sentences.cloud_sentence(0.6, 0.7)
    assert "In the adder net all images" in sentences.cloud_sentence(0.6, None)
    assert "In the CNN and in the adder net" in sentences.cloud_sentence(None, None)


def _fits(better):
    good, bad = Fit(0.0, 1.0, -1.0), Fit(0.0, 1.0, -2.0)
    return WeightFits(10, *((good, bad) if better == "Laplace" else (bad, good)))


def test_weights_as_in_the_paper_and_not():
    laplace, normal = _fits("Laplace"), _fits("normal")
    text = sentences.weight_sentences([normal] * 3, [laplace] * 3, 12)
    assert text[-1].endswith("Both hold here.")
    assert "All 3 of the inner layers of the CNN are fitted better by the normal" in text[0]
    text = sentences.weight_sentences([normal] * 3, [normal, laplace], 1)
    assert text[1].endswith("Here the latter holds in every layer, the former does not.")
    assert text[2].endswith("had 1 epoch to leave it.")
    assert "fits 1 better and the normal distribution 1." in text[0]
    assert sentences.weight_sentences([laplace], [laplace], 1)[1].endswith("the latter does not.")
    assert sentences.weight_sentences([laplace], [normal], 1)[1].endswith(
        "Here neither holds in every layer."
    )


def _row(epoch, train, val):
    return {"epoch": epoch, "train_accuracy": train, "val_accuracy": val}


def test_a_slow_start_is_explained_and_overfitting_is_not():
    start = [_row(1, 0.5, 0.1), _row(2, 0.9, 0.1), _row(3, 0.95, 0.94)]
    (text,) = sentences.trailing_sentences("the adder net", start)
    assert "(epoch 2: 10 % against 90 %)" in _plain(text)
    assert sentences.trailing_sentences("the adder net", [_row(1, 0.9, 0.9)]) == []
    assert sentences.trailing_sentences("the adder net", [_row(1, 0.9, 0.3)]) == []
