"""Pages are complete, valid and self-contained; numbers in words keep their meaning."""

import jinja2
import pytest

from torchadder.report.page import NO_BREAK, duration, energy, percent, write_page


def _plain(text):
    return text.replace(NO_BREAK, " ")


@pytest.mark.parametrize(
    ("share", "num_images", "text"),
    [
        (0.9684, 1000, "96.8 %"),
        (0.9684, 10_000, "96.84 %"),
        (1.0, 60, "100 %"),
        (0.76123, 50_000, "76.123 %"),
    ],
)
def test_percentages_have_the_digits_their_images_allow(share, num_images, text):
    assert _plain(percent(share, num_images)) == text


@pytest.mark.parametrize(
    ("energy_pj", "text"),
    [
        (0.0, "0.00 pJ"),
        (541_000, "541 nJ"),
        (1.916e6, "1.92 µJ"),
        (987.7e9, "988 mJ"),
        (9_994, "9.99 nJ"),
        (9_996, "10.0 nJ"),
        (99_960, "100 nJ"),
        (999_400, "999 nJ"),
        (999_600, "1.00 µJ"),
        (999.9e9, "1.00 J"),
    ],
)
def test_energies(energy_pj, text):
    assert _plain(energy(energy_pj)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.7, "1 min 0 s"),
        (12.3, "12 s"),
        (3599.6, "1 h 0 min"),
        (7260, "2 h 1 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_page_without_its_values_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(jinja2.UndefinedError):
        write_page("run.html.jinja", tmp_path / "report.html", title="only this")
    assert not list(tmp_path.iterdir())
