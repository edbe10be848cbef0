"""Checkpoints: exact round trips, and one clear line for everything that can be wrong."""

import functools
import os
import pickle
import re
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from torchadder import checkpoint, models
from torchadder.checkpoint import CheckpointError, load, load_into, read_info, save
from torchadder.nn import Adder2d

FORMATS = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    torch.complex64,
]


def assert_same_state(got, want):
    got, want = got.state_dict(), want.state_dict()
    assert list(got) == list(want)
    for name, value in want.items():
        assert got[name].dtype == value.dtype, name
        assert got[name].shape == value.shape, name
        # Bytes, so that NaN payloads and the signs of zeros count.
        left, right = (t.reshape(-1).contiguous().view(torch.uint8) for t in (got[name], value))
        assert torch.equal(left, right), name


def scrambled(model):
    """`model` with random values in every tensor, so that no default can pass for a loaded one."""
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape))
        else:
            value.add_(7)
    return model


class Holder(nn.Module):
    """Some tensors under names."""

    def __init__(self, **tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lenet5_bn", {"feature_dim": 2, "head": "adder", "num_classes": 3}),
        ("vgg_small", {"conv": "conv", "in_channels": 1}),
        ("resnet20", {"conv": {"type": "adder", "grad": "sign"}}),
        ("resnet50", {"stride_in_1x1": True, "num_classes": 5}),
    ],
)
def test_round_trip_of_models(tmp_path, name, arguments):
    model = scrambled(models.build(name, **arguments))
    random = torch.get_rng_state()
    path = save(model, tmp_path / "net.safetensors")
    loaded = load(path)
    assert torch.equal(torch.get_rng_state(), random)
    assert path == tmp_path / "net.safetensors"
    assert_same_state(loaded, model)
    assert loaded.config == model.config
    assert repr(loaded) == repr(model)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_round_trip_keeps_the_number_format(tmp_path, dtype):
    model = scrambled(models.resnet20().to(dtype))
    assert_same_state(load(save(model, tmp_path / "net.safetensors")), model)


def test_loaded_model_predicts_the_same(tmp_path):
    model = models.lenet5_bn()
    images = torch.randn(2, 1, 28, 28)
    model(images)
    model.eval()
    loaded = load(save(model, tmp_path / "net.safetensors"))
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_every_format_is_exact(tmp_path, dtype):
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (3, 5, 16), dtype=torch.uint8)

    def holder(fill):
        values = fill.view(dtype).clone()
        return Holder(x=values, scalar=values[0, 0, 0].clone(), empty=values[:0].clone())

    want, got = holder(raw), holder(torch.zeros_like(raw))
    load_into(got, save(want, tmp_path / "x.safetensors"))
    if dtype.is_floating_point or dtype.is_complex:
        # torch may quieten a signalling NaN when it copies into the model.
        for name, value in want.state_dict().items():
            finite = value.to(torch.complex64).isfinite()
            assert torch.equal(got.state_dict()[name][finite], value[finite])
        assert torch.equal(load_file(tmp_path / "x.safetensors")["x"].view(torch.uint8), raw)
    else:
        assert_same_state(got, want)


def test_layouts_and_shared_memory(tmp_path):
    base = torch.arange(24.0).reshape(2, 3, 4)
    want = Holder(
        whole=base,
        same=base,
        row=base[1],
        column=base[:, :, 2],
        transposed=base.mT,
        expanded=torch.ones(1, 3).expand(4, 3),
        channels_last=torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    )
    got = Holder(**{name: torch.zeros(t.shape) for name, t in want.state_dict().items()})
    path = save(want, tmp_path / "x.safetensors")
    info = load_into(got, path)
    assert_same_state(got, want)
    assert info.aliases == {"same": "whole"}
    assert "same" not in load_file(path)


def test_tied_weights_stay_tied(tmp_path):
    def tied():
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        net[1].weight = net[0].weight
        return net

    want, got = tied(), tied()
    load_into(got, save(want, tmp_path / "x.safetensors"))
    assert_same_state(got, want)
    assert got[0].weight is got[1].weight


def test_weights_tied_in_a_model_of_ours_come_back_tied(tmp_path):
    want = models.resnet20()
    first, second = want.layer1[0], want.layer1[1]
    second.conv2.weight = second.conv1.weight = first.conv1.weight
    second.bn1.running_mean = first.bn1.running_mean
    got = load(save(want, tmp_path / "x.safetensors"))
    assert_same_state(got, want)
    first, second = got.layer1[0], got.layer1[1]
    assert second.conv1.weight is second.conv2.weight is first.conv1.weight
    assert second.bn1.running_mean is first.bn1.running_mean
    assert first.conv2.weight is not first.conv1.weight
    assert len(list(got.parameters())) == len(list(want.parameters()))


