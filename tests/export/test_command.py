"""`torchadder export`: what is written, and the one line after bad input."""

import json
import shutil
import subprocess
import warnings

import pytest
import torch

import torchadder as ta
from torchadder.cli import main
from torchadder.data import ImageData
from torchadder.export import ExportError, to_c
from torchadder.export.c.folder import MARK, write_folder
from torchadder.quantize import Int8Config, IntegerNet

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


@pytest.fixture(scope="module")
def digits():
    data = ImageData("mnist", batch_size=64)
    data.setup()
    return data


@pytest.fixture(scope="module")
def net(digits):
    """LeNet with statistics of the digits, as training would leave it."""
    torch.manual_seed(0)
    model = ta.models.lenet5_bn().train()
    with torch.no_grad():
        for _ in range(40):
            chosen = torch.randint(len(digits.train.cache), (32,))
            model(digits.preprocess.normalize(digits.train.cache[chosen]))
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(net, digits, tmp_path_factory):
    about = {
        "class_names": digits.class_names,
        "preprocess": digits.preprocess.to_dict(),
        "data": {"source": "mnist"},
    }
    return ta.save(net, tmp_path_factory.mktemp("run") / "net.safetensors", metadata=about)


@pytest.fixture(scope="module")
def quantised(net, digits, tmp_path_factory):
    """The same as integers, from other images than the command would take."""
    images = digits.preprocess.normalize(digits.train.cache[::100])
    preprocess = digits.preprocess
    calibration = ta.quantize.Calibration(net, [images], mean=preprocess.mean, std=preprocess.std)
    program, _ = calibration.lower(Int8Config())
    return ta.save(IntegerNet(program), tmp_path_factory.mktemp("run") / "int8.safetensors")


def logits(folder, images):
    """What the program built in a folder says of images (N, 1, 28, 28), uint8."""
    subprocess.run(["make", "-s", "-C", folder], check=True)
    done = subprocess.run(
        [folder / "classify", "--logits", "--raw", "-"],
        input=images.numpy().tobytes(),
        capture_output=True,
        check=True,
    )
    lines = done.stdout.decode().splitlines()
    return torch.tensor([[int(number) for number in line.split()[-10:]] for line in lines])


def refusal(capsys, *arguments):
    """The one line on stderr of a command that ends with 2."""
    capsys.readouterr()
    assert main(["export", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("torchadder: error: ")


@needs_gcc
def test_quantised_to_c(quantised, digits, tmp_path, capsys):
    folder = tmp_path / "new" / "digits"
    assert main(["export", "--to", "c", str(quantised), str(folder), "--name", "digits"]) == 0
    said = capsys.readouterr().out
    assert f"make -C {folder}" in said
    assert {p.name for p in folder.iterdir()} == {
        "digits.h", "digits.c", "main.c", "Makefile", MARK,
    }  # fmt: skip
    described = json.loads((folder / MARK).read_text())
    assert f"RAM    {described['ram_bytes']:,} bytes" in said
    assert described["steps"][0]["name"] == "conv1"
    images = digits.val.cache[::100]
    want = ta.load(quantised).integers(digits.preprocess.normalize(images))
    assert torch.equal(logits(folder, images), want)
    assert not any(tmp_path.glob("**/.*"))


@needs_gcc
def test_float_to_c(checkpoint, digits, tmp_path, capsys):
    folder = tmp_path / "net"
    assert main(["export", "--to", "c", str(checkpoint), str(folder)]) == 0
    assert "a float net; quantising it to 8 bits" in capsys.readouterr().err
    images = digits.val.cache[::50]
    got = logits(folder, images)
    with torch.no_grad():
        want = ta.load(checkpoint)(digits.preprocess.normalize(images))
    correlation = torch.corrcoef(torch.stack([got.float().flatten(), want.flatten()]))[0, 1]
    assert correlation > 0.95


@needs_gcc
def test_images_of_other_programs(quantised, digits, tmp_path):
    """PGM files with comments; files that are none, or of another size."""
    folder = tmp_path / "net"
    assert main(["export", "--to", "c", str(quantised), str(folder)]) == 0
    subprocess.run(["make", "-s", "-C", folder], check=True)
    images = digits.val.cache[::300]
    want = ta.load(quantised).integers(digits.preprocess.normalize(images)).argmax(1)
    files = []
    for number, image in enumerate(images):
        files.append(tmp_path / f"{number}.pgm")
        header = b"P5\n# a comment\n28\t28 # another\n255\n" if number else b"P5 28 28 255\n"
        files[-1].write_bytes(header + image.numpy().tobytes())
    classify = folder / "classify"
    done = subprocess.run([classify, *files], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"{file}: {c} {c}" for file, c in zip(files, want.tolist(), strict=True)
    ]
    for content, problem in {
        b"P6 28 28 255\n": "no binary PGM file",
        b"P5 28 27 255\n": "28 x 27 pixels; the net takes 28 x 28",
        b"P5 28 28 65535\n": "no header of an image with 8 bits a channel",
        b"P5 28": "no header of an image with 8 bits a channel",
        b"P5 28 28 255\nabc": "the file ends too early",
        b"": "no binary PGM file",
    }.items():
        files[0].write_bytes(content)
        done = subprocess.run([classify, files[0], files[1]], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (1, f"{files[0]}: {problem}\n")
        assert done.stdout.startswith(f"{files[1]}: ")
    done = subprocess.run([classify, "--raw", files[1]], capture_output=True, text=True)
    assert (done.returncode, "no multiple of 784 bytes" in done.stderr) == (1, True)
    done = subprocess.run([classify, tmp_path / "none.pgm"], capture_output=True, text=True)
    assert (done.returncode, "cannot be opened" in done.stderr) == (1, True)
    assert subprocess.run([classify], capture_output=True).returncode == 2


@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=pytest.mark.slow), "torch"])
def test_float_nets(kind, checkpoint, tmp_path, capsys):
    path = tmp_path / {"onnx": "net.onnx", "torch": "net.pt2"}[kind]
    assert main(["export", "--to", kind, str(checkpoint), str(path)]) == 0
    assert f"{path}: {path.stat().st_size:,} bytes, takes (N, 1, height" in capsys.readouterr().out
    line = refusal(capsys, "--to", kind, checkpoint, path)
    assert line == f"{path}: the file exists; --force replaces it"


