"""`torchadder quantize` on the checkpoint of a run, its table, and fine-tuning for integers."""

import csv
import json

import lightning
import pytest
import torch

import torchadder as ta
from small_nets import small_resnet
from torchadder import cli, recipes
from torchadder.quantize import Calibration, Int8Config, IntegerNet, QuantizationError
from torchadder.quantize.fake import FakeQuantization, fake_filters, fake_input
from torchadder.quantize.grids import Grid
from torchadder.tasks import Classification
from torchadder.training import fit, quantization
from torchadder.training.environment import quiet
from torchadder.training.evaluation import evaluate, open_checkpoint
from torchadder.training.quantization import QuantizedCheckpoint, calibration_batches
from torchadder.training.quantization_aware import QuantizationAware

SHORT = {"epochs": 3, "trainer.threads": 1, "trainer.accelerator": "cpu"}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantize") / "run"
    fit(recipes.load("mnist_lenet5bn_adder", SHORT), output=folder)
    return folder


def test_the_command(run_folder, tmp_path, capsys):
    output, report = tmp_path / "digits.safetensors", tmp_path / "layers.csv"
    argv = ["quantize", str(run_folder), "--output", str(output), "--report", str(report)]
    argv += ["--images", "100", "--groups", "2"]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    said = dict(line.split("  ", 1) for line in out.splitlines() if line[:8] in
                ("float32 ", "integers", "same cla", "checkpoi"))  # fmt: skip
    whole = evaluate(run_folder, accelerator="cpu")
    integers = evaluate(output, accelerator="cpu")
    assert said["float32"].split()[0] == f"{100 * whole['accuracy']:.2f}"
    assert said["integers"].split()[0] == f"{100 * integers['accuracy']:.2f}"
    assert said["checkpoint"].strip() == str(output)
    assert whole["accuracy"] > 0.8
    assert abs(whole["accuracy"] - integers["accuracy"]) <= 0.005
    assert "conv2.group1" in out
    assert "100 calibration images" in out
    with report.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows][:2] == ["conv1", "conv2.group0"]
    net = open_checkpoint(output)
    assert isinstance(net.model, IntegerNet)
    assert net.class_names == open_checkpoint(run_folder).class_names
    assert net.model.input.mean == net.preprocess.mean
    assert ta.checkpoint.read_info(output).metadata["quantization"]["groups"] == 2
    # Nothing is overwritten, and a net is quantised once.
    assert cli.main(argv) == 2
    assert "the file exists and is not overwritten" in capsys.readouterr().err
    assert cli.main(["quantize", str(output)]) == 2
    assert "computes with integers already" in capsys.readouterr().err
    assert cli.main(["evaluate", str(output), "--robust"]) == 2
    assert "has no gradients to attack it by" in capsys.readouterr().err


