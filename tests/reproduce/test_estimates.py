"""What a table will cost, from what was measured before."""

import pytest

from torchadder.reproduce import TABLES, make_plan
from torchadder.reproduce.estimates import estimate, measurements
from written_runs import CONV, write_run

COLUMNS = "recipe,epochs,seed,status,seconds_per_epoch,date,device,threads"


@pytest.fixture
def plan(tmp_path):
    rows, threads = ["lenet5bn_conv"], {"trainer.threads": 2}
    return make_plan(TABLES["mnist"], tmp_path / "new", budgets=[3], rows=rows, overrides=threads)


def write_table(folder, *runs):
    """A `runs.csv` of the CNN: seed, status, seconds, threads."""
    folder.mkdir(parents=True)
    lines = [f"{CONV},3,{a},{b},{c},2026-01-0{a + 1},Abacus,{d}" for a, b, c, d in runs]
    (folder / "runs.csv").write_text("\n".join([COLUMNS, *lines, ""]))


def seconds(plan, results):
    return sorted(value for value, _ in measurements(plan, results).get(CONV, []))


def test_tables_come_before_single_runs_and_the_plans_own_runs_before_all(plan, tmp_path):
    results = tmp_path / "results"
    assert measurements(plan, results) == {}
    other = make_plan(TABLES["mnist"], tmp_path / "x", budgets=[1], rows=["*_conv"]).jobs[0]
    results.mkdir()
    write_run(other, [0.5], seconds=9.0).rename(results / "single")
    assert seconds(plan, results) == [9.0]
    write_table(results / "table", (0, "finished", 1.0, 1), (1, "interrupted", 5.0, 1))
    assert seconds(plan, results) == [1.0]
    write_run(plan.jobs[0], [0.5] * 3, seconds=4.0)
    assert seconds(plan, results) == [4.0]


def test_a_run_of_several_tables_counts_once(plan, tmp_path):
    runs = [(0, "finished", 1.0, 2), (1, "finished", 3.0, 2)]
    write_table(tmp_path / "first", runs[0])
    write_table(tmp_path / "first" / "more", runs[1])
    write_table(tmp_path / "joined", *runs)
    assert seconds(plan, tmp_path) == [1.0, 3.0]


@pytest.mark.parametrize(
    ("threads", "want"), [((1, 2, 2), [2.0, 3.0]), ((1, 1, 4), [1.0, 2.0]), ((8, 4, 4), [2.0, 3.0])]
)
def test_the_nearest_number_of_threads_is_taken(plan, tmp_path, threads, want):
    runs = [(seed, "finished", seed + 1.0, number) for seed, number in enumerate(threads)]
    write_table(tmp_path / "table", *runs)
    assert seconds(plan, tmp_path) == want
    shown = (
        "1 thread" if max(threads) == 4 and threads[0] == threads[1] else f"{threads[1]} threads"
    )
    assert str(estimate(plan, measurements(plan, tmp_path))).endswith(f"on Abacus ({shown})")


def test_a_device_of_the_same_kind_is_taken(tmp_path):
    for seed, (kind, value) in enumerate([("cpu", 9.0), ("cuda", 1.0)]):
        write_table(tmp_path / kind, (seed, "finished", value, 2))
        path = tmp_path / kind / "runs.csv"
        header, line = path.read_text().splitlines()
        path.write_text(f"{header},device_kind\n{line.replace('Abacus', kind)},{kind}\n")
    for kind, value in (("cpu", 9.0), ("cuda", 1.0), ("mps", None)):
        one = make_plan(
            TABLES["mnist"],
            tmp_path / "new",
            budgets=[3],
            rows=["lenet5bn_conv"],
            overrides={"trainer.accelerator": kind},
        )
        assert seconds(one, tmp_path) == ([1.0, 9.0] if value is None else [value])


def test_files_of_others_are_passed_over(plan, tmp_path):
    write_table(tmp_path / "table", (0, "finished", 1.0, 1))
    for name, text in (("a", "laps\n3\n"), ("b", f"{COLUMNS}\n{CONV}\n"), ("c", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "runs.csv").write_text(text)
    with (tmp_path / "table" / "runs.csv").open("a") as file:
        for seed, threads in ((1, ""), (2, 1)):  # the first one does not say on how many threads
            file.write(f"{CONV},3,{seed},finished,2.0,2026-02-01,Abacus,{threads}\n")
    (tmp_path / "d" / "runs.csv").mkdir(parents=True)
    for name, text in (("d", '{"status": "finished", "seconds_per_epoch": 1}'), ("e", "[]")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "summary.json").write_text(text)
    assert seconds(plan, tmp_path) == [1.0, 2.0]
