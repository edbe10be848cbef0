"""The tables as data."""

import functools
import re
from pathlib import Path

import pytest

from torchadder import recipes
from torchadder.reproduce import TABLES
from torchadder.reproduce.tables import FIXED_TEACHER

ROOT = Path(__file__).parents[2]

load = functools.cache(recipes.load)

TABLE_NAMES = ("mnist", "cifar10", "cifar100", "imagenet", "distillers", "ablation")


def test_the_promised_tables_exist():
    assert {*TABLE_NAMES, "cnn-distillation"} <= set(TABLES)
    assert all(name == table.name for name, table in TABLES.items())


@pytest.mark.parametrize("net", ["resnet20", "vggsmall", "resnet32"])
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_the_rows_that_were_asked_for(dataset, net):
    methods = ("conv", "adder", "kd", "pkkd", "pkkd_fixed", "pkkd_nokernel")
    keys = [row.key for row in TABLES[dataset].rows]
    assert {f"{net}_{method}" for method in methods} <= set(keys)


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_rows_of_a_table(table):
    names = [row.recipe for row in table.rows]
    assert len(set(names)) == len({row.key for row in table.rows}) == len(names)
    assert set(names) <= set(recipes.names())
    before = []
    for row in table.rows:
        assert row.teacher is None or row.teacher in before  # rows are trained in this order
        assert row.baseline is None or row.baseline in names
        before.append(row.recipe)


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_rows_share_images_order_augmentation_and_optimizer(table):
    loaded = [load(row.recipe) for row in table.rows]
    for recipe in loaded:
        assert recipe.data == loaded[0].data
        assert recipe.optimizer == loaded[0].optimizer
        assert recipe.schedule == loaded[0].schedule
        assert recipe.trainer == loaded[0].trainer
        assert recipe.seed == loaded[0].seed


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_a_row_has_a_teacher_where_its_recipe_wants_a_trained_one(table):
    for row in table.rows:
        recipe = load(row.recipe)
        wants = recipe.method != "supervised" and recipe.distill.progressive is False
        assert (row.teacher is not None) == wants == (row.key.split("_", 1)[1] in FIXED_TEACHER)
        if row.teacher is not None:
            teacher = load(row.teacher)
            assert teacher.model.conv == recipe.distill.teacher_conv
            assert teacher.model.name == recipe.model.name
            path = f"runs/{row.teacher}/checkpoints/last.safetensors"
            assert recipe.distill.teacher_checkpoint == path


def test_printed_figures():
    printed = {
        row.recipe: row.printed.accuracy
        for table in TABLES.values()
        for row in table.rows
        if row.printed is not None
    }
    assert printed["cifar10_resnet20_adder"] == 91.84
    assert printed["cifar100_resnet20_pkkd"] == 69.93
    assert printed["cifar10_resnet20_fsp"] == 92.22
    assert printed["imagenet_resnet50_pkkd"] == 76.8
    # PKKD gains about 1.1 points on ResNet-20, as its paper says.
    gain = printed["cifar10_resnet20_pkkd"] - printed["cifar10_resnet20_adder"]
    assert gain == pytest.approx(1.12)
    assert not any("kd_progressive" in name or "nokernel" in name for name in printed)


def test_the_documentation_lists_every_table():
    page = (ROOT / "docs" / "reproduce.md").read_text()
    for name in TABLES:
        assert f"`{name}`" in page
    for command in re.findall(r"^torchadder reproduce ([a-z]\S*)", page, re.MULTILINE):
        assert command in TABLES
