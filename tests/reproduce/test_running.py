"""What is done with a plan: what is left, in order, and never over something else."""

import json

import pytest
import yaml

from torchadder import locks
from torchadder.data import DataError
from torchadder.reproduce import TABLES, make_plan, reproduce
from torchadder.reproduce.folder import ReproduceError, locked, stage
from torchadder.training import RecipeError
from written_runs import ADDER, CONV, FIXED, contents, interrupt, write_run


def quiet(words):
    """Says nothing."""


def run_names(plan):
    return [job.folder.name for job in plan.jobs]


def test_every_row_is_trained_once_in_order(plan, trainer):
    first = plan(budgets=[2], num_seeds=2)
    results = reproduce(first, say=quiet)
    assert trainer.calls == [("fit", name) for name in run_names(first)]
    assert all(run.stage == "finished" for run in results.runs)
    before = contents(first.output / "runs")
    reproduce(plan(budgets=[2], num_seeds=2), say=quiet)
    assert len(trainer.calls) == 6
    assert contents(first.output / "runs") == before


def test_the_table_is_there_after_each_training(plan, trainer):
    seen = []
    original = trainer._finish

    def look(recipe, folder):
        path = folder.parents[1] / "table.csv"
        seen.append(path.read_text().count("finished") - 1 if path.is_file() else 0)
        original(recipe, folder)

    trainer._finish = look
    reproduce(plan(budgets=[1]), say=quiet)
    assert seen == [0, 1, 2]


def test_rows_seeds_and_budgets_may_be_added(plan, trainer):
    reproduce(plan(budgets=[2], rows=["lenet5bn_conv"]), say=quiet)
    results = reproduce(plan(budgets=[1], num_seeds=2, rows=["lenet5bn_adder"]), say=quiet)
    # The table covers everything ever asked for; what was not asked for now is left open.
    assert [(line.epochs, line.row.key, line.num_finished) for line in results.lines] == [
        (1, "lenet5bn_conv", 0),
        (1, "lenet5bn_adder", 2),
        (2, "lenet5bn_conv", 1),
        (2, "lenet5bn_adder", 0),
    ]
    assert len(trainer.calls) == 3
    settings = json.loads((results.runs[0].job.folder.parents[1] / "settings.json").read_text())
    assert settings["rows"] == [CONV, ADDER]
    assert (settings["budgets"], settings["seeds"]) == ([1, 2], [0, 1])
    reproduce(plan(budgets=[2], rows=["lenet5bn_conv"]), say=quiet)
    assert len(trainer.calls) == 3


def test_rows_may_be_added_with_budgets_that_others_refuse(tmp_path, trainer):
    def plan(row, budget):
        return make_plan(TABLES["distillers"], tmp_path / "table", rows=[row], budgets=[budget])

    reproduce(plan("resnet20_conv", 1), say=quiet)
    results = reproduce(plan("resnet20_snapshot", 4), say=quiet)  # of four cycles
    lines = [(line.epochs, line.row.key, line.num_finished) for line in results.lines]
    assert lines == [
        (1, "resnet20_conv", 1),
        (4, "resnet20_conv", 0),
        (4, "resnet20_snapshot", 1),
    ]
    again = reproduce(plan("resnet20_conv", 1), say=quiet)
    assert len(trainer.calls) == 2
    assert [line.status for line in again.lines] == ["finished", "not begun", "finished"]
    with pytest.raises(RecipeError, match=r"row resnet20_snapshot: distill\.cycles = 4: 2 \.\."):
        plan("resnet20_snapshot", 1)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("budgets", None, "a list of whole numbers as budgets is wanted"),
        ("seeds", [0.5], "a list of whole numbers as seeds is wanted"),
        ("rows", [1], "a list of names as rows is wanted"),
        ("rows", "lenet5bn_conv", "a list of names as rows is wanted"),
    ],
)
def test_damaged_settings(plan, trainer, key, value, message):
    first = plan(budgets=[1], rows=["lenet5bn_conv"])
    reproduce(first, say=quiet)
    path = first.output / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ReproduceError, match=rf"settings\.json: damaged: {message}"):
        reproduce(first, say=quiet)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": {"optimizer.lr": 0.05}}, "optimizer.lr is the recipe's own there and 0.05"),
        (
            {"overrides": {"trainer.limit_train_batches": 3}},
            "trainer.limit_train_batches is the recipe's own there and 3 now",
        ),
    ],
)
def test_other_settings_are_refused_and_nothing_changes(plan, trainer, options, message):
    first = plan(budgets=[1])
    reproduce(first, say=quiet)
    before = contents(first.output)
    with pytest.raises(ReproduceError, match=message) as caught:
        reproduce(plan(budgets=[1, 2], **options), say=quiet)
    assert "nothing was overwritten" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(first.output) == before
    assert len(trainer.calls) == 3


