import csv
import json
import subprocess
import sys
import warnings

import pytest

from torchadder import cli, recipes

SMALL = [
    "--epochs",
    "1",
    "--limit-train-batches",
    "2",
    "--limit-val-batches",
    "2",
    "--threads",
    "1",
]


def lines(capsys):
    captured = capsys.readouterr()
    return captured.out, captured.err


def fails(capsys, *argv):
    """The one line that a call with bad input writes."""
    assert cli.main(argv) == 2
    _, err = lines(capsys)
    assert err.startswith("torchadder: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("torchadder: error: ").strip()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    argv = ["train", "mnist_lenet5bn_adder", *SMALL, "--output", str(folder)]
    assert cli.main(argv) == 0
    return folder


@pytest.mark.parametrize("command", [None, "train", "evaluate", "predict"])
def test_help(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([*([command] if command else []), "--help"])
    assert stop.value.code == 0
    out, _ = lines(capsys)
    words = ["--optimizer.lr", "Learning rate at the start"] if command == "train" else ["usage:"]
    assert all(word in out for word in words)


def test_help_does_not_import_what_it_does_not_need():
    code = (
        "import sys, torchadder.cli\n"
        "try: torchadder.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'lightning', 'datasets', 'torchvision', 'matplotlib'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_version_and_module_call():
    result = subprocess.run(
        [sys.executable, "-m", "torchadder", "--version"], capture_output=True, text=True
    )
    assert result.stdout.startswith("torchadder ")
    result = subprocess.run(
        [sys.executable, "-m", "torchadder", "trian"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr == ("torchadder: error: unknown command 'trian'; did you mean 'train'?\n")


def test_no_command(capsys):
    assert cli.main([]) == 2
    assert "Available subcommands" in lines(capsys)[0]


def test_list(capsys):
    assert cli.main(["train", "--list"]) == 0
    out, _ = lines(capsys)
    assert [line.split()[0] for line in out.splitlines()] == recipes.names()


def test_a_recipe_is_shown_as_a_file_that_does_the_same(capsys, tmp_path):
    name = "cifar10_resnet20_pkkd"
    assert cli.main(["train", name, "--epochs", "7", "--threads=1", "--show"]) == 0
    out, _ = lines(capsys)
    assert out.startswith("# ResNet-20 as an adder net, distilled")
    assert "# Expected: 92.96 %." in out.splitlines()
    assert "#" in out.splitlines()
    path = tmp_path / f"{name}.yaml"
    path.write_text(out)
    assert recipes.load(str(path)) == recipes.load(name, {"epochs": 7, "trainer.threads": 1})
    assert cli.main(["train", str(path), "--show"]) == 0
    assert lines(capsys)[0] == out
    assert "no recipe given" in fails(capsys, "train", "--show")


def test_train_writes_a_run_with_the_overrides(run_folder):
    recipe = recipes.load(str(run_folder / "config.yaml"))
    assert (recipe.epochs, recipe.trainer.limit_train_batches) == (1, 2)
    assert recipe.name == "mnist_lenet5bn_adder"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nonsense"], "unknown recipe 'nonsense'"),
        (["mnist_lenet5bn_conv", "--optimizer.lrr", "1"], "did you mean '--optimizer.lr'"),
        (["mnist_lenet5bn_conv", "--optimiser.lr=1"], "did you mean '--optimizer.lr'"),
        (["mnist_lenet5bn_conv", "--optimizer.lr", "abc"], "optimizer.lr = abc: float is wanted"),
        (["mnist_lenet5bn_conv", "--epochs", "0"], "epochs = 0: at least 1 is wanted"),
        (["mnist_lenet5bn_conv", "--epochs"], "--epochs: expected one argument"),
        (["mnist_lenet5bn_conv", "more"], "one recipe is wanted"),
        (["mnist_lenet5bn_conv", "--model.name", "resnet21"], "the nearest names are resnet32"),
        (["mnist_lenet5bn_conv", "--data.source", "./nowhere"], "no such folder"),
        (["mnist_lenet5bn_conv", "--resume", "somewhere"], "leave RECIPE out"),
        (["--resume", "nowhere"], "no run folder"),
        (["--resume", "some", "--output", "other"], "--resume goes on in some; leave --output out"),
        (["--resume", "some", "--trainer.devices", "{"], "--trainer.devices {: cannot be read"),
        ([], "no recipe given"),
    ],
)
def test_bad_train_options(capsys, argv, message):
    assert message in fails(capsys, "train", *argv)


def test_unknown_key_in_a_file(capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("optimizer:\n  learning: 1\n")
    assert f"recipe {path}: unknown key optimizer.learning" in fails(capsys, "train", str(path))


def test_a_used_folder_is_refused(capsys, run_folder):
    argv = ["train", "mnist_lenet5bn_conv", *SMALL, "--output", str(run_folder)]
    assert "nothing in it is overwritten" in fails(capsys, *argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["quantize", "nowhere"],
        ["export", "--to", "c", "nowhere", "folder"],
        ["predict", "nowhere", "images"],
        ["diagnose", "nowhere"],
        ["diagnose", "nowhere", "--stability"],
    ],
)
@pytest.mark.parametrize("threads", ["0", "-1"])
def test_no_threads(capsys, argv, threads):
    line = fails(capsys, *argv, f"--threads={threads}")
    assert line == f"--threads = {threads}: at least 1 is wanted"


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="unknown recipe"):
        cli.main(["train", "nonsense", "--debug"])


def test_interrupts_end_with_130(capsys, monkeypatch):
    from torchadder.cli import train

    def interrupted(args):
        raise KeyboardInterrupt("interrupted after 1 of 2 epochs")

    monkeypatch.setattr(train, "run", interrupted)
    assert cli.main(["train", "mnist_lenet5bn_conv"]) == 130
    assert lines(capsys)[1] == "torchadder: error: interrupted after 1 of 2 epochs\n"


def test_warnings_are_one_line(capsys, monkeypatch):
    from torchadder.cli import train

    def shows(args):
        print(warnings.formatwarning("two\nlines", UserWarning, "file.py", 1), end="")

    before = warnings.formatwarning
    monkeypatch.setattr(train, "run", shows)
    assert cli.main(["train", "mnist_lenet5bn_conv"]) == 0
    assert lines(capsys)[0] == "torchadder: warning: two lines\n"
    assert warnings.formatwarning is before


def test_evaluate(capsys, run_folder):
    assert cli.main(["evaluate", str(run_folder), "--json", "--threads", "1"]) == 0
    result = json.loads(lines(capsys)[0])
    assert result["num_images"] == 1000
    assert 0 <= result["accuracy"] <= result["top5"] <= 1
    assert cli.main(["evaluate", str(run_folder / "checkpoints" / "last.safetensors")]) == 0
    out, _ = lines(capsys)
    assert all(word in out for word in ("accuracy", "top-5", "loss", "multiplications", "energy"))


def test_evaluate_refuses_other_checkpoints(capsys, run_folder, tmp_path):
    assert "no such" in fails(capsys, "evaluate", str(tmp_path / "x.safetensors"))
    state = run_folder / "checkpoints" / "best.ckpt"
    assert "its weights are in" in fails(capsys, "evaluate", str(state))
    whole = (run_folder / "checkpoints" / "best.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[:-50])
    assert "cut.safetensors" in fails(capsys, "evaluate", str(cut))


def test_predict(capsys, run_folder, tmp_path):
    import numpy as np
    import PIL.Image

    images = tmp_path / "images"
    images.mkdir()
    for index in range(3):
        pixels = np.full((28, 28), 80 * index, dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(images / f"{index}.png")
    table = tmp_path / "classes.csv"
    argv = ["predict", str(run_folder), str(images), "--top", "2"]
    assert cli.main([*argv, "--csv", str(table)]) == 0
    assert len(lines(capsys)[0].splitlines()) == 3
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["error"] for row in rows] == [""] * 3
    assert float(rows[0]["probability1"]) >= float(rows[0]["probability2"])
    assert "is not overwritten" in fails(capsys, *argv, "--csv", str(table))
    (images / "bad.png").write_bytes(b"no image")
    assert "bad.png: cannot be decoded" in fails(capsys, *argv)
    assert "no such file or folder" in fails(capsys, "predict", str(run_folder), "nowhere")
    assert "--top = 0" in fails(capsys, *argv[:-1], "0")


def test_predict_asks_for_the_folder_of_the_table_first(capsys, tmp_path):
    table = tmp_path / "none" / "x.csv"
    line = fails(
        capsys, "predict", str(tmp_path / "no.safetensors"), str(tmp_path), "--csv", str(table)
    )
    assert f"--csv {str(table)!r}: there is no folder {str(table.parent)!r}" in line
