"""From a table to trainings."""

from pathlib import Path

import pytest

from torchadder import recipes
from torchadder.reproduce import TABLES, make_plan
from torchadder.reproduce.plan import ReproduceError, difference
from torchadder.training import RecipeError
from torchadder.training.recipe import from_dict

MNIST = TABLES["mnist"]


def test_small_budgets_first_then_seed_by_seed():
    plan = make_plan(MNIST, Path("out"), budgets=[4, 2], num_seeds=2, rows=["*_conv", "*_adder"])
    assert [(job.epochs, job.seed, job.row.key) for job in plan.jobs] == [
        (epochs, seed, row)
        for epochs in (2, 4)
        for seed in (0, 1)
        for row in ("lenet5bn_conv", "lenet5bn_adder")
    ]
    assert len({job.folder for job in plan.jobs}) == len(plan.jobs)
    for job in plan.jobs:
        assert (job.recipe.epochs, job.recipe.seed) == (job.epochs, job.seed)


def test_without_a_budget_rows_take_that_of_the_table():
    plan = make_plan(TABLES["imagenet"], Path("out"))
    assert plan.budgets == (150,)
    assert {job.recipe.epochs for job in plan.jobs} == {150}


def test_teachers_come_along_and_teach_with_their_own_seed_and_budget():
    plan = make_plan(MNIST, Path("out"), budgets=[3], num_seeds=2, rows=["lenet5bn_pkkd_fixed"])
    assert [job.row.key for job in plan.jobs] == ["lenet5bn_conv", "lenet5bn_pkkd_fixed"] * 2
    for teacher, student in zip(plan.jobs[::2], plan.jobs[1::2], strict=True):
        assert student.teacher == teacher.folder
        weights = teacher.folder / "checkpoints" / "last.safetensors"
        assert student.recipe.distill.teacher_checkpoint == str(weights)
        assert student.seed == teacher.seed


def test_overrides_reach_every_row():
    overrides = {"data.source": "folder", "optimizer.lr": 0.05, "trainer.threads": 1}
    plan = make_plan(MNIST, Path("out"), overrides=overrides)
    for job in plan.jobs:
        recipe = job.recipe
        assert (recipe.data.source, recipe.optimizer.lr) == ("folder", 0.05)
        assert recipe.trainer.threads == 1


def test_the_command_gives_the_recipe_of_the_job():
    import shlex

    from torchadder.cli.train import rewrite

    overrides = {"data.mean": [0.5], "trainer.limit_train_batches": 3}
    rows = ["lenet5bn_pkkd_fixed"]
    for job in make_plan(MNIST, Path("out"), budgets=[2], rows=rows, overrides=overrides).jobs:
        words = shlex.split(job.command)
        assert words[:3] == ["torchadder", "train", job.row.recipe]
        recipe, *options = rewrite(words[2:])[1:]
        given = dict(option.removeprefix("--").split("=", 1) for option in options)
        assert given.pop("output") == str(job.folder)
        assert given.pop("origin") == job.row.recipe
        import json

        import yaml

        values = json.loads(recipe)
        for key, value in given.items():
            *sections, last = key.split(".")
            target = values
            for section in sections:
                target = target.setdefault(section, {})
            target[last] = yaml.safe_load(value)
        assert from_dict(values) == job.recipe


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": [0, 5]}, r"budget = 0, 5: epochs >= 1 are wanted"),
        ({"budgets": []}, r"epochs >= 1 are wanted"),
        ({"num_seeds": 0}, r"seeds = 0: at least 1 is wanted"),
        ({"rows": ["lenet5bn_cnn"]}, r"mnist has no row 'lenet5bn_cnn'; it has lenet5bn_conv, "),
        ({"overrides": {"model.name": "resnet20"}}, r"model.name = 'resnet20': this differs"),
        ({"overrides": {"distill.alpha": 1}}, r"distill.alpha = 1: this differs between the rows"),
        ({"overrides": {"epochs": 3}}, r"epochs = 3: this differs between the rows"),
        ({"overrides": {"data.sauce": 3}}, r"unknown key data.sauce; the nearest known key is"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ReproduceError, match=message) as caught:
        make_plan(MNIST, Path("out"), **options)
    assert "\n" not in str(caught.value)


def test_values_out_of_range_are_refused_before_anything_begins():
    with pytest.raises(RecipeError, match=r"optimizer.lr = -1"):
        make_plan(MNIST, Path("out"), overrides={"optimizer.lr": -1.0})
    message = r"resnet20_snapshot: distill.cycles = 4: 2 .. epochs = 1 .*leave the row out with"
    with pytest.raises(RecipeError, match=message):
        make_plan(TABLES["distillers"], Path("out"), budgets=[1])


def test_difference_ignores_where_a_run_computes_and_what_it_records():
    recipe = recipes.load("mnist_lenet5bn_conv")
    changes = {"threads": 7, "accelerator": "cpu", "record_stability": 50}
    same = recipes.load("mnist_lenet5bn_conv", {f"trainer.{k}": v for k, v in changes.items()})
    other = recipes.load("mnist_lenet5bn_conv", {"data.augment": "crop"})
    assert difference(recipe, same) is None
    assert difference(recipe, other) == "data.augment is 'crop' there and 'none' now"
