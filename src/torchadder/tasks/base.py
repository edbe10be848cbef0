"""What every task shares: SGD with AdderNet's adaptive rate, the schedule, the sums of an epoch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable
from typing import Any, ClassVar

import lightning
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from torchadder import awn
from torchadder.data.within_epoch import begins_within_epoch, is_within_epoch
from torchadder.nn import AdderModule
from torchadder.optim import AdaptiveLR
from torchadder.processes import objects_of_processes
from torchadder.tasks.length import RunLength, run_length
from torchadder.tasks.totals import EpochTotals

LossAndSums = Callable[[Any, Any], tuple[Tensor, dict[str, Tensor]]]


class TrainingTask(lightning.LightningModule):
    """Trains a net with SGD and AdderNet's adaptive rate; what its loss is, a subclass says.

    The learning rate follows half a cosine,
    `lr(e) = min_lr + (lr - min_lr) (1 + cos(pi e / E)) / 2`, with E the number of epochs and e the
    epoch (`interval="epoch"`, as in AdderNet's released code, arXiv 1912.13200) or the epochs done
    so far, with fractions, after each step (`interval="step"`). In the first w = `warmup` steps it
    is multiplied by `(s + 1) / (w + 1)`, s the steps done. It is a function of the step alone, so
    an interrupted run goes on with the right rate. The run ends with the trainer's `max_epochs` or
    `max_steps`, whichever comes first; one of them is needed, unless the rate is constant.

    What an epoch of training adds up stays on the device in `train_totals`; a training step logs
    nothing and never waits for the device.

    Args:
        model: The net.
        lr: Learning rate at the start.
        momentum: Momentum.
        weight_decay: L2 penalty on all parameters of the model, adder weights included; scales of
            normalised weights (`torchadder.awn`) as their configuration says.
        nesterov: Nesterov's form of momentum.
        eta: AdderNet's eta for the gradients of adder layers; None leaves them as they are.
        schedule: "cosine" or "constant".
        interval: "epoch" or "step".
        min_lr: Rate that the cosine ends at.
        warmup: Steps in which the rate rises.

    Attributes:
        monitor (str): The validation metric that says which epoch is best; higher is better.
        batch_weight (Callable[[int], float] | None): Factor of the gradient of the batch with the
            given number in its epoch, where the batches of a step are unequal
            (`torchadder.data.BatchPlan.weight`); None: 1 for all.
        fast_step (Callable | None): What computes `loss_and_sums` in a training step, compiled for
            instance; None: the method itself.
        train_totals (EpochTotals): Sums over the images of the epoch so far.
        fused (bool): Whether the optimizer updates all weights in one kernel, which can skip a step
            by a flag on the device; None: on CUDA devices, but not under fp16 loss scaling.
        has_tensor_batches (bool): Whether a batch is a pair of tensors, and not of lists.
    """

    monitor: str
    has_tensor_batches: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        nesterov: bool = False,
        eta: float | None = 0.2,
        schedule: str = "cosine",
        interval: str = "epoch",
        min_lr: float = 0.0,
        warmup: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.nesterov = nesterov
        self.eta = eta
        self.schedule = schedule
        self.interval = interval
        self.min_lr = min_lr
        self.warmup = warmup
        self.train_totals = EpochTotals()
        self._saved_totals: list[dict[str, Any]] = []
        self.batch_weight: Callable[[int], float] | None = None
        self.fast_step: LossAndSums | None = None
        self.fused: bool | None = None

    @property
    def plain_model(self) -> nn.Module:
        """The net that is kept after training."""
        return self.model

    @property
    def step_key(self) -> Hashable:
        """Changes where a training step begins to do other operations than the one before.

        None: the next step cannot stand for those that follow.
        """
        return ()

    def hold(self) -> contextlib.AbstractContextManager[None]:
        """A `with` block in which `loss_and_sums` can be compiled as a whole."""
        return contextlib.nullcontext()

    def loss_and_sums(self, images: Any, labels: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """What a training step computes of a batch, without side effects but those of the layers.

        Args:
            images: The images.
            labels: What is to be learnt of them.

        Returns:
            The loss to minimise, a scalar, and detached scalars by the name they are logged under,
            each a sum over the images of the batch.
        """
        raise NotImplementedError

    def objective(self, images: Any, labels: Any) -> Tensor:
        """What training minimises: a scalar."""
        return self.loss_and_sums(images, labels)[0]

    def on_train_start(self) -> None:
        """Takes up an epoch in its middle, if that is where the run goes on."""
        if begins_within_epoch(self.trainer):
            self.on_train_epoch_resume()

    def on_train_epoch_start(self) -> None:
        """Starts the totals of the epoch."""
        self.train_totals.reset()

    def on_train_epoch_resume(self) -> None:
        """In place of `on_train_epoch_start`: takes up the totals."""
        saved, self._saved_totals = self._saved_totals, []
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        # As many processes go on each with its own; of others the first takes all.
        own = saved[rank : rank + 1] if len(saved) == world_size else saved if rank == 0 else []
        self.train_totals.load_state_dict(own, self.device)

    def training_step(self, batch: tuple[Any, Any], batch_idx: int) -> Tensor:
        """The loss of a batch, a scalar; adds the batch to the totals of the epoch."""
        images, labels = batch
        loss, sums = (self.fast_step or self.loss_and_sums)(images, labels)
        self.train_totals.add(sums, len(labels))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs the means of the epoch after its last batch."""
        is_limit = batch_idx + 1 == self.trainer.num_training_batches
        if not (is_limit or self.trainer.is_last_batch):
            return

        def over_processes(totals: Tensor) -> Tensor:
            return self.trainer.strategy.reduce(totals, reduce_op="sum")  # type: ignore[return-value]

        # The means are those of all processes already; averaging them once more changes nothing.
        means = self.train_totals.means(over_processes)
        self.log_dict(means, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The backward pass, weighted so that every image of a step counts the same."""
        if self.batch_weight is not None:
            weight = self.batch_weight(self.trainer.fit_loop.batch_idx)
            loss = loss if weight == 1 else loss * weight
        super().backward(loss, *args, **kwargs)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer."""
        return [{"params": [p for p in self.model.parameters() if p.requires_grad]}]

    def configure_optimizers(self) -> dict[str, Any]:
        """SGD with AdaptiveLR, and the schedule, stepped after each optimizer step.

        Raises:
            ValueError: If the rate falls, but the trainer does not say over how many steps.
        """
        optimizer = torch.optim.SGD(
            awn.parameter_groups(self, self.parameter_groups()),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            fused=self._is_fused() or None,
        )
        if self.eta is not None and self._trains_adder_layers():
            AdaptiveLR(optimizer, self, self.eta)
        schedule = LambdaLR(optimizer, self._schedule_factor(run_length(self.trainer)))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the totals of an unfinished epoch."""
        if is_within_epoch(self.trainer):
            checkpoint["train_totals"] = objects_of_processes(self.train_totals.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up the totals, and leaves it to this machine how the optimizer computes."""
        self._saved_totals = checkpoint.get("train_totals", [])
        for state in checkpoint.get("optimizer_states", []):
            for group in state["param_groups"]:
                group["fused"] = self._is_fused() or None

    def _is_fused(self) -> bool:
        if self.fused is not None:
            return self.fused
        # Not `self.device`: a checkpoint is loaded before the net is moved to its device.
        device = self.trainer.strategy.root_device
        # A GradScaler and a fused optimizer share the flag that skips a step.
        return device.type == "cuda" and self.trainer.precision != "16-mixed"

    def _trains_adder_layers(self) -> bool:
        layers = (layer for layer in self.modules() if isinstance(layer, AdderModule))
        return any(layer.weight.requires_grad for layer in layers)

    def _schedule_factor(self, length: RunLength | None) -> Callable[[int], float]:
        """Step -> factor of `lr` in a run of the given length; None: not known."""

        def rise(step: int) -> float:
            return min(1.0, (step + 1) / (self.warmup + 1))

        if self.schedule == "constant":
            return rise
        if length is None:
            raise ValueError(
                f"schedule = {self.schedule!r} needs the length of the run: give the trainer "
                "max_epochs or max_steps, or take schedule = 'constant'"
            )
        steps, per_epoch, epochs = max(1, length.steps), length.steps_per_epoch, length.epochs
        if self.interval == "epoch" and (per_epoch is None or epochs is None):
            raise ValueError(
                "interval = 'epoch' needs data of known length: take interval = 'step', or limit "
                "the batches of an epoch with the trainer's limit_train_batches"
            )
        floor = self.min_lr / self.lr

        def factor(step: int) -> float:
            progress = step / steps
            if self.interval == "epoch" and per_epoch and epochs:
                progress = (step // per_epoch) / epochs
            fall = (1 + math.cos(math.pi * min(1.0, progress))) / 2
            return rise(step) * (floor + (1 - floor) * fall)

        return factor
