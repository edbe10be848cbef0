"""Recipes that are based on others: merging, names, and what is refused."""

import json
import re
from pathlib import Path

import pytest
import yaml

from torchadder import cli, recipes
from torchadder.training import RecipeError, fit


@pytest.fixture
def write(tmp_path):
    def file(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return file


def test_a_file_states_only_what_differs(write):
    path = write("mine.yaml", "base: cifar10_resnet20_adder\nepochs: 3\noptimizer: {lr: 0.2}\n")
    mine, base = recipes.load(path), recipes.load("cifar10_resnet20_adder")
    assert (mine.epochs, mine.optimizer.lr) == (3, 0.2)
    assert (mine.optimizer.weight_decay, mine.data) == (base.optimizer.weight_decay, base.data)
    assert mine.model == base.model
    assert mine.name == "mine"


def test_sections_are_merged_and_everything_else_is_replaced(write):
    write(
        "old.yaml",
        "data: {source: a, mean: [0.1, 0.2], std: [1.0, 2.0]}\n"
        "model: {name: lenet5_bn, conv: {type: adder, grad: sign}, kwargs: {feature_dim: 2}}\n",
    )
    values = recipes.read(
        write("new.yaml", "base: old.yaml\ndata: {mean: [0.5]}\nmodel: {conv: {type: conv}}\n")
    )
    assert values["data"] == {"source": "a", "mean": [0.5], "std": [1.0, 2.0]}
    assert values["model"]["conv"] == {"type": "conv"}
    assert values["model"]["kwargs"] == {"feature_dim": 2}


def test_null_takes_a_value_of_the_base_back(write):
    write("old.yaml", "optimizer: {eta: 0.3}\ndata: {mean: [0.1]}\n")
    recipe = recipes.load(write("new.yaml", "base: old.yaml\noptimizer: {eta: null}\n"))
    assert recipe.optimizer.eta is None
    assert recipe.data.mean == [0.1]


def test_bases_of_bases_and_files_beside_the_file(write):
    write("sub/one.yaml", "epochs: 5\nseed: 1\nname: one\n")
    write("sub/two.yaml", "base: one.yaml\nseed: 2\n")
    recipe = recipes.load(write("three.yaml", "base: sub/two.yaml\n"))
    assert (recipe.epochs, recipe.seed, recipe.name) == (5, 2, "three")


def test_a_stated_name_is_kept_and_never_inherited(write):
    write("old.yaml", "name: something\n")
    assert recipes.load(write("new.yaml", "base: old.yaml\n")).name == "new"
    assert recipes.load(write("other.yaml", "base: old.yaml\nname: mine\n")).name == "mine"
    assert recipes.load(write("plain.yaml", "epochs: 3\n")).name == "plain"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.yaml": "base: a.yaml\n"}, "a.yaml -> a.yaml comes back to where it was"),
        (
            {"a.yaml": "base: b.yaml\n", "b.yaml": "base: sub/../a.yaml\n"},
            r"a.yaml -> b.yaml -> a.yaml comes back to where it was",
        ),
        (
            {"a.yaml": "base: cifar10_resnet20_addr\n"},
            r"a.yaml: base: unknown recipe 'cifar10_resnet20_addr'; did you mean cifar10_resnet20_",
        ),
        ({"a.yaml": "base: gone.yaml\n"}, "base: recipe 'gone.yaml': no such file"),
        ({"a.yaml": "base: [b, c]\n"}, r"base is \['b', 'c'\]; a recipe's name or file is wanted"),
        ({"a.yaml": "base: b.yaml\n", "b.yaml": "epoch: 3\n"}, r"b.yaml: unknown key epoch; "),
        ({"a.yaml": "base: b.yaml\n", "b.yaml": "- 3\n"}, r"b.yaml: holds \[3\]; keys"),
        (
            {"a.yaml": "base: mnist_lenet5bn_conv\ndata: {base: x}\n"},
            r"a.yaml: unknown key data.base",
        ),
    ],
)
def test_what_is_refused(write, files, message):
    for name, text in {"sub/x.yaml": "", **files}.items():
        path = write(name, text)
        first = path if name == "a.yaml" else None
        if first:
            wanted = first
    with pytest.raises(RecipeError, match=message) as caught:
        recipes.load(wanted)
    assert "\n" not in str(caught.value)


def test_the_command_line_takes_such_a_file_and_overrides_it(write, monkeypatch):
    trained = []
    monkeypatch.setattr("torchadder.training.fit", lambda recipe, **_: trained.append(recipe))
    monkeypatch.setattr("torchadder.cli.train._report", lambda result: None)
    path = write("mine.yaml", "base: mnist_lenet5bn_adder\nepochs: 3\noptimizer: {lr: 0.2}\n")
    assert cli.main(["train", path, "--epochs", "7", "--data.augment=crop"]) == 0
    want = recipes.load(path, {"epochs": 7, "data.augment": "crop"})
    assert trained == [want]
    assert (want.optimizer.lr, want.name) == (0.2, "mine")


def test_help_explains_base(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert "A file with `base: OTHER` takes over the values" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_run_keeps_the_merged_recipe(write, tmp_path):
    path = write("mine.yaml", "base: mnist_lenet5bn_conv\ndata: {batch_size: 16}\n")
    small = {"epochs": 1, "trainer.limit_train_batches": 1, "trainer.limit_val_batches": 1}
    recipe = recipes.load(path, small | {"trainer.threads": 1})
    folder = fit(recipe, output=tmp_path / "run").folder
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    assert "base" not in kept
    assert kept == json.loads(json.dumps(recipe.to_dict()))


def test_the_example_of_the_documentation(write):
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    (text,) = [
        block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "base" in block
    ]
    recipe = recipes.load(write("mine.yaml", text))
    assert (recipe.distill.alpha, recipe.distill.beta, recipe.optimizer.eta) == (1.0, 5.0, None)
    assert recipe.model.name == "resnet20"
