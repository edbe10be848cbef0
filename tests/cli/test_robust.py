"""`torchadder evaluate --robust` on a checkpoint that training left."""

import csv
import json

import numpy as np
import PIL.Image
import pytest
import torch

import torchadder as ta
from torchadder import cli
from torchadder.cli.robust import number
from torchadder.data import DataError, ImageData, Preprocess
from torchadder.training.robust_evaluation import open_target

QUICK = ["--robust", "--images=6", "--queries=3", "--strong-iterations=2", "--threads=1"]
CLASSES = ("one", "three", "two")  # as folders are sorted
PREPROCESS = Preprocess(1, 28, 28, None, (0.4,), (0.3,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Grey images of three classes, 2 of each to train and 20 to validate, and two nets."""
    folder = tmp_path_factory.mktemp("robust")
    numbers = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 20)):
        for name in CLASSES:
            (folder / "images" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = numbers.integers(0, 256, (28, 28), dtype=np.uint8)
                PIL.Image.fromarray(pixels).save(folder / "images" / split / name / f"{index}.png")
    for kind in ("adder", "conv"):
        write_checkpoint(folder / f"{kind}.safetensors", kind, folder)
    return folder


def write_checkpoint(path, kind, folder, classes=CLASSES):
    torch.manual_seed(0)
    model = ta.models.lenet5_bn(num_classes=len(classes), conv=kind).train()
    with torch.no_grad():
        for _ in range(20):  # running statistics that fit such images
            model((torch.rand(64, 1, 28, 28) - 0.4) / 0.3)
    data = {"source": str(folder / "images")}
    metadata = {"class_names": list(classes), "preprocess": PREPROCESS.to_dict(), "data": data}
    return ta.save(model, path, metadata=metadata)


@pytest.fixture
def adder(folder):
    return folder / "adder.safetensors"


@pytest.fixture
def cnn(folder):
    return folder / "conv.safetensors"


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def fails(capsys, *argv):
    """The one line that a call with bad input writes."""
    assert cli.main(["evaluate", *map(str, argv)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("torchadder: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("torchadder: error: ").strip()


@pytest.mark.parametrize("option", [[], ["--robust"]])
def test_threads_are_checked_first(adder, capsys, option):
    message = "--threads = 0: at least 1 is wanted"
    assert fails(capsys, adder, *option, "--threads", 0) == message


def test_what_it_leaves_and_prints(adder, cnn, capsys, tmp_path):
    argv = [
        *QUICK,
        "--transfer",
        str(cnn),
        "--output",
        str(tmp_path / "out"),
        "--epsilon",
        "51/255",
    ]
    assert cli.main(["evaluate", str(adder), *argv]) == 0
    out, err = capsys.readouterr()
    assert "at most about" in err
    for word in ("FGSM", "PGD-2 x1", "Square-3", "transfer", "running BN, sign", "batch BN"):
        assert word in out
    assert "6 random images (seed 0) of " in out
    assert "left out: PGD with more than 2 iterations" in out
    files = {path.name for path in (tmp_path / "out").iterdir()}
    names = ("accuracy_over_epsilon", "perturbed_images")
    pictures = {f"{name}{theme}.png" for name in names for theme in ("", "-dark")}
    assert files == pictures | {"robustness.csv", "robustness.md", "robustness.json"}
    described = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert described["settings"]["epsilon"] == 0.2
    assert described["settings"]["step"] == 0.05
    assert described["settings"]["queries"] == 3
    assert described["provenance"]["versions"]["torch"] == torch.__version__
    rows = list(csv.DictReader((tmp_path / "out" / "robustness.csv").read_text().splitlines()))
    assert {row["batch_norm"] for row in rows} == {"running", "batch"}
    assert {row["gradient"] for row in rows} == {"surrogate", "sign", "none"}
    text = (tmp_path / "out" / "robustness.md").read_text()
    assert text.startswith("# Robustness of ")
    assert described["verdict"] in text


def test_chosen_rows_as_json_beside_the_checkpoint(adder, capsys):
    argv = ["--attacks", "clean,pgd7", "--statistics", "running", "--gradients", "sign", "--json"]
    for number_of_folder in ("", "-2"):
        assert cli.main(["evaluate", str(adder), *QUICK, *argv, "--first"]) == 0
        described = json.loads(capsys.readouterr().out)
        rows = [(row["row"], row["batch_norm"], row["gradient"]) for row in described["rows"]]
        assert rows[:2] == [("clean", "running", "none"), ("pgd7", "running", "sign")]
        assert {row[0] for row in rows[2:]} == {"curve"}
        assert (adder.parent / f"robustness{number_of_folder}" / "robustness.json").is_file()


def test_the_net_is_the_one_that_evaluate_measures(adder):
    """Pixels in [0, 1] through `Normalised` are the images that the net was trained on."""
    target = open_target(adder, num_images=60, sample_seed=None)
    net = target.net
    data = ImageData(**net.data)
    data.setup()
    data.val.preprocess = net.preprocess
    images, labels = data.val.__getitems__([(0, index) for index in range(60)])
    with torch.no_grad():
        assert torch.allclose(target.model(target.images), net.model(images), atol=1e-4)
    assert torch.equal(target.labels, labels)
    assert float(target.images.min()) >= 0
    assert float(target.images.max()) <= 1
    assert len(target.labels[:20].unique()) == 1  # the split is sorted by class,
    assert len(open_target(adder, num_images=20).labels.unique()) == 3  # a sample is not


def test_a_split_below_the_default_number_of_images_is_attacked_whole(adder):
    assert open_target(adder).choice.startswith("60 random images (seed 0) of ")
    with pytest.raises(DataError, match=r"images = 200: 1 \.\. 60 are wanted"):
        open_target(adder, num_images=200)


def test_rows_without_transfer_and_a_net_to_transfer_from(adder, cnn, capsys):
    line = fails(capsys, adder, *QUICK, "--attacks=fgsm", "--transfer", cnn)
    assert "transfer_from is given, but rows leave 'transfer' out, got fgsm" in line


def test_a_sample_depends_on_its_seed(adder):
    one, same, other = (open_target(adder, num_images=9, sample_seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.images, other.images)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epsilon", "-0.1", "--robust"], "--epsilon = -0.1: a number above 0 is wanted"),
        (["--epsilon", "much", "--robust"], "--epsilon = much: a number or a fraction is wanted"),
        (["--epsilon", "8/255"], "--epsilon wants --robust"),
        (["--full"], "--full wants --robust"),
        (["--robust", "--images", "0"], "images = 0: 1 .. 60 are wanted"),
        (["--robust", "--images", "61"], "images = 61: 1 .. 60 are wanted"),
        (["--robust", "--images=6", "--attacks=apgd"], "rows must be of clean, fgsm"),
        (["--robust", "--images=6", "--attacks=transfer"], "wants another model"),
        (["--robust", "--images=6", "--gradients=true"], "'true' does not fit"),
        (["--robust", "--restarts", "0"], "--restarts = 0: at least 1 is wanted"),
        (["--robust", "--batch-size", "0"], "--batch_size = 0: at least 1 is wanted"),
        (["--robust", "--transfer", "nowhere.safetensors"], "no such checkpoint"),
        (["--robust", "--accelerator", "abacus"], "--accelerator = abacus: no such device"),
        (["--robust", "--save"], "--save is for detectors, and --robust attacks nets that name"),
        (["--robust", "--skip-bad"], "--skip_bad is for detectors, and --robust attacks"),
        (["--robust", "--detection.format=coco"], "--detection.format is for detectors, and"),
        (["--save"], "adder.safetensors holds none"),
    ],
)
def test_bad_options(adder, capsys, tmp_path, argv, message):
    assert message in fails(capsys, adder, *argv)


def test_a_cnn_asked_for_the_sign_gradient(cnn, capsys):
    line = fails(capsys, cnn, "--robust", "--images=6", "--gradients=sign")
    assert "'sign' does not fit, Normalised has no adder layers; true would" in line


def test_transfer_from_a_net_with_other_classes(adder, folder, capsys, tmp_path):
    path = write_checkpoint(tmp_path / "two.safetensors", "conv", folder, CLASSES[:2])
    line = fails(capsys, adder, "--robust", "--transfer", path)
    assert "two.safetensors has 2 classes" in line
    assert "adder.safetensors has 3" in line


def test_fractions():
    assert number("epsilon", "8/255") == 8 / 255
    assert number("epsilon", 0.1) == 0.1
