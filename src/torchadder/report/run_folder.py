"""A finished run as it lies on disk: its recipe, metrics, summary and weights. Only reads."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

import torchadder
from torchadder.data import ImageData


@dataclass(frozen=True)
class RunFolder:
    """What a run left behind.

    Attributes:
        path: The folder.
        config: The recipe, nested dicts.
        rows: One dict per epoch, the rows of `metrics.csv`.
        summary: Final metrics, hardware, versions, seed, date, command.
    """

    path: Path
    config: dict[str, Any]
    rows: list[dict[str, float]]
    summary: dict[str, Any]

    @property
    def kind(self) -> str:
        """What was trained: "conv", "adder", or "pkkd" for an adder net distilled by any method.

        Layers of "adder_lp" end as adder layers.
        """
        conv = self.config["model"]["conv"]
        kind = conv["type"] if isinstance(conv, dict) else conv
        kind = "adder" if kind.startswith("adder") else kind
        is_distilled = self.config["method"] not in ("supervised", "dropout")
        return "pkkd" if kind == "adder" and is_distilled else kind

    @property
    def epochs(self) -> int:
        """Number of finished epochs."""
        return len(self.rows)

    @property
    def train_loss(self) -> str:
        """Column of the cross-entropy with the labels; `train_loss` of a distilled net is a sum."""
        return "train_ce" if "train_ce" in self.rows[0] else "train_loss"

    @property
    def device(self) -> str:
        """The device the run computed on, or "cpu" where that is not there any more."""
        device = str(self.summary["hardware"]["device"])
        return device if device.startswith("cuda") and torch.cuda.is_available() else "cpu"

    def load_model(self, which: str = "last") -> nn.Module:
        """The net with the weights of the "last" or the "best" epoch, in evaluation mode.

        Raises:
            CheckpointError: If the weights cannot be read.
        """
        return torchadder.load(self.path / "checkpoints" / f"{which}.safetensors").eval()

    def open_data(self) -> ImageData:
        """The images of the run, opened.

        Raises:
            DataError: If they cannot be used.
        """
        data = ImageData(**self.config["data"], seed=self.config["seed"])
        data.setup()
        return data


def read_run(folder: str | os.PathLike[str]) -> RunFolder:
    """Reads the files of a run folder.

    Raises:
        ValueError: If a file is missing or damaged, or no epoch was finished.
    """
    path = Path(folder)
    texts = {}
    for name in ("config.yaml", "metrics.csv", "summary.json"):
        try:
            texts[name] = (path / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ValueError(f"{str(path)!r} is no folder of a finished run: no {name}") from None
    try:
        config = yaml.safe_load(texts["config.yaml"])
        rows = [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(texts["metrics.csv"].splitlines())
        ]
        summary = json.loads(texts["summary.json"])
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{str(path)!r}: damaged run: {' '.join(str(error).split())}") from error
    if not rows:
        raise ValueError(f"{str(path)!r}: no epoch was finished, there is nothing to report")
    return RunFolder(path, config, rows, summary)