# Bad input ----------------------------------------------------------------------------------------


def test_one_line_and_nothing_written(checkpoint, quantised, tmp_path, capsys):
    new = tmp_path / "new"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    before = sorted(tmp_path.rglob("*"))
    for arguments, wanted in {
        ("--to", "c", tmp_path / "none.safetensors", new): "no such checkpoint",
        ("--to", "c", quantised, tmp_path / "mine"): "holds other things than an export",
        ("--to", "c", quantised, tmp_path / "mine", "--force"): "holds other things than an export",
        ("--to", "c", quantised, tmp_path / "mine" / "thesis.txt"): "exists and is no folder",
        ("--to", "c", quantised, new, "--name", "Net 1"): "name must consist of small letters",
        ("--to", "c", checkpoint, new, "--name", "Net 1"): "name must consist of small letters",
        ("--to", "c", quantised, new, "--name", "main"): "and not be main, got 'main'",
        ("--to", "c", quantised, new, "--data.source", "mnist"): "is quantised already",
        ("--to", "c", checkpoint, new, "--any-size"): "C source is for images of one size",
        ("--to", "onnx", checkpoint, tmp_path / "net.pb"): "path must end in .onnx",
        ("--to", "onnx", quantised, tmp_path / "net.onnx"): "integer layers cannot be exported",
        ("--to", "torch", checkpoint, tmp_path / "net.pt"): "path must end in .pt2",
        ("--to", "torch", checkpoint, tmp_path / "n.pt2", "--name", "n"): "is for --to c only",
        ("--to", "tflite", checkpoint, new): "tflite",
        (checkpoint, new): "to",
    }.items():
        assert wanted in refusal(capsys, *arguments), arguments
        assert sorted(tmp_path.rglob("*")) == before, arguments


def test_layers_left_in_float_are_named(net, digits, tmp_path):
    images = digits.preprocess.normalize(digits.train.cache[::100])
    calibration = ta.quantize.Calibration(net, [images])
    program, _ = calibration.lower(Int8Config(first="float"))
    with pytest.raises(ExportError, match=r"left in float cannot be exported to C: conv1$"):
        to_c(program, tmp_path / "net")
    program, _ = calibration.lower(Int8Config())
    with pytest.raises(ExportError, match="the normalisation of the images is not known"):
        to_c(program, tmp_path / "net")
    for options, message in (
        ({"mean": [0.1, 0.2]}, r"mean must hold a number for each of 1 channels, got \(0.1, 0.2\)"),
        ({"mean": [float("nan")]}, "mean must hold a number for each of 1 channels"),
        ({"std": [0.0]}, r"std must be positive, got \(0.0,\)"),
        ({"class_names": range(10)}, "must be a sequence of strings, got range"),
        ({"class_names": "0123456789"}, "must be a sequence of strings, got '0123456789'"),
        ({"class_names": ["a"]}, "class_names must name the 10 classes of the net, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            to_c(program, tmp_path / "net", **{"mean": [0.0], "std": [1.0]} | options)
    with pytest.raises(TypeError, match="net must be an IntegerNet"):
        to_c(net, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


class Maps(torch.nn.Module):
    """A net of maps, or of one number for each class of an enlarged map."""

    def __init__(self, num_outputs=1, *, is_enlarged=False):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 3)
        self.up = torch.nn.Upsample(scale_factor=2) if is_enlarged else None
        self.heads = torch.nn.ModuleList(torch.nn.Conv2d(2, 3, 1) for _ in range(num_outputs))

    def forward(self, x):
        x = self.conv(x)
        if self.up is not None:
            return self.heads[0](self.up(x)).mean((2, 3))
        outputs = [head(x) for head in self.heads]
        return outputs if len(outputs) > 1 else outputs[0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Maps(), "the net makes a map; C is written for nets that make one number for each class"),
        (Maps(2), "the net makes 2 outputs; C is written for nets that make one number"),
        (Maps(is_enlarged=True), "enlarging cannot be exported to C: up"),
    ],
)
def test_nets_for_which_no_c_is_written(model, message, tmp_path):
    torch.manual_seed(0)
    program, _ = ta.quantize.quantize(model.eval(), [torch.rand(4, 1, 6, 6)])
    with pytest.raises(ExportError, match=message):
        to_c(program, tmp_path / "net", mean=[0.0], std=[1.0])