def test_folder(tmp_path):
    model = models.lenet5_bn()
    path = save(model, tmp_path / "run" / "net")
    assert path == tmp_path / "run" / "net" / "model.safetensors"
    assert_same_state(load(tmp_path / "run" / "net"), model)
    assert save(model, str(tmp_path)) == tmp_path / "model.safetensors"


def test_metadata(tmp_path):
    path = save(
        models.lenet5_bn(),
        tmp_path / "x.safetensors",
        metadata={"classes": ["null", "één"], "mean": [0.1307]},
    )
    info = read_info(path)
    assert info.metadata == {"classes": ["null", "één"], "mean": [0.1307]}
    assert info.config["name"] == "lenet5_bn"
    assert info.operators["conv2"]["type"] == "Adder2d"


def test_files_of_other_programs(tmp_path):
    model = models.lenet5_bn()
    want = scrambled(models.lenet5_bn())
    save_file(want.state_dict(), tmp_path / "x.safetensors")
    assert load_into(model, tmp_path / "x.safetensors").config is None
    assert_same_state(model, want)
    with pytest.raises(CheckpointError, match=r"no config of a torchadder model inside.*load_into"):
        load(tmp_path / "x.safetensors")


def test_compiled_model_is_stored_under_its_own_names(tmp_path):
    model = scrambled(models.lenet5_bn())
    path = save(torch.compile(model, backend="eager"), tmp_path / "x.safetensors")
    assert_same_state(load(path), model)
    other = models.lenet5_bn()
    load_into(torch.compile(other, backend="eager"), path)
    assert_same_state(other, model)


def changed_layer():
    model = models.resnet20(conv="conv")
    model.layer1[0].conv1 = Adder2d(16, 16, 3, padding=1, bias=False)
    return model


def changed_activation():
    model = models.resnet20()
    model.relu = nn.GELU()
    return model


def changed_rule():
    model = models.resnet20()
    model.layer1[0].conv1.grad = "exact"
    return model


class OwnConv(nn.Conv2d):
    """A layer class that a file must not name."""


@pytest.mark.parametrize(
    "build",
    [
        changed_layer,
        changed_activation,
        changed_rule,
        functools.partial(models.resnet20, conv=OwnConv),
        lambda: nn.Linear(2, 3),
    ],
)
def test_model_that_its_config_does_not_describe_is_weights_only(tmp_path, build):
    model = scrambled(build())
    path = save(model, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="no config of a torchadder model"):
        load(path)
    again = build()
    load_into(again, path)
    assert_same_state(again, model)


@pytest.mark.parametrize(
    ("saved", "model", "message"),
    [
        (
            models.resnet20,
            models.resnet32,
            r"\(saved from resnet20\) does not fit resnet32: missing layer1.3.conv1.weight.* more$",
        ),
        (models.resnet32, models.resnet20, "does not fit resnet20: unexpected layer1.3.bn1"),
        (
            models.resnet20,
            functools.partial(models.resnet20, 100),
            r"shape of fc.weight is \[10, 64, 1, 1\] instead of \[100, 64, 1, 1\]",
        ),
        (
            functools.partial(models.resnet20, conv="conv"),
            models.resnet20,
            "type of layer1.0.conv1 is Adder2d, saved Conv2d",
        ),
        (
            functools.partial(models.resnet50, 2, stride_in_1x1=True),
            functools.partial(models.resnet50, 2),
            r"stride of layer2.0.conv1 is \[1, 1\], saved \[2, 2\]",
        ),
        (
            lambda: Holder(x=torch.ones(2)),
            lambda: Holder(x=torch.ones(2, dtype=torch.int32)),
            "does not fit Holder: x is float32 instead of int32",
        ),
    ],
)
def test_other_architecture(tmp_path, saved, model, message):
    path = save(saved(), tmp_path / "net.safetensors")
    net = model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as raised:
        load_into(net, path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_other_operators_on_request(tmp_path):
    cnn = scrambled(models.resnet20(conv="conv"))
    path = save(cnn, tmp_path / "net.safetensors")
    adder = models.resnet20()
    load_into(adder, path, same_operators=False)
    assert_same_state(adder, cnn)


def test_gradient_rule_may_differ(tmp_path):
    model = scrambled(models.resnet20())
    other = models.resnet20(conv={"type": "adder", "grad": "sign"})
    load_into(other, save(model, tmp_path / "net.safetensors"))
    assert_same_state(other, model)


DAMAGE = {
    "empty": lambda data: b"",
    "header cut": lambda data: data[:100],
    "values cut": lambda data: data[:-100],
    "length": lambda data: b"\xff" * 8 + data[8:],
    "header": lambda data: data[:20] + b"\x00" + data[21:],
    "value": lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
    "appended": lambda data: data + b"\x00",
    "pickle": lambda data: pickle.dumps({"state_dict": 1}),
    "zip": lambda data: b"PK\x03\x04" + data,
    "text": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("read", [load, lambda path: load_into(models.lenet5_bn(), path)])
def test_damaged_files(tmp_path, kind, read):
    path = save(models.lenet5_bn(), tmp_path / "net.safetensors")
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as raised:
        read(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged description"),
        ("[]", "damaged description"),
        ('{"version": 1}', "damaged description"),
        ('{"version": 9, "other": 1}', "written in format 9, this version reads 1"),
        (
            '{"version": 1, "config": [1], "operators": {}, "metadata": {}, "aliases": {}, '
            '"checksum": null}',
            "damaged description: config is no mapping",
        ),
        (
            '{"version": 1, "config": {"name": "os.system", "kwargs": {}}, "operators": {}, '
            '"metadata": {}, "aliases": {}, "checksum": null}',
            "cannot rebuild the model from its config: model 'os.system' is unknown",
        ),
        (
            '{"version": 1, "config": {"name": "resnet20", "kwargs": {}}, "operators": {}, '
            '"metadata": {}, "aliases": {"a": "b"}, "checksum": null}',
            "a repeats b, which is not in the file",
        ),
    ],
)
def test_damaged_descriptions(tmp_path, text, message):
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"torchadder": text})
    with pytest.raises(CheckpointError, match=message):
        load(path)


