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
"""What a run folder may hold before a page is made of the run. Where a run begins again these are
deleted, and a folder with anything else is left alone."""


def dated_folder(name: str) -> Path:
    """`runs/NAME-TIME`, with a number behind it if there is one of that second; not made yet.

    Args:
        name: What is to be in it, a recipe's name for instance.
    """
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    first = Path("runs") / f"{name}-{stamp}"
    others = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in itertools.chain([first], others) if not folder.exists())