def test_the_integer_net_is_written_beside_the_checkpoint(run_folder, capsys):
    assert cli.main(["quantize", str(run_folder), "--images", "8", "--bits", "4"]) == 0
    assert (run_folder / "checkpoints" / "best-int8.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", "9"], "bits must be within 2 .. 8, got 9"),
        (["--range", "none"], "range must be one of max, percentile, mse, got 'none'"),
        (["--groups", "0"], "groups must be at least 1, got 0"),
        (["--images", "0"], "calibration: 0 images; at least 1 is wanted"),
        (["--batch_size", "0"], "--batch_size = 0: at least 1 is wanted"),
        (["--data.source", "nowhere/nothing.txt"], "nowhere"),
        (["--bitz", "8"], "unknown option '--bitz'; did you mean '--bits'?"),
    ],
)
def test_bad_options_are_one_line(run_folder, tmp_path, capsys, options, message):
    output = tmp_path / "x.safetensors"
    assert cli.main(["quantize", str(run_folder), "--output", str(output), *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not output.exists()


def test_the_table(run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quantization, "TABLE_BITS", (8, 4))
    monkeypatch.setattr("torchadder.training.quantization_table.TABLE_BITS", (8, 4))
    folder = tmp_path / "table"
    assert cli.main(["quantize", str(run_folder), "--table", str(folder), "--images", "50"]) == 0
    page = json.loads((folder / "accuracy.json").read_text())
    with (folder / "accuracy.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["scheme"], row["bits"]) for row in rows] == [
        ("float", "32"),
        *((scheme, bits) for scheme in quantization.SCHEMES for bits in ("8", "4")),
    ]
    accuracies = {(row["scheme"], row["bits"]): float(row["accuracy"]) for row in rows}
    assert page["num_calibration_images"] == 50
    assert page["num_validation_images"] == 1000
    assert set(page["provenance"]) == {"date", "command", "hardware", "versions"}
    assert accuracies["float", "32"] == pytest.approx(
        evaluate(run_folder, accelerator="cpu")["accuracy"]
    )
    assert accuracies["clamped filters", "8"] > accuracies["float", "32"] - 0.005
    assert accuracies["clamped filters", "4"] > accuracies["shared range", "4"]
    text = (folder / "accuracy.md").read_text()
    for scheme in quantization.SCHEMES:
        numbers = [accuracies["float", "32"], accuracies[scheme, "8"], accuracies[scheme, "4"]]
        assert f"| {scheme} | " + " | ".join(f"{100 * x:.2f} %" for x in numbers) in text
    assert "calibrated on 50 training images" in text


def test_calibration_images_are_the_same_every_time_and_not_augmented(run_folder):
    net = open_checkpoint(run_folder)
    images = ta.data.ImageData("mnist", augment="crop")
    images.setup()
    batches = list(calibration_batches(images, net, 10, 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert images.train.augment == "crop"
    pixels = images.train.cache[torch.arange(10) * len(images.train) // 10]
    assert torch.equal(torch.cat(batches), net.preprocess.normalize(pixels))


# Fine-tuning -------------------------------------------------------------------------------------


def test_gradients_pass_straight_through():
    grid = Grid(0.5, 2, 7)  # -1 .. 2.5 in steps of a half
    x = torch.tensor([-3.0, -0.9, 0.2, 0.3, 2.4, 4.0], requires_grad=True)
    y = fake_input(x, grid)
    assert y.tolist() == [-1.0, -1.0, 0.0, 0.5, 2.5, 2.5]
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    w = torch.tensor([-3.2, 0.3, 4.1], requires_grad=True)
    y = fake_filters(w, grid, clamp=True)
    assert torch.allclose(y, torch.tensor([-3.2, 0.5, 4.1]))  # the remainder is kept
    y.sum().backward()
    assert w.grad.tolist() == [1.0, 1.0, 1.0]
    assert torch.allclose(fake_filters(w, grid, clamp=False), torch.tensor([-1.0, 0.5, 2.5]))


@pytest.mark.parametrize(
    "config", [Int8Config(bits=5), Int8Config(bits=5, groups=3), Int8Config(clamp=False)]
)
def test_fake_layers_compute_what_the_integers_compute(config):
    net, images = small_resnet()
    calibration = Calibration(net, [images])
    _, ranges = calibration.lower(config)
    names = list(net.state_dict())
    float_logits = net(images).detach()
    with FakeQuantization(net, ranges, config):
        assert list(net.state_dict()) == names
        for path in ("layer1.conv2", "layer2.shortcut.0"):
            layer = net.get_submodule(path)
            x = torch.randn(2, layer.in_channels, 6, 6) * 3
            got = layer(x)
            want = torch.empty_like(got, dtype=torch.float64)
            for one in (one for one in ranges if one.path == path):
                weight = layer.weight.detach()[one.filters].double()
                inside = weight.clamp(one.grid.low, one.grid.high)
                w = one.grid.to_integers(weight).double()
                sums = ta.functional.adder2d(
                    one.grid.to_integers(x).double() - one.grid.zero_point,
                    w - one.grid.zero_point, None, layer.stride, layer.padding,
                )  # fmt: skip
                beyond = (weight - inside).abs().sum((1, 2, 3))[:, None, None]
                want[:, one.filters] = sums * one.grid.scale - (beyond if config.clamp else 0)
            assert torch.allclose(got.double(), want, atol=1e-3), path
        assert not torch.equal(net(images), float_logits)
    assert torch.equal(net(images), float_logits)


def test_fine_tuning_for_integers(run_folder):
    """What a shared range of four bits loses, an epoch with rounded numbers wins back."""
    config = Int8Config(bits=4, clamp=False)
    checkpoint = QuantizedCheckpoint(run_folder, num_images=100)
    images, labels = checkpoint.images, checkpoint.labels()
    batches = checkpoint.calibration.batches

    def accuracy(model):
        program, _ = Calibration(model, batches).lower(config)
        found = quantization.classes(IntegerNet(program), [x for x, _ in images.val_dataloader()])
        return float((found == labels).double().mean())

    model = open_checkpoint(run_folder).model
    before = accuracy(model)
    names = list(model.state_dict())
    task = Classification(model, num_classes=10, lr=0.02, interval="step")
    images.batch_size = 64
    callback = QuantizationAware(batches, config)
    with quiet():
        trainer = lightning.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
            callbacks=[callback],
        )  # fmt: skip
        trainer.fit(task, images)
    model.eval()
    assert list(model.state_dict()) == names
    assert not any("forward" in vars(module) for module in model.modules())
    after = accuracy(model)
    assert after > before + 0.1, (before, after)


def test_fine_tuning_is_for_one_process():
    class Trainer:
        world_size = 2

    with pytest.raises(QuantizationError, match="for one process, got 2"):
        QuantizationAware([]).on_fit_start(Trainer(), None)