@pytest.mark.parametrize("name", ["none.safetensors", "none", "a/b/c", "../x/y.safetensors"])
def test_missing_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load(name)


def test_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"model.safetensors: no such checkpoint"):
        load(tmp_path)


def test_hub(tmp_path, monkeypatch):
    import huggingface_hub

    model = scrambled(models.lenet5_bn())
    path = save(model, tmp_path / "cache")
    requests = []

    def download(repo_id, filename, *, revision):
        requests.append((repo_id, filename, revision))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    assert_same_state(load("someone/lenet", revision="v1"), model)
    assert requests == [("someone/lenet", "model.safetensors", "v1")]


def test_hub_cannot_be_reached(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(*args, **kwargs):
        raise LocalEntryNotFoundError("no connection\nand a second line")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"someone/lenet: no such file or folder, and .*: no"):
        load("someone/lenet")


@pytest.mark.parametrize("name", ["net.pt", "net.ckpt", "net.safetensor"])
def test_wrong_suffix(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"a checkpoint's name ends in \.safetensors"):
        save(models.lenet5_bn(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


class Extra(nn.Module):
    def get_extra_state(self):
        return {"anything": 1}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2, device="meta"), "weight is on meta"),
        (Holder(x=torch.eye(3).to_sparse()), "x is on cpu in torch.sparse_coo layout"),
        (Holder(x=torch.zeros(1, dtype=torch.complex128)), "cannot store torch.complex128"),
        (Extra(), "_extra_state is a dict, only tensors can be stored"),
        (nn.LazyLinear(3), "only tensors can be stored"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_tensors_that_cannot_be_stored(tmp_path, model, message):
    with pytest.raises(CheckpointError, match=message):
        save(model, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [torch.zeros(1), float("nan"), {1, 2}])
def test_metadata_must_be_json(tmp_path, value):
    with pytest.raises(CheckpointError, match="metadata must be JSON values"):
        save(models.lenet5_bn(), tmp_path / "x.safetensors", metadata={"x": value})


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save(models.lenet5_bn(), tmp_path / "net.safetensors")
    before = path.read_bytes()

    def no_space(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint: .*No space left"):
        save(scrambled(models.lenet5_bn()), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_replaces_an_older_file_and_honours_the_umask(tmp_path):
    path = save(models.lenet5_bn(), tmp_path / "net.safetensors")
    model = scrambled(models.lenet5_bn())
    save(model, path)
    assert_same_state(load(path), model)
    (tmp_path / "plain").write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_loaded_tensors_do_not_depend_on_the_file(tmp_path):
    model = scrambled(models.lenet5_bn())
    path = save(model, tmp_path / "net.safetensors")
    loaded = load(path)
    with open(path, "r+b") as file:
        file.write(b"\x00" * path.stat().st_size)
    assert_same_state(loaded, model)


def test_reading_runs_no_code(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    model = models.lenet5_bn()
    path = save(model, tmp_path / "net.safetensors")
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert_same_state(load(path), model)


def test_public_names():
    import torchadder

    assert torchadder.save is checkpoint.save
    assert torchadder.load is checkpoint.load
    assert issubclass(CheckpointError, ValueError)
