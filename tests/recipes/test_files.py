"""The recipe files of the package: heads, names, and that each can be built."""

import dataclasses
import functools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from torchadder import models, recipes
from torchadder.distill import find_taps
from torchadder.reproduce import TABLES
from torchadder.training.assembly import build_task
from torchadder.training.recipe import from_dict

ROOT = Path(__file__).parents[2]
FIELDS = ("Row", "Expected", "Command", "Cost", "Measured")
NETS = {
    "lenet5bn": "lenet5_bn",
    "vggsmall": "vgg_small",
    "resnet18": "resnet18",
    "resnet18narrow": "resnet18",
    "resnet20": "resnet20",
    "resnet32": "resnet32",
    "resnet50": "resnet50",
}
SOURCES = {
    "mnist": "mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "imagenet": "data/imagenet",
    "tinyimagenet": "zh-plus/tiny-imagenet",
    "digits": "digit-scenes",
    "neudet": "data/neu_det",
    "bccd": "data/bccd",
    "coco": "data/coco",
    "voc": "data/voc",
}
NUM_CLASSES = {"mnist": 10, "cifar10": 10, "cifar100": 100, "imagenet": 1000, "tinyimagenet": 200}
NECKS = ("fpn", "pafpn", "pafpn_shortcut", "r_pafpn")
SUPERVISED = ("conv", "adder", "slac", "lp", "awn", "pgd")

load = functools.cache(recipes.load)
ROWS = [row for table in TABLES.values() for row in table.rows]


def fields(name):
    """The fields of a head, each as one line of text."""
    found = {}
    for line in recipes.header(name).splitlines():
        label = re.match(r"([A-Z]\w+): +", line)
        if label and label[1] in FIELDS:
            found[label[1]] = line[label.end() :]
        elif found and line.startswith(" "):
            found[list(found)[-1]] += " " + line.strip()
    return found


@pytest.mark.parametrize("name", recipes.names())
def test_head(name):
    head = fields(name)
    assert tuple(head) == FIELDS
    assert recipes.describe(name).endswith(".")
    assert f"torchadder train {name}" in head["Command"]
    assert re.search(r"CPU: .*GPU: ", head["Cost"])
    for cell in re.findall(r"results/[\w/.-]*\w", recipes.header(name)):
        assert (ROOT / cell).exists(), cell
    text = recipes.find(name).read_text()
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", recipes.names())
def test_name_says_what_the_recipe_is(name):
    recipe = load(name)
    dataset, net, method = name.split("_", 2)
    assert recipe.name == name
    assert recipe.data.source == SOURCES[dataset]
    assert from_dict(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe
    if net == "fcos":
        check_detector_name(recipe, method)
        return
    assert recipe.model.name == NETS[net]
    conv = recipe.model.conv
    kind = conv["type"] if isinstance(conv, dict) else conv
    assert kind == ("conv" if method.startswith("conv") else "adder")
    words = method.removeprefix("conv_").split("_")
    assert recipe.method == ("supervised" if words[0] in SUPERVISED else words[0])


def check_detector_name(recipe, method):
    detection = recipe.detection
    assert (recipe.method, recipe.model.name) == ("detection", "fcos")
    depth = re.match(r"r(\d+)_", method)
    assert detection.backbone == f"resnet{depth[1] if depth else 18}"
    kind, _, switch = re.search(r"(conv|adder_bn|adder_b)(_(\w+))?$", method).groups()
    assert detection.adder == {"conv": "", "adder_b": "B", "adder_bn": "BN"}[kind]
    neck = switch if switch in NECKS else "r_pafpn" if kind == "adder_bn" else "fpn"
    assert detection.neck == neck
    assert detection.grad == ("clip" if switch == "clip" else "sign")
    assert detection.frozen_bn == (switch == "frozen")
    assert detection.force_frozen_bn == (switch == "frozen" and kind != "conv")
    assert switch in (None, "clip", "frozen", *NECKS)


@pytest.mark.parametrize("row", dict.fromkeys(ROWS), ids=lambda row: row.recipe)
def test_a_printed_figure_is_the_one_of_the_table(row):
    head = fields(row.recipe)
    if row.printed is None:
        assert not re.search(r"\d\d\.\d+ %", head["Expected"])
        return
    assert re.match(r"[\d.]+ %", head["Expected"])[0] == f"{row.printed} %"
    top5 = re.search(r"([\d.]+) % top-5", head["Expected"])
    assert (top5 and float(top5[1])) == row.printed.top5
    paper = row.printed.source.partition(",")[0]
    assert paper in head["Row"]


def test_every_recipe_has_a_table_and_its_head_names_it():
    in_tables = {row.recipe for row in ROWS}
    assert in_tables == set(recipes.names())
    for name in recipes.names():
        command = re.search(r"torchadder reproduce (\S+) --rows (\S+)", fields(name)["Command"])
        assert command, name
        assert name in [row.recipe for row in TABLES[command[1]].rows if row.key == command[2]]


def changes(name, base):
    """Dotted keys in which two recipes differ, apart from their names."""
    from torchadder.reproduce.plan import flatten

    one, other = (flatten(load(which).to_dict()) for which in (name, base))
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)} - {"name"}


