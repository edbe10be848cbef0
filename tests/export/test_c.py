"""Integer nets as C: bit for bit what the interpreter computes, in clean C99 of known size."""

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import torchadder as ta
from export.c_builds import ADDER_FUNCTIONS, build, compiler, export, instructions, multiplications
from export.c_builds import run as run_c
from small_programs import every_step, layer, program, random_images, scaled
from torchadder.data import ImageData
from torchadder.export.c import pixel_bytes
from torchadder.quantize import Int8Config, IntegerNet, interpreter, quantize
from torchadder.quantize.program import AvgPool, Concat, Flatten, Layer, MaxPool, Program, Value

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")

SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """A net with every kind of step, and the folder of its export."""
    net = every_step()
    folder = tmp_path_factory.mktemp("c") / "every"
    return net, export(net, folder), folder


@pytest.fixture(scope="module")
def digits():
    data = ImageData("mnist", batch_size=64)
    data.setup()
    return data


@pytest.fixture(scope="module")
def lenet(digits):
    """LeNet with random filters whose last layer is fitted to the digits, quantised."""
    torch.manual_seed(0)
    model = ta.models.lenet5_bn().train()
    preprocess = digits.preprocess
    chosen = torch.randperm(len(digits.train.cache))[:1000]
    images, labels = preprocess.normalize(digits.train.cache[chosen]), digits.train.labels[chosen]
    model.bn_fc = torch.nn.Identity()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None  # the mean over all batches
    with torch.no_grad():
        for _ in range(2):
            model(images)
        features = model.eval().forward_features(images)
        wanted = torch.nn.functional.one_hot(labels, 10) - 0.1
        model.fc.weight[:, :, 0, 0] = torch.linalg.lstsq(features, wanted).solution.T
    net, _ = quantize(model, images[:128], mean=preprocess.mean, std=preprocess.std)
    return net


def made_of_pixels(net, images):
    """What the interpreter says of pixels whose table is that of `export`."""
    channels = net.input.channels
    table = pixel_bytes(net, [0.0] * channels, [1.0] * channels)
    as_bytes = torch.stack([table[c][images[:, c].long()] for c in range(channels)], 1)
    return interpreter.logits(net, as_bytes)


# Bit for bit --------------------------------------------------------------------------------------


def test_every_step(every):
    net, _, folder = every
    images = random_images(net, 50)
    want = made_of_pixels(net, images)
    best, got = run_c(build(folder, "-O2"), images)
    assert torch.equal(got, want)
    assert torch.equal(best, want.argmax(1))
    assert len(want.unique(dim=0)) > 40


WINDOWS = {
    "asymmetric": ((7, 3, 3, 2), (2, 1), (0, 2), (1, 1), 1),
    "dilation": ((4, 3, 3, 3), (1, 2), (4, 3), (3, 2), 1),
    "padding beyond the kernel": ((5, 3, 2, 2), (3, 3), (4, 5), (1, 1), 1),
    "depthwise": ((6, 1, 3, 3), (1, 1), (1, 1), (1, 1), 3),
    "one tap": ((8, 3, 1, 1), (2, 2), (0, 0), (1, 1), 1),
}