def test_an_integer_net_as_a_program_of_torch(tmp_path):
    from small_programs import every_step

    net = IntegerNet(every_step()).eval()
    images = torch.randn(4, 3, 16, 16)
    path = ta.export.to_torch(net, tmp_path / "net.pt2", images[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(path)
    with torch.no_grad():
        want = net(images)
        assert torch.equal(program.module()(images), want)
    assert len(want.unique(dim=0)) == 4
    operators = {str(node.target) for node in program.graph.nodes}
    assert "torchadder.adder2d_int8_requantised.default" in operators


# Folders ------------------------------------------------------------------------------------------


def texts(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_an_export_replaces_an_export(tmp_path):
    folder = tmp_path / "net"
    folder.mkdir()
    first, second = {MARK: "1", "a.c": "first"}, {MARK: "2", "b.c": "second"}
    write_folder(folder, first, force=False)
    assert texts(folder) == first
    (folder / "classify").write_text("built since")
    with pytest.raises(ExportError, match="holds an export already"):
        write_folder(folder, second, force=False)
    write_folder(folder, second, force=True)
    assert texts(folder) == second
    assert list(tmp_path.iterdir()) == [folder]


def test_an_export_that_fails_leaves_the_earlier_one(tmp_path, monkeypatch):
    folder = tmp_path / "net"
    first = {MARK: "1", "a.c": "first"}
    write_folder(folder, first, force=False)
    with pytest.raises(OSError, match="cannot write") as caught:
        write_folder(folder, {MARK: "2", "no/such/folder": ""}, force=True)
    assert caught.value.filename == str(folder)
    assert texts(folder) == first
    import os

    rename, calls = os.rename, []

    def fails_the_second_time(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails_the_second_time)
    with pytest.raises(OSError, match="No space left"):
        write_folder(folder, {MARK: "2"}, force=True)
    assert texts(folder) == first
    assert list(tmp_path.iterdir()) == [folder]


def test_names_of_classes_are_safe(tmp_path):
    from small_programs import every_step

    names = ['"quoted"', "back\\slash", "über", "??/trigraph", "%d", "a\nb", "7", "8", "9", ""]
    options = {"mean": [0.0] * 3, "std": [1.0] * 3}
    to_c(every_step(), tmp_path / "net", class_names=names, **options)
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    subprocess.run(["make", "-s", "-C", tmp_path / "net", "CFLAGS=-O0 -Werror"], check=True)
    printer = (
        '#include <stdio.h>\n#include "net.h"\nint main(void) { int i; for (i = 0; i < 10; ++i)'
    )
    (tmp_path / "net" / "names.c").write_text(
        f"{printer} {{ fputs(net_class_names[i], stdout); putchar(0); }} return 0; }}\n"
    )
    command = ["gcc", "-std=c99", "names.c", "net.c", "-o", "names"]
    subprocess.run(command, cwd=tmp_path / "net", check=True)
    said = subprocess.run([tmp_path / "net" / "names"], capture_output=True, check=True).stdout
    assert said.decode().split("\0")[:-1] == names


@needs_gcc
@pytest.mark.slow
def test_from_training_to_c(digits, tmp_path, capsys):
    """The three commands of a newcomer, and all 1,000 test digits in the end."""
    run, quantised, folder = tmp_path / "run", tmp_path / "int8.safetensors", tmp_path / "c"
    recipe = [
        "mnist_lenet5bn_adder",
        "--epochs",
        "3",
        "--output",
        str(run),
        "--trainer.threads",
        "1",
    ]
    assert main(["train", *recipe]) == 0
    assert main(["quantize", str(run), "--output", str(quantised)]) == 0
    assert main(["export", "--to", "c", str(quantised), str(folder)]) == 0
    images = digits.val.cache
    preprocess = ta.data.Preprocess.from_dict(
        ta.checkpoint.read_info(quantised).metadata["preprocess"]
    )
    want = ta.load(quantised).integers(preprocess.normalize(images))
    got = logits(folder, images)
    assert torch.equal(got, want)
    assert (got.argmax(1) == digits.val.labels).float().mean() > 0.85