def test_settings_taken_back_are_changed_settings(plan, trainer):
    reproduce(plan(budgets=[1], overrides={"optimizer.lr": 0.05}), say=quiet)
    with pytest.raises(ReproduceError, match=r"optimizer.lr is 0.05 there and the recipe's own"):
        reproduce(plan(budgets=[1]), say=quiet)


def test_another_place_is_no_other_setting(plan, trainer):
    reproduce(plan(budgets=[1], overrides={"trainer.threads": 1}), say=quiet)
    reproduce(plan(budgets=[1], overrides={"trainer.threads": 2}), say=quiet)
    assert len(trainer.calls) == 3


def test_another_table_is_refused(plan, trainer, tmp_path):
    reproduce(plan(budgets=[1]), say=quiet)
    before = contents(tmp_path)
    with pytest.raises(ReproduceError, match="the table is 'mnist' there and 'imagenet' now"):
        reproduce(make_plan(TABLES["imagenet"], tmp_path / "table"), say=quiet)
    assert contents(tmp_path) == before


def test_a_run_of_another_recipe_is_refused(plan, trainer):
    first = plan(budgets=[1])
    reproduce(first, say=quiet)
    config = first.jobs[1].folder / "config.yaml"
    values = yaml.safe_load(config.read_text())
    values["optimizer"]["eta"] = 0.1
    config.write_text(yaml.safe_dump(values))
    before = contents(first.output)
    with pytest.raises(ReproduceError, match=r"optimizer.eta is 0.1 there and 0.2 now"):
        reproduce(plan(budgets=[1]), say=quiet)
    assert contents(first.output) == before


def test_a_folder_with_other_things_is_refused(plan, trainer, tmp_path):
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "notes.txt").write_text("mine")
    with pytest.raises(ReproduceError, match="exists and holds no table; nothing in it is"):
        reproduce(plan(budgets=[1]), say=quiet)
    assert contents(tmp_path) == {tmp_path / "table" / "notes.txt": b"mine"}


def test_an_interrupted_run_goes_on_and_one_without_an_epoch_begins_again(plan, trainer):
    half = plan(budgets=[4])
    conv, adder, fixed = half.jobs
    interrupt(conv)
    write_run(adder, [], status="interrupted")
    (adder.folder / "tensorboard").mkdir()
    (adder.folder / "stability.csv").write_text("step,layer,quantity,value\n")
    said = []
    results = reproduce(half, say=said.append)
    assert trainer.calls == [
        ("resume", conv.folder.name),
        ("fit", adder.folder.name),
        ("fit", fixed.folder.name),
    ]
    assert all(run.stage == "finished" for run in results.runs)
    assert said[0] == "0 of 3 trainings done before"
    assert ["goes on" in said[1], "begins again" in said[2], "begins" in said[3]] == [True] * 3


def test_a_run_goes_on_where_this_call_says(plan, trainer):
    half = plan(budgets=[4], overrides={"trainer.threads": 2, "optimizer.lr": 0.05})
    interrupt(half.jobs[0])
    reproduce(half, say=quiet)
    assert trainer.places == [{"threads": 2}]


def test_a_run_killed_after_its_last_epoch_still_has_to_end(plan):
    (job, *_) = plan(budgets=[2]).jobs
    write_run(job, [0.5] * 2)
    assert stage(job.folder, 2) == "finished"
    assert stage(job.folder, 3) == "begun"
    (job.folder / "summary.json").write_text('{"name": "cut sh')
    assert stage(job.folder, 2) == "begun"
    (job.folder / "checkpoints").mkdir()
    (job.folder / "checkpoints" / "last.ckpt").write_bytes(b"state")
    assert stage(job.folder, 2) == "interrupted"


def test_a_begun_run_with_a_strangers_file_is_not_cleared(plan, trainer):
    first = plan(budgets=[1])
    write_run(first.jobs[0], [], status="interrupted")
    (first.jobs[0].folder / "notes.txt").write_text("mine")
    before = contents(first.output)
    with pytest.raises(ReproduceError, match=r"holds 'notes.txt', which no run wrote"):
        reproduce(first, say=quiet)
    assert contents(first.output) == before


