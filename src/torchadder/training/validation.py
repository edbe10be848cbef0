"""One pass of Lightning's Trainer over a validation loader, outside a training run."""

from __future__ import annotations

import time
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from torchadder.training.environment import quiet, tf32_convolutions
from torchadder.training.recipe import RecipeError


def validate(
    task: lightning.LightningModule,
    loader: Any,
    *,
    threads: int | None = None,
    accelerator: str = "auto",
) -> tuple[dict[str, float], float]:
    """The metrics that a task logs in validation, and the seconds that they took.

    Args:
        task: The task with its net.
        loader: Batches of images and targets.
        threads: Threads of torch on the CPU meanwhile; None leaves the number as it is.
        accelerator: Lightning's accelerator.

    Raises:
        RecipeError: If there is no such accelerator.
        ValueError: If `threads` is below 1.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        with quiet(), tf32_convolutions(False):
            trainer = lightning.Trainer(
                accelerator=accelerator,
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,
            )
            start = time.monotonic()
            metrics = dict(trainer.validate(task, loader, verbose=False)[0])
            return metrics, time.monotonic() - start
    except MisconfigurationException as error:
        raise RecipeError(f"trainer: {' '.join(str(error).split())}") from error
    finally:
        torch.set_num_threads(before)
