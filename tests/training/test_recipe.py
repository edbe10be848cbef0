import pytest

from torchadder import recipes
from torchadder.training import Recipe, RecipeError
from torchadder.training.recipe import explain, from_dict, keys


def test_cifar10_recipes_have_the_settings_of_the_paper():
    recipe = recipes.load("cifar10_resnet20_adder")
    optimizer = recipe.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (0.1, 0.9, 5e-4)
    assert optimizer.eta == 0.2
    assert (recipe.epochs, recipe.data.batch_size, recipe.data.augment) == (400, 256, "crop_flip")


def test_overrides_take_precedence_over_the_file_and_the_file_over_defaults(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 7\noptimizer: {lr: 1e-3}\n")
    recipe = recipes.load(str(path), {"optimizer.momentum": 0.5, "trainer.threads": 1})
    assert (recipe.epochs, recipe.optimizer.lr, recipe.optimizer.momentum) == (7, 1e-3, 0.5)
    assert recipe.trainer.threads == 1
    assert recipe.data == Recipe().data


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimizer.lrr": 1}, r"unknown key optimizer.lrr; the nearest known key is optimizer.lr"),
        ({"lr": 1}, r"unknown key lr; the nearest known key is optimizer.lr"),
        ({"optimiser.lr": 1}, r"unknown key optimiser; the nearest known key is optimizer"),
        ({"optimizer.lr": "fast"}, r"optimizer.lr = fast: float is wanted"),
        ({"epochs": 1.5}, r"epochs = 1.5: int is wanted"),
        ({"epochs": 0}, r"epochs = 0: at least 1 is wanted"),
        ({"optimizer.eta": "x"}, r"optimizer.eta = x: float or null is wanted"),
        (
            {"data.augment": "blur"},
            r"data.augment = blur: one of none, crop, crop_flip, resized_crop_flip is wanted$",
        ),
        ({"data.device_cache": "maybe"}, r"cache = maybe: one of true, false, auto is wanted$"),
        ({"model.head": "softmax"}, r"model.head = softmax: one of slac, null is wanted$"),
        ({"trainer.limit_train_batches": 1.5}, r"an int of at least 1 or a float in \(0, 1\]"),
        (
            {"trainer.gradient_clip": -1.0},
            r"gradient_clip = -1.0: a positive number or null is want",
        ),
        ({"trainer.precision": "bf16-true"}, r"precision = 'bf16-true': 32-true, 64-true, bf16-m"),
        ({"trainer.precision": "16-true"}, r"precision = '16-true': 32-true, 64-true, bf16-mixed"),
        ({"schedule.min_lr": 1.0}, r"schedule.min_lr = 1.0: 0 .. optimizer.lr=0.1"),
        ({"data": 3}, r"data is 3; keys with values are wanted"),
    ],
)
def test_errors_are_one_line_and_name_the_key(overrides, message):
    with pytest.raises(RecipeError, match=message) as caught:
        recipes.load("mnist_lenet5bn_conv", overrides)
    assert "\n" not in str(caught.value)


def test_a_fixed_teacher_wants_a_checkpoint():
    with pytest.raises(RecipeError, match=r"distill.teacher_checkpoint = None: a file of trained"):
        recipes.load("mnist_lenet5bn_pkkd", {"distill.progressive": False})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"not YAML"),
        ("", r"holds None; keys with values are wanted"),
        ("- 1", r"holds \[1\]"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        recipes.load(str(path))


def test_unknown_recipes_get_a_hint():
    with pytest.raises(RecipeError, match="did you mean mnist_lenet5bn_conv"):
        recipes.find("mnist_lenet5_conv")
    with pytest.raises(RecipeError, match="no such file"):
        recipes.find("nowhere/recipe.yaml")


def test_recipes_folder_is_the_packages_unless_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = recipes.find("mnist_lenet5bn_conv")
    assert recipes.find("recipes/mnist_lenet5bn_conv.yaml") == shipped
    with pytest.raises(RecipeError, match="no such file"):
        recipes.find("other/mnist_lenet5bn_conv.yaml")
    own = tmp_path / "recipes/mnist_lenet5bn_conv.yaml"
    own.parent.mkdir()
    own.write_text("epochs: 3\n")
    assert recipes.load("recipes/mnist_lenet5bn_conv.yaml").epochs == 3
    assert recipes.find("mnist_lenet5bn_conv") == shipped


def test_keys_are_all_keys():
    assert {"epochs", "data", "data.source", "trainer.threads"} <= set(keys())


def test_explain_keeps_what_it_does_not_know():
    assert explain("something\n  else") == "something else"


def test_recipes_do_not_share_what_they_hold():
    first = from_dict({"data": {"mean": [0.5]}})
    first.model.kwargs["feature_dim"] = 2
    first.data.mean.append(0.25)
    assert from_dict({}) == Recipe()
    assert from_dict({"data": {"mean": [0.5]}}).data.mean == [0.5]
