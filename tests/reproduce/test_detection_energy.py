"""The energy table of the detection paper: counted anew, shown, written, recorded."""

import csv
import json
from pathlib import Path

import pytest
import torch

from torchadder import cli
from torchadder.reproduce import counted, detection_energy
from torchadder.reproduce.detection_energy import GROUPS, count_groups

RESULTS = Path(__file__).parents[2] / "results" / "detection_energy"
FCOS, RETINA_640 = GROUPS[0], GROUPS[5]


@pytest.fixture(scope="module")
def rows():
    found = count_groups((FCOS, RETINA_640))
    return {(row.group.detector, row.row.label): row for row in found}


def test_printed_figures_of_fcos_come_out_within_half_a_percent(rows):
    wanted = {
        "conv": (214.7, 214.7, 987.7),
        "B": (129.9, 299.5, 750.2),
        "B+N": (112.9, 316.5, 702.7),
    }
    for label, (num_mul, num_add, energy_mj) in wanted.items():
        found = rows["fcos", label].counted
        assert found.num_mul / 1e9 == pytest.approx(num_mul, rel=5e-3)
        assert found.num_add / 1e9 == pytest.approx(num_add, rel=5e-3)
        assert found.energy_mj() == pytest.approx(energy_mj, rel=5e-3)
        printed = rows["fcos", label].row.printed
        assert (printed.num_mul, printed.num_add) == (str(num_mul), str(num_add))


def test_taps_by_hand(rows):
    """FCOS at 800x1344: channels times windows times positions, part by part."""
    p3, p4, p5, p6, p7 = 100 * 168, 50 * 84, 25 * 42, 13 * 21, 7 * 11
    square = 9 * 256 * 256
    laterals = 256 * (512 * p3 + 1024 * p4 + 2048 * p5)
    neck = laterals + square * (p3 + p4 + p5 + p6 + p7)
    last = 9 * 256 * (80 + 4 + 1)
    head = (8 * square + last) * (p3 + p4 + p5 + p6 + p7)
    stem = 3 * 49 * 64 * 400 * 672
    assert rows["fcos", "B"].counted.num_mul == stem + neck + head
    assert rows["fcos", "B+N"].counted.num_mul == stem + head
    total = rows["fcos", "conv"].counted.num_mul
    assert rows["fcos", "B+N"].counted.num_add == 2 * (total - stem - head) + stem + head
    # R-PAFPN: a layer of stride 2 onto P4 and P5, and one on each of the two sums.
    further = rows["fcos", "B+N, R-PAFPN"].counted.num_add - rows["fcos", "B+N"].counted.num_add
    assert further == 2 * (2 * square * (p4 + p5))
    assert rows["fcos", "B+N+H"].counted.num_mul == stem + last * (p3 + p4 + p5 + p6 + p7)


def test_savings_are_those_of_the_supplement(rows):
    row = rows["fcos", "B+N"]
    assert round(row.saved(), 2) == 0.29
    assert round(row.saved(torch.int8), 2) == 0.35
    assert rows["fcos", "B+N, R-PAFPN"].saved() < row.saved()
    assert rows["fcos", "conv"].saved() == 0


def test_the_papers_rule_gives_the_printed_figures(rows):
    for row in rows.values():
        if row.by_paper is None:
            assert row.row.printed is None
            continue
        for part in row.deviations(row.by_paper):
            assert abs(part) < 6e-4, (row.group.title, row.row.label)


@pytest.mark.slow
def test_the_papers_rule_in_the_whole_table():
    for row in count_groups():
        if row.by_paper is None:
            continue
        worst = max(abs(part) for part in row.deviations(row.by_paper))
        if (row.group.title.startswith("FCOS, ResNet-101"), row.row.label) == (True, "B"):
            assert worst > 0.1
        else:
            assert worst < 1e-3, (row.group.title, row.row.label)


def test_recorded_results_are_what_is_counted(rows):
    with (RESULTS / "table.csv").open() as file:
        recorded = list(csv.DictReader(file))
    assert len(recorded) == sum(len(group.rows) for group in GROUPS)
    for row in rows.values():
        values = {key: str(value) for key, value in counted._values(row).items()}
        assert values in recorded
    facts = json.loads((RESULTS / "provenance.json").read_text())
    assert facts["command"].startswith("torchadder reproduce detection-energy")


def test_command(rows, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(detection_energy, "GROUPS", (FCOS,))
    folder = tmp_path / "table"
    assert cli.main(["reproduce", "detection-energy", "--output", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "112.9 / 316.5 / 702.6" in out
    assert "(1) the paper's B+N detectors have an R-PAFPN" in out
    assert {path.name for path in folder.iterdir()} == {"table.csv", "table.md", "provenance.json"}
    page = (folder / "table.md").read_text()
    assert page.startswith("# Operations and energy of adder detectors\n")
    assert "| conv | 214.7 | 214.73 | = | 214.7 | 214.73 | = | 987.7 | 987.8 |" in page
    assert page.count("\n| ") == 1 + 1 + len(FCOS.rows)


def test_the_documentation_tells_the_figures(rows):
    docs = RESULTS.parents[1] / "docs"
    page = (docs / "detection.md").read_text()
    for label in ("conv", "B", "B+N", "B+N, R-PAFPN", "B+N+H"):
        found = rows["fcos", label].counted
        assert f"{found.num_mul / 1e9:.2f} / {found.num_add / 1e9:.2f}" in page
        assert f"{found.energy_mj():.1f}" in page
    assert "`detection-energy`" in (docs / "reproduce.md").read_text()


def test_the_list_names_it(capsys):
    assert cli.main(["reproduce", "--list"]) == 0
    listed = " ".join(capsys.readouterr().out.split())
    assert "detection-energy Operations and energy" in listed


@pytest.mark.parametrize(
    "options", [["--budget=5"], ["--seeds=2"], ["--rows=conv"], ["--dry-run"], ["--optimizer.lr=1"]]
)
def test_options_of_trainings_are_refused(options, capsys, tmp_path):
    folder = tmp_path / "table"
    arguments = ["reproduce", "detection-energy", f"--output={folder}", *options]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    name = options[0].partition("=")[0]
    assert f"detection-energy is counted, not trained: {name} has no meaning there" in error
    assert error.count("\n") == 1
    assert not folder.exists()


def test_a_misspelt_name_finds_it(capsys):
    assert cli.main(["reproduce", "detection-enrgy"]) == 2
    assert "did you mean 'detection-energy'?" in capsys.readouterr().err
