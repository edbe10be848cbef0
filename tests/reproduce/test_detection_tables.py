"""Tables of detectors: average precision instead of accuracy."""

import csv
from pathlib import Path

import pytest

from torchadder.cli.reproduce import report
from torchadder.reproduce import TABLES, make_plan
from torchadder.reproduce.drawing import draw
from torchadder.reproduce.plan import ReproduceError
from torchadder.reproduce.results import collect
from torchadder.reproduce.writing import markdown, write_csv
from written_runs import write_run

ORIGIN = {"command": "torchadder reproduce", "date": "today", "versions": {"torch": "2"}}
SWITCHES = ("adder_bn_fpn", "adder_bn_pafpn", "adder_bn_frozen", "adder_bn_clip")


def write(job, figures):
    """A run whose `metrics.csv` has average precisions, AP50 a tenth above AP."""
    folder = write_run(job, figures)
    rows = [
        {"epoch": epoch, "val_ap": ap, "val_ap50": ap + 0.1, "seconds": 2.0}
        for epoch, ap in enumerate(figures, 1)
    ]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def results(tmp_path):
    plan = make_plan(TABLES["neudet"], tmp_path, budgets=[2], rows=["*_conv", "*_adder_bn"])
    for job, figures in zip(plan.jobs, [[0.2, 0.3], [0.3, 0.25]], strict=True):
        write(job, figures)
    return collect(plan.table, plan.jobs)


def test_the_rows_that_were_asked_for():
    for name in ("neudet", "bccd"):
        keys = [row.key for row in TABLES[name].rows]
        wanted = ("conv", "adder_b", "adder_bn", *SWITCHES)
        assert {f"fcos_r18_{method}" for method in wanted} <= set(keys)
    assert TABLES["voc"].figure.column == "val_voc_ap"


def test_a_table_of_average_precisions(results, tmp_path):
    write_csv(tmp_path, results)
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["ap"]) for row in rows] == [30.0, 25.0]
    assert [float(row["ap50"]) for row in rows] == [40.0, 35.0]
    assert [float(row["best_ap"]) for row in rows] == [30.0, 30.0]
    assert float(rows[1]["gain"]) == -5.0
    page = markdown(results, ORIGIN)
    assert "| row | AP | printed | difference | gain | AP50 |" in page
    assert "| FCOS | 30.00 | - | - | - | 40.00 |" in page
    assert "AP is that on the validation images" in page
    assert "shorter side 200, longer at most 200, mirrored 50%" in page
    assert "224x224 pixels" in page
    assert {path.name for path in draw(tmp_path, results)} == {"table.png", "table-dark.png"}


def test_names_of_rows_stand_on_a_narrow_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = ["*_conv", "*_adder_bn_fpn"]
    plan = make_plan(TABLES["neudet"], tmp_path, budgets=[1], num_seeds=2, rows=rows)
    for job, ap in zip(plan.jobs, [0.2, 0.3, 0.6, 0.1], strict=True):
        write(job, [ap])
    report(plan.output, collect(plan.table, plan.jobs))
    shown = capsys.readouterr().out
    (line,) = [line.split("  ") for line in shown.splitlines() if "Adder FCOS, B+N, FPN" in line]
    cells = [cell.strip() for cell in line if cell.strip()]
    assert cells[1:3] == ["20.00 ± 14.14", "30.00 ± 14.14"]
    assert cells[-1] == "2/2"
    assert "printed" not in shown  # no paper prints these


def test_what_rows_share_can_be_changed_and_what_makes_them_cannot():
    table, output = TABLES["bccd"], Path("runs/x")
    plan = make_plan(table, output, overrides={"detection.neck_channels": 32})
    assert {job.recipe.detection.neck_channels for job in plan.jobs} == {32}
    with pytest.raises(ReproduceError, match=r"detection.neck = 'fpn': this differs between"):
        make_plan(table, output, overrides={"detection.neck": "fpn"})