@pytest.mark.parametrize(
    ("switch", "keys"),
    [
        ("nokernel", {"kernel"}),
        ("gaussian", {"kernel"}),
        ("laplacian", {"kernel"}),
        ("magnitude", {"scale"}),
        ("batchscale", {"scale"}),
        ("constscales", {"learned_scales"}),
        ("studentscales", {"learned_scales"}),
        ("limit3", {"exponent_limit"}),
        ("limit12", {"exponent_limit"}),
        ("nomap", {"linear_map"}),
        ("nokd", {"alpha"}),
        ("sum", {"beta"}),
        ("fixed", {"progressive", "teacher_checkpoint"}),
        ("fixed_nokernel", {"progressive", "teacher_checkpoint", "kernel"}),
        ("fixed_ramp", {"progressive", "teacher_checkpoint", "ramp", "ramp_epochs"}),
        ("stageends", {"taps"}),
        ("sharedinit", {"shared_init"}),
        ("ramp", {"ramp", "ramp_epochs"}),
        ("rampteacher", {"ramp"}),
        *[(f"{key}{value}", {key}) for key in ("alpha", "beta") for value in (0.1, 0.5, "1", "10")],
        *[(f"both{value}", {"alpha", "beta"}) for value in (0.1, 0.5, "1", "10")],
    ],
)
def test_an_ablation_changes_one_thing(switch, keys):
    value = re.fullmatch(r"(alpha|beta|both|limit)([\d.]+)", switch)
    bases = ["cifar10_resnet20_pkkd"]
    bases += ["cifar100_resnet20_pkkd"] if value and value[1] != "limit" else []
    bases += ["mnist_lenet5bn_pkkd"] if switch != "stageends" else []
    for base in bases:
        assert changes(f"{base}_{switch}", base) == {f"distill.{key}" for key in keys}
        for key in keys if value else ():
            assert getattr(load(f"{base}_{switch}").distill, key) == float(value[2])


@pytest.mark.parametrize("base", ["cifar10_resnet20_pkkd", "mnist_lenet5bn_pkkd"])
def test_the_sum_over_the_layers_is_their_mean_times_their_number(base):
    recipe = load(base)
    student, teacher = (
        models.build(recipe.model.name, num_classes=10, conv=kind) for kind in ("adder", "conv")
    )
    number = len(find_taps(student, teacher))
    assert load(f"{base}_sum").distill.beta == number * recipe.distill.beta


def test_the_settings_of_the_papers():
    for name in ("cifar10_vggsmall_pkkd", "cifar100_resnet32_adder"):
        recipe = load(name)
        optimizer = recipe.optimizer
        assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (0.1, 0.9, 5e-4)
        assert (optimizer.eta, recipe.epochs, recipe.data.batch_size) == (0.2, 400, 256)
        assert (recipe.data.augment, recipe.schedule.name) == ("crop_flip", "cosine")
    recipe = load("imagenet_resnet50_pkkd")
    assert (recipe.optimizer.weight_decay, recipe.epochs, recipe.data.image_size) == (
        1e-4,
        150,
        224,
    )
    assert (recipe.distill.alpha, recipe.distill.beta) == (5.0, 5.0)


def one_step(name):
    """Builds a recipe's nets and loss for small images and takes the gradient of one batch."""
    recipe = recipes.load(name)
    dataset = name.partition("_")[0]
    if recipe.method == "detection":
        return detector_step(recipe)
    if recipe.distill.teacher_checkpoint is not None:
        # A teacher with fresh weights: that there are trained ones is the trainer's concern.
        recipe.distill = dataclasses.replace(recipe.distill, teacher_checkpoint=None)
    shape = (1, 28, 28) if dataset == "mnist" else (3, 32, 32)
    num_classes = NUM_CLASSES[dataset]
    torch.manual_seed(0)
    statistics = SimpleNamespace(mean=(0.5,) * shape[0], std=(0.25,) * shape[0])
    data = SimpleNamespace(image_shape=shape, num_classes=num_classes, preprocess=statistics)
    task = build_task(recipe, data)  # type: ignore[arg-type]
    images = torch.randn(4, *shape)
    loss = task.objective(images, torch.arange(4) % num_classes)
    loss.backward()
    return task, loss


def detector_step(recipe):
    """The same for a detector, on two small images that it does not enlarge."""
    recipe.detection = dataclasses.replace(recipe.detection, shorter=[64], longer=64)
    torch.manual_seed(0)
    split = SimpleNamespace(categories=None)
    task = build_task(recipe, SimpleNamespace(num_classes=3, val=SimpleNamespace(split=split)))
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 48.0]]), "labels": torch.tensor([2])}] * 2
    loss = task.objective(list(torch.rand(2, 3, 64, 64)), targets)
    loss.backward()
    return task, loss


def check_step(name):
    task, loss = one_step(name)
    assert torch.isfinite(loss)
    gradients = [p.grad for p in task.plain_model.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


def is_left_to_the_slow_tests(name):
    """Whether a net is large, or another recipe differs by a number of classes or blocks only."""
    pattern = r"vggsmall|imagenet|cifar100|resnet32|alpha|beta|bccd|coco|voc"
    return re.search(pattern, name) is not None


SMALL = [name for name in recipes.names() if not is_left_to_the_slow_tests(name)]


@pytest.mark.parametrize("name", SMALL)
def test_every_method_can_be_built_and_differentiated(name):
    check_step(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in recipes.names() if name not in SMALL])
def test_every_net_can_be_built_and_differentiated(name):
    check_step(name)
