"""Runs that are written, not trained: a table is about what runs left."""

import csv
import json
from types import SimpleNamespace

import yaml

CONV, ADDER, FIXED = "mnist_lenet5bn_conv", "mnist_lenet5bn_adder", "mnist_lenet5bn_pkkd_fixed"


def write_run(job, accuracies, *, status="finished", teacher=None, seconds=2.0):
    """A run folder with one epoch for each accuracy (shares)."""
    folder = job.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(job.recipe.to_dict()))
    rows = [
        {
            "epoch": epoch,
            "train_accuracy": 0.99,
            "val_loss": 0.5,
            "val_accuracy": accuracy,
            "val_top5": 0.999,
            "seconds": seconds,
            **({} if teacher is None else {"teacher_val_accuracy": teacher}),
        }
        for epoch, accuracy in enumerate(accuracies, 1)
    ]
    if rows:
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    summary = {
        "name": job.recipe.name,
        "status": status,
        "epochs": len(rows),
        "seconds_per_epoch": seconds if rows else None,
        "date": "2026-01-02T03:04:05+00:00",
        "hardware": {
            "gpu": None,
            "cpu": "Abacus",
            "instruction_set": "beads",
            "torch_threads": 1,
            "device": "cpu",
            "num_devices": 1,
        },
        "versions": {"torchadder": "0", "torch": "2"},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def interrupt(job):
    """A run that has finished two epochs."""
    write_run(job, [0.5] * 2, status="interrupted")
    (job.folder / "checkpoints").mkdir()
    (job.folder / "checkpoints" / "last.ckpt").write_bytes(b"state")


class Trainer:
    """Stands in for `torchadder.training`: writes runs, and does as it was told for some of them.

    Attributes:
        calls: ("fit" or "resume", name of the run folder) in the order of the calls.
        places: Where runs that went on were told to compute, in the same order.
        accuracies: What a recipe's run comes to; else 0.5.
        errors: Exceptions to raise by recipe, before anything is written.
    """

    def __init__(self):
        self.calls = []
        self.places = []
        self.accuracies = {}
        self.errors = {}

    def fit(self, recipe, *, output, command=None):
        self.calls.append(("fit", output.name))
        if recipe.name in self.errors:
            raise self.errors[recipe.name]
        assert not output.exists() or not any(output.iterdir())
        self._finish(recipe, output)

    def resume(self, folder, *, place=None, command=None):
        from torchadder.training.recipe import from_dict

        self.calls.append(("resume", folder.name))
        self.places.append(place)
        self._finish(from_dict(yaml.safe_load((folder / "config.yaml").read_text())), folder)

    def _finish(self, recipe, folder):
        accuracy = self.accuracies.get(recipe.name, 0.5)
        accuracy = accuracy[recipe.seed] if isinstance(accuracy, list) else accuracy
        job = SimpleNamespace(recipe=recipe, folder=folder)
        write_run(job, [accuracy] * recipe.epochs)


def contents(folder):
    """Every file below a folder with its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
