"""`torchadder energy`: what it prints, what it writes, how it fails."""

import csv

import pytest
import torch

from small_detectors import scenes, settle_, small
from torchadder import cli, models, quantize_, save
from torchadder.cli.energy import energy
from torchadder.energy import count
from torchadder.energy.report import short_number


def run(capsys, *arguments):
    status = cli.main(["energy", *arguments])
    output = capsys.readouterr()
    return status, output.out, output.err


def test_one_model(capsys):
    status, out, _ = run(capsys, "--model", "resnet32", "--conv", "adder", "--input", "1,3,32,32")
    assert status == 0
    assert "resnet32 (adder)" in out
    assert "443.01K" in out
    assert "137.81M" in out


def test_models_side_by_side(capsys, tmp_path):
    path = tmp_path / "totals.csv"
    status, out, _ = run(capsys, "--model", "resnet20,lenet5_bn", "--csv", str(path))
    assert status == 0
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["num_mul"]) for row in rows] == [
        ("resnet20 (conv)", "40813184"),
        ("resnet20 (adder)", "443008"),
        ("lenet5_bn (conv)", "416520"),
        ("lenet5_bn (adder)", "118440"),
    ]
    assert all(row["model"] in out for row in rows)


def test_layers(capsys, tmp_path):
    path = tmp_path / "layers.csv"
    _, out, _ = run(
        capsys, "--model", "resnet20", "--conv", "adder", "--per-layer", "--csv", path.as_posix()
    )
    assert "layer3.2.conv2" in out
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 22
    assert sum(int(row["num_add"]) for row in rows) == 81_183_360


def test_options_change_the_count(capsys):
    _, plain, _ = run(capsys, "--model", "resnet20", "--conv", "conv")
    _, int8, _ = run(capsys, "--model", "resnet20", "--conv", "conv", "--dtype", "int8")
    _, more, _ = run(capsys, "--model", "resnet20", "--conv", "conv", "--elementwise")
    _, classes, _ = run(capsys, "--model", "resnet20", "--conv", "adder", "--num-classes", "100")
    _, grey, _ = run(capsys, "--model", "resnet20", "--conv", "conv", "--input", "1,1,28,28")
    assert "187.7 uJ" in plain
    assert "9.4 uJ" in int8
    assert "41.01M" in more
    assert "448.77K" in classes
    assert "1x1x28x28" in grey


def test_checkpoint(capsys, tmp_path):
    path = save(models.lenet5_bn(num_classes=3), tmp_path / "net.safetensors")
    status, out, _ = run(capsys, "--model", str(path))
    assert status == 0
    assert "(as saved)" in out
    assert "117.85K" in out


def test_run_folders_and_folders_named_like_a_model(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet20").mkdir()
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    save(models.lenet5_bn(), checkpoints / "best.safetensors")
    status, out, _ = run(capsys, "--model", "resnet20,run")
    assert status == 0
    assert "resnet20 (conv)" in out
    assert "run (as saved)" in out


def test_torchvision_model(capsys):
    status, out, _ = run(capsys, "--model", "torchvision.resnet18", "--conv", "conv")
    assert status == 0
    assert "1.81G" in out


@pytest.mark.parametrize("integers", [False, True])
def test_checkpoint_of_a_detector(capsys, tmp_path, integers):
    detector = small(adder="B", backbone_width=8)
    if integers:
        settle_(detector)
        quantize_(detector.eval(), [scenes()[0]])
    path = str(save(detector, tmp_path / "net.safetensors"))
    want = short_number(count(detector, [(3, 64, 96)]).num_add)
    status, out, err = run(capsys, "--model", path)
    assert (status, err) == (0, "")
    assert "3x64x96" in out
    assert want in out
    for shape in ("3,64,96", "1,3,64,96"):
        status, given, _ = run(capsys, "--model", path, "--input", shape)
        assert status == 0
        assert want in given
    assert run(capsys, "--model", path, "--input", "2,3,64,96")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet21"], "model 'resnet21' is unknown; the nearest names are"),
        (["--model", "torchvision.resnet21"], "torchvision has no model 'resnet21'"),
        (["--model", "none.safetensors"], "none.safetensors: no such checkpoint"),
        (
            ["--model", "resnet20", "--conv", "shift"],
            "conv must be adder or adder_lp or conv, got 'shift'",
        ),
        (
            ["--model", "torchvision.resnet18", "--conv", "adder_lp"],
            "conv must be conv or adder for torchvision.resnet18, got 'adder_lp'",
        ),
        (["--model", "resnet20", "--input", "3,a"], "input must be a shape such as 1,3,32,32"),
        (["--model", "resnet20", "--input", "32,32"], "input must be 3 or 4 sizes"),
        (["--model", "vgg_small", "--input", "1,3,4,4"], "at least 8x8 pixels"),
        (["--model", "resnet20", "--dtype", "int4"], "dtype must be one of float32, "),
        (["--model", "resnet20", "--num-classes", "0"], "num_classes must be an integer"),
        (["--model", "resnet20", "--csv", "/nowhere/x.csv"], "/nowhere/x.csv"),
        (["--conv", "adder"], "--conv needs --model"),
        (["--model", " ,"], "model must be at least one name, got ' ,'"),
        (
            ["--model", "torchvision.raft_small", "--num-classes", "5"],
            "num_classes = 5: torchvision's raft_small has no classes",
        ),
    ],
)
def test_errors_are_one_line(capsys, arguments, message):
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_papers(capsys, tmp_path):
    path = tmp_path / "papers.csv"
    energy(csv=str(path))
    out = capsys.readouterr().out
    with open(path, newline="") as file:
        rows = {(row["model"], row["layers"]): row for row in reversed(list(csv.DictReader(file)))}
    fcos = "torchvision.fcos_resnet50_fpn"
    assert rows["resnet32", "conv"]["num_mul"] == "69124736"
    assert rows["resnet50", "adder"]["num_add"] == "7595884544"
    # Arithmetic of the paper's own rows: 129.9 + 299.5 = 112.9 + 316.5 = 2 * 214.7.
    for layers in ("conv", "adder backbone", "adder backbone and neck"):
        row = rows[fcos, layers]
        assert int(row["num_mul"]) + int(row["num_add"]) == 2 * 214_730_342_400
        assert float(row["energy_mj"]) == pytest.approx(float(row["printed_energy_mj"]), rel=2e-3)
    for text in ("CIFAR-10", "ImageNet", "COCO", "41.17M", "40.81M", "-0.87%"):
        assert text in out


def test_counting_leaves_random_numbers_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    energy(model="lenet5_bn")
    assert torch.equal(torch.get_rng_state(), before)
