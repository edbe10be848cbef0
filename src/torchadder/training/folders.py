"""Run folders: their names, and what lies in them."""

from __future__ import annotations

import datetime
import itertools
from pathlib import Path

RUN_FILES = frozenset(
    {
        "config.yaml",
        "metrics.csv",
        "stability.csv",
        "summary.json",
        "left_out.txt",
        "tensorboard",
        "checkpoints",
        # Of a detector.
        "results.png",
        "results-dark.png",
        "pr_curve.png",
        "pr_curve-dark.png",
        "predictions.json",
        "evaluation.json",
    }
)
"""Every file and folder that `torchadder train` writes into a run folder; others are not deleted
where a run begins again."""


def dated_folder(name: str) -> Path:
    """`runs/NAME-TIME`, with a number behind it if there is one of that second; not made yet.

    Args:
        name: What is to be in it, a recipe's name for instance.
    """
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    first = Path("runs") / f"{name}-{stamp}"
    others = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in itertools.chain([first], others) if not folder.exists())
