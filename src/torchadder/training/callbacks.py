"""What a run does beside the loop: the table of metrics, the guard against NaN, random numbers.

The checkpoints themselves are Lightning's `ModelCheckpoint`.
"""

from __future__ import annotations

import csv
import io
import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from torch import Tensor, nn

from torchadder.atomic import write_atomically

FIRST_COLUMNS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "val_top5",
    "lr",
    "seconds",
)


class NonFiniteError(FloatingPointError):
    """A loss, gradient or weight became NaN or infinite; the message says when and where."""


class MetricsTable(Callback):
    """Writes `metrics.csv`: one row for each finished epoch, numbers with all their digits.

    When a run goes on from a checkpoint, rows of epochs after that checkpoint are dropped.

    Args:
        path: The file.

    Attributes:
        rows (list[dict[str, float]]): The rows so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self._start = 0.0
        self._lr = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over the rows of the epochs that the checkpoint knows."""
        if self.path.is_file():
            rows = read_metrics(self.path)
            self.rows = [row for row in rows if row["epoch"] <= trainer.current_epoch]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the time and the learning rate."""
        self._start = time.monotonic()
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the row and says it on the terminal."""
        values = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name not in ("loss", "accuracy")
        }
        values |= {
            "epoch": len(self.rows) + 1,
            "lr": self._lr,
            "seconds": round(time.monotonic() - self._start, 3),
        }
        first = [name for name in FIRST_COLUMNS if name in values]
        rest = sorted(set(values) - set(first))
        self.rows.append({name: values[name] for name in [*first, *rest]})
        if trainer.is_global_zero:
            self._write()
            trainer.print(self._line(self.rows[-1], trainer.max_epochs or 0), flush=True)

    def _write(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(self.rows[-1]))
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, text.getvalue())

    @staticmethod
    def _line(row: dict[str, float], epochs: int) -> str:
        parts = [f"epoch {row['epoch']:.0f}/{epochs}"]
        for split in ("train", "val"):
            if f"{split}_loss" in row:
                accuracy = 100 * row[f"{split}_accuracy"]
                parts.append(f"{split} loss {row[f'{split}_loss']:.4f} accuracy {accuracy:.2f} %")
        if "teacher_val_accuracy" in row:
            parts.append(f"teacher {100 * row['teacher_val_accuracy']:.2f} %")
        return "  ".join([*parts, f"lr {row['lr']:.4g}", f"{row['seconds']:.1f} s"])


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.csv`."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {
                name: int(value) if name == "epoch" else float(value)
                for name, value in row.items()
                if value
            }
            for row in csv.DictReader(file)
        ]


class RunState(Callback):
    """Keeps in each checkpoint what Lightning does not: torch's random numbers and the recipe.

    Args:
        recipe: The recipe as plain values.
        division: How the images of an epoch were divided, as plain values.
    """

    def __init__(self, recipe: dict[str, Any], division: dict[str, int]) -> None:
        self.recipe = recipe
        self.division = division
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states of torch's generators."""
        state: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the states until training starts."""
        self._restored = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets the generators, after everything that may have drawn on them."""
        if self._restored is None:
            return
        torch.set_rng_state(self._restored["cpu"])
        if torch.cuda.is_available() and "cuda" in self._restored:
            torch.cuda.set_rng_state_all(self._restored["cuda"][: torch.cuda.device_count()])

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds what a checkpoint must have in common with the run that goes on from it."""
        checkpoint["recipe"] = self.recipe
        checkpoint["division"] = self.division


class BestAndLast(ModelCheckpoint):
    """`best.ckpt` (highest `val_accuracy`) and `last.ckpt`, written after each epoch.

    Unlike its base it remembers the best score when the run folder has been moved.

    Args:
        folder: Folder of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor="val_accuracy",
            mode="max",
            save_last=True,
            save_on_train_epoch_end=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves `best.ckpt` if there is no better epoch, and `last.ckpt` in any case."""
        super().on_train_epoch_end(trainer, pl_module)
        # From 2.6 on, Lightning writes last.ckpt only along with a new best.ckpt.
        if self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the scores, with all paths in the folder as it is called now."""
        here = str(self.dirpath)

        def moved(path: str) -> str:
            return os.path.join(here, os.path.basename(path)) if path else path

        super().load_state_dict(
            state_dict
            | {name: moved(state_dict[name]) for name in state_dict if name.endswith("_path")}
            | {
                "dirpath": self.dirpath,
                "best_k_models": {
                    moved(path): score for path, score in state_dict["best_k_models"].items()
                },
            }
        )


class NonFiniteGuard(Callback):
    """Stops training at the first NaN or infinity, before it can reach a checkpoint.

    The loss and all gradients are checked in every step (under fp16 loss scaling only the loss, as
    infinite gradients are normal there), the weights and the validation loss after every epoch. To
    name the layer, the failing batch is run once more with a hook on every layer.
    """

    def __init__(self) -> None:
        self._batch: Any = None
        self._batch_idx = 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the batch, in case it has to be run again."""
        self._batch, self._batch_idx = batch, batch_idx

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Checks the loss."""
        if not torch.isfinite(loss):
            self._stop(trainer, pl_module, f"the loss is {float(loss.detach())}")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the gradients."""
        if trainer.precision == "16-mixed":
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if gradients and not _all_finite(gradients):
            self._stop(trainer, pl_module, "the loss is finite, the gradient is not")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the weights and the validation loss, before anything is saved."""
        state = {
            name: value
            for name, value in pl_module.state_dict().items()
            if value.is_floating_point()
        }
        when = f"step {trainer.global_step}, end of epoch {trainer.current_epoch + 1}"
        if not _all_finite(list(state.values())):
            name = next(name for name, value in state.items() if not _all_finite([value]))
            raise NonFiniteError(f"{when}: {_layer(name)} is not finite{_kept(trainer)}")
        for name, value in trainer.callback_metrics.items():
            if name.endswith("val_loss") and not torch.isfinite(value):
                raise NonFiniteError(f"{when}: {name} is {float(value)}{_kept(trainer)}")

    def _stop(self, trainer: Trainer, pl_module: LightningModule, what: str) -> None:
        images, labels = self._batch
        context = trainer.precision_plugin.train_step_context
        with context():
            output, gradient = first_non_finite(pl_module, images, labels)
        where = ""
        if output is not None:
            where += f"; first non-finite in forward order: {output}"
        if gradient is not None:
            where += f"; first non-finite gradient in backward order: {gradient}"
        raise NonFiniteError(
            f"step {trainer.global_step} (epoch {trainer.current_epoch + 1}, "
            f"batch {self._batch_idx}): {what}{where}{_kept(trainer)}"
        )


def first_non_finite(
    task: nn.Module, images: Tensor, labels: Tensor
) -> tuple[str | None, str | None]:
    """Runs a task's `objective` forward and backward and names where numbers stop being finite.

    Args:
        task: A task with the method `objective(images, labels)`.
        images: Images (N, C, H, W).
        labels: Labels (N).

    Returns:
        The first layer with a non-finite weight or output in forward order, and the first gradient
        that is not finite in the order of the backward pass, as words; None where all is finite.
        Gradients already present are discarded.
    """
    outputs: list[str] = []
    gradients: list[str] = []
    handles = []

    def watch_output(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            for key, parameter in module.named_parameters(recurse=False):
                if not _all_finite([parameter]):
                    outputs.append(f"{_layer(f'{name}.{key}')}")
            if not _all_finite([output]):
                outputs.append(f"output of layer {_short(name)!r}")
            if output.requires_grad:
                output.register_hook(watch_gradient(f"output of layer {_short(name)!r}"))

        return hook

    def watch_gradient(words: str) -> Any:
        def hook(gradient: Tensor) -> None:
            if not _all_finite([gradient]):
                gradients.append(words)

        return hook

    def watch_parameter(words: str) -> Any:
        def hook(parameter: Tensor) -> None:
            if parameter.grad is not None and not _all_finite([parameter.grad]):
                gradients.append(words)

        return hook

    task.zero_grad(set_to_none=True)
    for name, module in task.named_modules():
        if next(module.children(), None) is None:
            handles.append(module.register_forward_hook(watch_output(name)))
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            hook = watch_parameter(_layer(name))
            handles.append(parameter.register_post_accumulate_grad_hook(hook))
    try:
        with torch.enable_grad():
            task.objective(images, labels).backward()  # type: ignore[operator]
    finally:
        for handle in handles:
            handle.remove()
    return next(iter(outputs), None), next(iter(gradients), None)


class Bar(TQDMProgressBar):
    """Lightning's progress bar, with epochs counted from 1 and without a version number."""

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Starts the bar of an epoch."""
        super().on_train_epoch_start(trainer)
        words = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.train_progress_bar.set_description(words)

    def get_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The metrics marked for the bar."""
        metrics = dict(super().get_metrics(*args, **kwargs))
        metrics.pop("v_num", None)
        return metrics


class Lines(Callback):
    """Progress for a file or a pipe: a line every half minute instead of a bar.

    Args:
        seconds: Time between two lines.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        self.seconds = seconds
        self._last = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prints a line if it is time."""
        if time.monotonic() - self._last < self.seconds:
            return
        self._last = time.monotonic()
        values = trainer.progress_bar_metrics
        shown = "  ".join(f"{name} {values[name]:.4f}" for name in ("loss", "accuracy"))
        trainer.print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  "
            f"batch {batch_idx + 1}/{trainer.num_training_batches}  {shown}",
            flush=True,
        )


def _all_finite(tensors: list[Tensor]) -> bool:
    # The largest absolute value is not finite if any entry is not; nothing can overflow on the way.
    largest = nn.utils.get_total_norm([tensor.detach() for tensor in tensors], float("inf"))
    return bool(torch.isfinite(largest))


def _short(name: str) -> str:
    """A module's name without the task's own level."""
    return name.removeprefix("model.")


def _layer(name: str) -> str:
    """`model.conv1.weight` in words."""
    layer, _, parameter = _short(name).rpartition(".")
    return f"{parameter} of layer {layer!r}" if layer else parameter


def _kept(trainer: Trainer) -> str:
    path = trainer.checkpoint_callback.last_model_path if trainer.checkpoint_callback else ""  # type: ignore[attr-defined]
    kept = f"the last good checkpoint is {path}" if path else "no epoch was finished before"
    return f"; {kept}"
