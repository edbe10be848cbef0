"""What holds for the time of a run: threads, seed, precision, and quiet libraries."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

import lightning
import torch

from torchadder.ops import allow_tf32_in_weight_gradient
from torchadder.training import distributed
from torchadder.training.recipe import Recipe


@contextlib.contextmanager
def environment(recipe: Recipe) -> Iterator[None]:
    """Threads, seed, precision and quiet libraries for the time of a run."""
    threads = torch.get_num_threads()
    try:
        if recipe.trainer.threads is not None:
            torch.set_num_threads(recipe.trainer.threads)
            if distributed.world().size > 1:
                # Lightning would choose a number, if none is given here.
                os.environ["OMP_NUM_THREADS"] = str(recipe.trainer.threads)
        with quiet(), tf32_convolutions(recipe.trainer.tf32):
            lightning.seed_everything(recipe.seed, workers=True, verbose=False)
            yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def tf32_convolutions(allowed: bool) -> Iterator[None]:
    """Whether convolutions on a GPU, and those behind weight gradients, may round to TF32.

    torch lets convolutions unless it is told.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = allowed
    allow_tf32_in_weight_gradient(allowed)
    try:
        yield
    finally:
        cudnn.allow_tf32 = before
        allow_tf32_in_weight_gradient(False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Lightning without its notices, and without four warnings that are known and harmless."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)  # devices found, tips: nothing that a run needs to say
    try:
        with warnings.catch_warnings():
            for message in (
                # Cached images are indexed, not decoded: worker processes would only slow it down.
                r"The '\w+_dataloader' does not have many workers",
                # `resume` goes on in the folder of the run; nothing else ever does.
                r"Checkpoint directory .* exists and is not empty",
                # The fixed teacher of a distillation stays in evaluation mode on purpose.
                r"Found \d+ module\(s\) in eval mode at the start of training",
                # Lightning 2.6 meets a torch newer than itself; nothing we could change.
                r"`isinstance\(treespec, LeafSpec\)` is deprecated",
            ):
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        logger.setLevel(level)