@pytest.mark.parametrize("kind", ["adder", "conv"])
@pytest.mark.parametrize("name", list(WINDOWS))
def test_windows(name, kind, tmp_path):
    shape, stride, padding, dilation, groups = WINDOWS[name]
    torch.manual_seed(len(name))
    (H, W), (O, _, R, S) = (11, 9), shape
    weight = torch.randint(0, 256, shape, dtype=torch.uint8)
    P = (H + 2 * padding[0] - dilation[0] * (R - 1) - 1) // stride[0] + 1
    Q = (W + 2 * padding[1] - dilation[1] * (S - 1) - 1) // stride[1] + 1
    is_adder = kind == "adder"
    how = scaled(O, 0.05, 160 if is_adder else 30)
    last = torch.randint(0, 256, (10, O * P * Q, 1, 1), dtype=torch.uint8)
    logits = scaled(10, 1.0, 0, low=-(2**31), high=2**31 - 1)
    net = program(
        [
            Layer(kind, "one", "x", "y", weight if is_adder else weight.view(torch.int8),
                  stride, padding, dilation, groups, how),
            Flatten("flat", "y", "z"),
            layer("conv", "fc", "z", "logits", last.view(torch.int8), logits),
        ],
        [
            Value("x", (3, H, W), 1 / 255, 77),
            Value("y", (O, P, Q), 1.0, 3),
            Value("z", (O * P * Q, 1, 1), 1.0, 3),
            Value("logits", (10, 1, 1), 1.0, 0, "int32"),
        ],
    )  # fmt: skip
    export(net, tmp_path / "net")
    images = random_images(net, 8)
    _, got = run_c(build(tmp_path / "net", *SANITIZERS), images)
    assert torch.equal(got, made_of_pixels(net, images))


def test_pools_with_padding_and_overlap(tmp_path):
    weight = torch.randint(0, 256, (10, 12, 1, 1), dtype=torch.uint8).view(torch.int8)
    net = program(
        [
            MaxPool("most", "x", "y", (3, 2), (2, 1), (1, 1), (2, 3)),
            AvgPool("mean", "y", "z", (3, 4), (2, 3), (1, 2), scaled(2, 1.2 / 12, -3)),
            Flatten("flat", "z", "f"),
            layer("conv", "fc", "f", "logits", weight,
                  scaled(10, 1.0, 0, low=-(2**31), high=2**31 - 1)),
        ],
        [
            Value("x", (2, 9, 8), 1 / 255, 0),
            Value("y", (2, 4, 7), 1 / 255, 0),
            Value("z", (2, 2, 3), 1.0, 9),
            Value("f", (12, 1, 1), 1.0, 9),
            Value("logits", (10, 1, 1), 1.0, 0, "int32"),
        ],
    )  # fmt: skip
    export(net, tmp_path / "net")
    images = random_images(net, 8)
    _, got = run_c(build(tmp_path / "net", *SANITIZERS), images)
    assert torch.equal(got, made_of_pixels(net, images))


def test_all_test_digits(lenet, digits, tmp_path):
    """From the pixels of 1,000 images to the logits, with the table of training's normalisation."""
    ta.export.to_c(lenet, tmp_path / "digits", name="digits", class_names=digits.class_names)
    pixels = digits.val.cache
    images = digits.preprocess.normalize(pixels)
    want = IntegerNet(lenet).integers(images)
    assert torch.equal(want[:20], interpreter.logits(lenet, images[:20]))
    best, got = run_c(build(tmp_path / "digits", "-O2", name="digits"), pixels)
    assert len(pixels) == 1000
    assert torch.equal(got, want)
    assert torch.equal(best, want.argmax(1))
    # It says something about digits, though random filters give no features to half of them.
    assert (best == digits.val.labels).float().mean() > 0.3
    assert len(want.unique(dim=0)) > 300


def test_extreme_numbers(tmp_path):
    """The largest multipliers and offsets, negative sums under the shift, the smallest logit."""
    weight = torch.tensor([[0], [255], [128]], dtype=torch.uint8)[..., None, None]
    how = dataclasses.replace(
        scaled(3, 0),
        multiplier=torch.tensor([-(2**31), 2**31 - 1, -1], dtype=torch.int32),
        offset=torch.tensor([1 - 2**61, 2**61 - 1, -1]),
        shift=0,
        low=-(2**31),
        high=2**31 - 1,
    )
    for shift in (0, 1, 33, 62):
        net = program(
            [layer("adder", "a", "x", "y", weight, dataclasses.replace(how, shift=shift))],
            [Value("x", (1, 1, 1), 1 / 255, 0), Value("y", (3, 1, 1), 1.0, 0, "int32")],
        )
        folder = tmp_path / str(shift)
        export(net, folder)
        images = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
        _, got = run_c(build(folder, *SANITIZERS), images, classes=3)
        assert torch.equal(got, made_of_pixels(net, images))