def test_a_row_that_is_not_finite_is_named_and_the_others_go_on(plan, trainer):
    def stops(recipe, folder):
        is_bad = recipe.name == CONV
        job = type("Job", (), {"recipe": recipe, "folder": folder})
        reason = "step 7: the loss is nan"
        write_run(job, [0.5], status=f"stopped: {reason}" if is_bad else "finished")
        if is_bad:
            raise FloatingPointError(reason)

    trainer._finish = stops
    first = plan(budgets=[1])
    conv, adder, fixed = reproduce(first, say=quiet).lines
    assert conv.status == "seed 0 failed: step 7: the loss is nan"
    assert (adder.status, adder.spread("accuracy").mean) == ("finished", 50.0)
    # A net whose numbers are not finite teaches nobody, though it left weights.
    assert "the training of its teacher" in fixed.status
    text = (first.output / "table.md").read_text()
    assert "lenet5bn_conv, 1 epoch, seed 0: failed after 1 epoch: step 7: the loss is nan" in text
    # A later call that does not ask for the row still says what became of it.
    (again, _, _) = reproduce(plan(budgets=[1], rows=["*_adder"]), say=quiet).lines
    assert again.status == conv.status


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError])
def test_a_row_that_fails_otherwise_is_tried_again_by_the_next_call(plan, trainer, kind):
    trainer.errors[ADDER] = kind("CUDA out of memory\nTried to ...")
    results = reproduce(plan(budgets=[1]), say=quiet)
    statuses = [line.status for line in results.lines]
    assert statuses == ["finished", "seed 0 failed: CUDA out of memory Tried to ...", "finished"]
    del trainer.errors[ADDER]
    results = reproduce(plan(budgets=[1]), say=quiet)
    assert [line.status for line in results.lines] == ["finished"] * 3


def test_a_call_that_no_row_can_follow_is_an_error_and_binds_nobody(plan, trainer):
    trainer.errors[CONV] = RecipeError("trainer: abacus")
    with pytest.raises(RecipeError, match="abacus"):
        reproduce(plan(budgets=[1], overrides={"trainer.precision": "abacus"}), say=quiet)
    del trainer.errors[CONV]
    reproduce(plan(budgets=[1]), say=quiet)
    trainer.errors[ADDER] = DataError("gone")
    with pytest.raises(DataError, match="gone"):
        reproduce(plan(budgets=[2]), say=quiet)


def test_ctrl_c_ends_the_table_with_a_hint(plan, trainer):
    trainer.errors[ADDER] = KeyboardInterrupt("interrupted after 3 of 4 epochs")
    with pytest.raises(KeyboardInterrupt, match="in lenet5bn_adder, 1 epoch, seed 0; the same"):
        reproduce(plan(budgets=[1]), say=quiet)
    assert len(trainer.calls) == 2


def test_two_processes_do_not_share_a_folder(plan, trainer):
    first = plan(budgets=[1])
    with (
        locked(first.output),
        pytest.raises(ReproduceError, match="another torchadder reproduce is at work there"),
    ):
        reproduce(first, say=quiet)
    reproduce(first, say=quiet)
    assert len(trainer.calls) == 3


def test_rows_of_other_processes_are_left_to_them(plan, trainer):
    """One is finished while the first row is trained, one is still at work."""
    first = plan(budgets=[1])
    _, finished, busy = first.jobs
    original = trainer._finish

    def meanwhile(recipe, folder):
        write_run(finished, [0.75])
        busy.folder.mkdir(parents=True, exist_ok=True)
        (busy.folder / "config.yaml").touch()
        original(recipe, folder)

    trainer._finish = meanwhile
    said = []
    busy.folder.mkdir(parents=True)
    with locks.locked(busy.folder):
        results = reproduce(first, say=said.append)
    assert len(trainer.calls) == 1
    assert [line.num_finished for line in results.lines] == [1, 1, 0]
    assert any(f"{finished.name}: was finished by another process" in words for words in said)
    assert any(f"{busy.name}: is trained by another process" in words for words in said)
    assert (busy.folder / "config.yaml").is_file()
    trainer._finish = original
    results = reproduce(first, say=quiet)
    assert [line.num_finished for line in results.lines] == [1, 1, 1]


def test_runs_made_by_hand_are_picked_up(plan, trainer):
    first = plan(budgets=[1])
    for job in first.jobs[:2]:
        write_run(job, [0.75])
    results = reproduce(first, say=quiet)
    assert trainer.calls == [("fit", first.jobs[2].folder.name)]
    assert [line.spread("accuracy").mean for line in results.lines] == [75.0, 75.0, 50.0]
    assert FIXED in first.jobs[2].folder.name