class Residual(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.adder = ta.nn.Adder2d(8, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.fc = torch.nn.Linear(8 * 6 * 6, 10)

    def forward(self, x):
        x = self.stem(x)
        return self.fc((self.norm(self.adder(x)) + x).relu().flatten(1))


def test_groups_of_filters_with_a_residual(tmp_path):
    """Each group takes its channels of the residual: picked, not spread."""
    torch.manual_seed(0)
    model = Residual().train()
    model.norm.momentum = None  # the mean over all batches
    images = torch.rand(16, 3, 6, 6)
    with torch.no_grad():
        model(images)
    net, _ = quantize(model.eval(), images, Int8Config(groups=3))
    picked = [step for step in net.steps if isinstance(step, Concat) and len(step.inputs) == 1]
    assert len(picked) == 3
    assert any(len(step.order) < int(step.order.max()) for step in picked)
    export(net, tmp_path / "net")
    pixels = random_images(net, 8)
    _, got = run_c(build(tmp_path / "net", *SANITIZERS), pixels)
    want = made_of_pixels(net, pixels)
    assert torch.equal(got, want)
    assert len(want.unique(dim=0)) == 8


class Elsewhere(torch.Tensor):
    """A tensor that, like one of a GPU, computes with no tensor of the CPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        if any(type(argument) is torch.Tensor for argument in args):
            raise RuntimeError("Expected all tensors to be on the same device")
        return super().__torch_function__(func, types, args, kwargs)


def test_a_program_of_another_device(every, tmp_path):
    net, _, folder = every
    described, tensors = net.to_dict()
    tensors = {name: tensor.as_subclass(Elsewhere) for name, tensor in tensors.items()}
    export(Program.from_dict(described, tensors), tmp_path / "net")
    assert (tmp_path / "net" / "net.c").read_text() == (folder / "net.c").read_text()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_program_of_a_gpu(every, tmp_path):
    net, _, folder = every
    export(IntegerNet(net).cuda(), tmp_path / "net")
    assert (tmp_path / "net" / "net.c").read_text() == (folder / "net.c").read_text()


# The code -----------------------------------------------------------------------------------------


def test_check_compares_with_python(every, tmp_path):
    _, _, folder = every
    done = subprocess.run([build(folder, "-O1"), "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "check: all logits are right\n")
    shutil.copytree(folder, tmp_path / "wrong")
    source = tmp_path / "wrong" / "net.c"
    # The first tap of an adder layer.
    text = re.sub(r"(uint8_t filters_\d+.*\n +\{\n +)\d+", r"\g<1>0", source.read_text(), count=1)
    assert text != source.read_text()
    source.write_text(text)
    program = build(tmp_path / "wrong", "-O1")
    done = subprocess.run([program, "--check"], capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"check: logit \d is -?\d+, not -?\d+\n", done.stderr)


def test_sanitizers_find_nothing(every):
    net, _, folder = every
    images = random_images(net, 20)
    _, got = run_c(build(folder, *SANITIZERS, output="sanitized"), images)
    assert torch.equal(got, made_of_pixels(net, images))


@pytest.mark.parametrize("optimisation", ["-O2", "-O3"])
def test_adder_layers_do_not_multiply(every, optimisation):
    _, _, folder = every
    functions = instructions(folder, optimisation)
    for name in ADDER_FUNCTIONS:
        assert multiplications(functions, name) == [], name
    # What is meant to multiply is found to do so.
    assert multiplications(functions, "requantise")
    assert multiplications(functions, "sum_products")


def test_a_multiplication_is_found(every, tmp_path):
    _, _, folder = every
    shutil.copytree(folder, tmp_path / "wrong")
    source = tmp_path / "wrong" / "net.c"
    text = source.read_text()
    distance = "difference < 0 ? -difference : difference"
    assert distance in text
    source.write_text(text.replace(distance, "difference * difference"))
    functions = instructions(tmp_path / "wrong", "-O2")
    assert multiplications(functions, "sum_differences")


def test_nothing_but_integers_and_static_memory(every):
    _, _, folder = every
    text = (folder / "net.c").read_text() + (folder / "net.h").read_text()
    code = re.sub(r"/\*.*?\*/|\"[^\"]*\"", "", text, flags=re.S)
    assert not re.search(r"\b(float|double|malloc|calloc|free|long)\b|math\.h|\d\.\d", code)
    assert sorted(re.findall(r"#include [<\"](.+)[>\"]", code)) == ["stddef.h", "stdint.h"]
    compiler("gcc", "-std=c99", "-O1", "-c", "net.c", "-o", "net.o", folder=folder)
    missing = compiler("nm", "--undefined-only", "net.o", folder=folder)
    names = set(re.findall(r"U (\w+)", missing)) - {"_GLOBAL_OFFSET_TABLE_"}
    # Compilers may spell loops over bytes so.
    assert names <= {"memcpy", "memset"}


def test_the_stated_memory_is_what_the_compiler_takes(every):
    _, report, folder = every
    compiler("gcc", "-std=c99", "-O1", "-c", "net.c", "-o", "net.o", folder=folder)
    sections = compiler("objdump", "-h", "net.o", folder=folder)
    bss = int(re.search(r"\.bss\s+([0-9a-f]+)", sections)[1], 16)
    assert report.ram_bytes <= bss < report.ram_bytes + 3 * 32  # of alignment
    header = (folder / "net.h").read_text()
    assert f"#define NET_RAM_BYTES {report.ram_bytes}\n" in header
    rodata = sum(
        int(size, 16) for size in re.findall(r"\.(?:rodata|data\.rel\S*)\s+([0-9a-f]+)", sections)
    )
    # Pointers of this machine are twice as long, and names of classes come on top.
    assert report.table_bytes <= rodata < 1.6 * report.table_bytes


# What a net costs ---------------------------------------------------------------------------------


def test_report(every):
    net, report, _ = every
    costs = {step.name: step for step in report.steps}
    assert [step.name for step in report.steps] == [step.name for step in net.steps]
    # 4x4 outputs of 5 filters of 3x3x8 taps: a subtraction and an addition each
    assert costs["body.group0"].num_add == 2 * 16 * 5 * 72
    assert (costs["body.group0"].num_mul, costs["body.group0"].num_requantise) == (0, 16 * 5)
    # filters, one multiplier and one offset for all channels, the layer's own numbers
    assert costs["body.group0"].table_bytes == 5 * 72 + 4 + 8 + 132
    # 8x8 outputs of 8 filters of 3x3x3 taps
    assert (costs["stem.conv"].num_add, costs["stem.conv"].num_mul) == (64 * 8 * 27, 64 * 8 * 27)
    assert costs["last.adder"].num_requantise == 2 * 16 * 8
    assert costs["pool"].num_requantise == costs["flatten"].num_mul == 0
    assert costs["mean"].num_add == 4 * 4 * 8
    assert costs["norm"].table_bytes == 8 * (4 + 8) + 28
    text = str(report)
    assert f"RAM    {report.ram_bytes:,} bytes" in text
    assert "body.group0" in text


def test_activations_share_memory(every):
    """The stem reads 16x16x3 bytes and makes 8x8x8: both live, and nothing later is larger."""
    _, report, _ = every
    assert report.activation_bytes == report.least_activation_bytes == 768 + 512
    # one window of the last layer or of a group: 72 bytes; the logits of fc: 10 numbers
    assert report.ram_bytes == 1280 + 72 + 4 * 10


def test_a_residual_is_written_over(tmp_path):
    """A chain of residual layers needs two maps, not three."""
    steps = [
        layer("adder", "a", "x", "y", torch.zeros(4, 4, 3, 3, dtype=torch.uint8),
              scaled(4, 0.1, 200), padding=1),
        layer("adder", "b", "y", "z", torch.zeros(4, 4, 3, 3, dtype=torch.uint8),
              scaled(4, 0.1, 100, residual=1.0), padding=1, residual="x"),
        layer("adder", "c", "z", "w", torch.zeros(4, 4, 8, 8, dtype=torch.uint8),
              scaled(4, 0.1, low=-(2**31), high=2**31 - 1)),
    ]  # fmt: skip
    values = [Value(name, (4, 8, 8), 1.0, 0) for name in "xyz"]
    net = program(steps, [*values, Value("w", (4, 1, 1), 1.0, 0, "int32")])
    report = export(net, tmp_path / "net")
    assert report.activation_bytes == 2 * 256
    images = random_images(net, 4)
    _, got = run_c(build(tmp_path / "net", "-O2"), images, classes=4)
    assert torch.equal(got, made_of_pixels(net, images))


# Other machines -----------------------------------------------------------------------------------

MACHINES = {
    "aarch64": ("aarch64-linux-gnu-gcc", "qemu-aarch64"),
    "arm": ("arm-linux-gnueabihf-gcc", "qemu-arm"),
}


@pytest.mark.slow
@pytest.mark.parametrize("machine", list(MACHINES))
@pytest.mark.parametrize("optimisation", ["-O2", "-O3"])
def test_other_machines(machine, optimisation, every, lenet, digits, tmp_path):
    cc, emulator = MACHINES[machine]
    for tool in (cc, emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    net, _, folder = every
    folder = shutil.copytree(folder, tmp_path / "every")
    images = random_images(net, 20)
    built = build(folder, "-static", optimisation, cc=cc)
    _, got = run_c(built, images, before=[emulator])
    assert torch.equal(got, made_of_pixels(net, images))
    functions = instructions(folder, optimisation, cc=cc)
    for name in ADDER_FUNCTIONS:
        assert multiplications(functions, name) == [], name
    assert multiplications(functions, "requantise")
    assert multiplications(functions, "sum_products")
    report = ta.export.to_c(lenet, tmp_path / "digits")
    built = build(tmp_path / "digits", "-static", optimisation, cc=cc)
    _, got = run_c(built, digits.val.cache, before=[emulator])
    assert torch.equal(
        got, interpreter.logits(lenet, digits.preprocess.normalize(digits.val.cache))
    )
    if machine == "arm":
        instructions(tmp_path / "digits", "-Os", cc=cc)
        sizes = compiler("arm-linux-gnueabihf-size", "-A", "net.o", folder=tmp_path / "digits")
        found = dict(re.findall(r"^\.(\S+)\s+(\d+)", sizes, re.M))
        assert int(found["bss"]) == report.ram_bytes
        assert int(found["text"]) < 2048  # as docs/export.md says
        constants = sum(
            int(size) for name, size in found.items() if name.startswith(("rodata", "data"))
        )
        assert report.table_bytes <= constants < report.table_bytes + 200  # names of classes


@pytest.mark.slow
def test_resnet20(tmp_path):
    torch.manual_seed(6)
    model = ta.models.resnet20().train()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None
    images = torch.rand(40, 3, 32, 32)
    with torch.no_grad():
        model(images)
    net, _ = quantize(model.eval(), images, mean=[0.0] * 3, std=[1.0] * 3)
    report = export(net, tmp_path / "net")
    assert report.activation_bytes == 2 * 16 * 32 * 32
    pixels = random_images(net, 20)
    _, got = run_c(build(tmp_path / "net", "-O2"), pixels)
    want = made_of_pixels(net, pixels)
    assert torch.equal(got, want)
    assert len(want.unique(dim=0)) == 20


def test_the_bill_in_the_docs(lenet, tmp_path):
    report = ta.export.to_c(lenet, tmp_path / "digits")
    docs = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    printed = str(report).splitlines()
    adders = [line.rstrip() for line in printed if " adder " in line]
    (ram,) = [line for line in printed if line.startswith("RAM")]
    assert len(adders) == 3
    for line in (*adders, ram):
        assert line.strip() in docs, line
