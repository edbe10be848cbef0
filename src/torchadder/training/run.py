"""From a recipe to a run folder: data, task and Lightning's Trainer put together.

A run folder holds `config.yaml` (the complete recipe), `metrics.csv`, `tensorboard/`,
`checkpoints/{best,last}.ckpt` (state of the run) and `.safetensors` (weights of the plain net),
`summary.json` and, where annotations were left out, `left_out.txt`. It is never used for a second
run: only `resume` writes into an existing one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

import torchadder
from torchadder import locks
from torchadder.atomic import is_temporary, remove_temporaries, write_atomically
from torchadder.checkpoint import CheckpointError
from torchadder.data import BatchPlan
from torchadder.data.epochs import EpochData
from torchadder.data.within_epoch import num_batches_done
from torchadder.tasks import TrainingTask
from torchadder.training import distributed
from torchadder.training.answers import SameAnswers
from torchadder.training.assembly import (
    build_task,
    checkpoint_metadata,
    open_data,
    without_initial_weights,
)
from torchadder.training.callbacks import (
    MetricsTable,
    RunState,
    ValidateLastEpoch,
)
from torchadder.training.checkpoint_io import SafetensorsCheckpointIO, read_state
from torchadder.training.checkpoints import BestAndLast
from torchadder.training.environment import environment
from torchadder.training.exponent import ExponentFall, schedule_of
from torchadder.training.folders import dated_folder
from torchadder.training.graph import FastStep
from torchadder.training.guard import NonFiniteGuard
from torchadder.training.own_state import OwnState
from torchadder.training.progress import Bar, Lines, StepCurves
from torchadder.training.recipe import (
    Recipe,
    RecipeError,
    from_dict,
    read_recipe,
)
from torchadder.training.resuming import (
    check_division,
    check_recipe,
    check_state,
    check_unfinished,
    keep_readers,
    last_checkpoint,
    num_finished,
    what_is_kept,
)
from torchadder.training.stability import StabilityTable
from torchadder.training.stopping import StopRequests
from torchadder.training.summary import config_text, final_metrics, write_summary
from torchadder.wording import counted

LEFT_OUT = "left_out.txt"
"""File of a run folder with the annotations that could not be used, if there are any."""

NUM_LISTED = 20
"""How many of them are printed."""


PATIENCE = 10.0
"""Seconds that a run waits for processes of a killed one to leave its folder."""


class OutputError(OSError):
    """A file of a run could not be written or read; the message names it and how to go on."""


@dataclass
class RunResult:
    """What a finished run left behind.

    Attributes:
        folder: The run folder.
        best_checkpoint: Weights of the epoch with the best validation metric (.safetensors).
        last_checkpoint: Weights of the last epoch (.safetensors).
        metrics: The last epoch's metrics, `best_val_accuracy` (of a detector `best_val_ap` or
            `best_val_voc_ap`) and `best_epoch` (counted from 1).
        history: One dict per epoch, the rows of `metrics.csv`.
        model: The plain net with the best epoch's weights, in evaluation mode on the CPU.
        data: The images it was trained on.
        seconds: Duration of the run (of its last part, if it was resumed).
    """

    folder: Path
    best_checkpoint: Path
    last_checkpoint: Path
    metrics: dict[str, float]
    history: list[dict[str, float]]
    model: nn.Module
    data: Any
    seconds: float


def fit(
    recipe: Recipe,
    *,
    output: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Callback] = (),
    command: str | None = None,
) -> RunResult:
    """Runs a recipe in a new run folder.

    Args:
        recipe: What to train, on what, and how.
        output: The run folder, new or empty; None makes `runs/<recipe>-<time>`.
        callbacks: Further Lightning callbacks. As ever with Lightning, `on_train_epoch_start` is
            not called again where a run goes on within an epoch; `on_train_start` is, in which
            `torchadder.data.begins_within_epoch` tells.
        command: What to record as the command; None records `sys.argv`.

    Returns:
        Where everything is, the metrics, and the net.

    Raises:
        RecipeError: If the recipe does not fit its data or the machine.
        DataError: If the data cannot be used.
        FileExistsError: If `output` holds files already.
        NonFiniteError: If a loss, gradient or weight becomes NaN or infinite.
        KeyboardInterrupt: After Ctrl-C, with the last checkpoint in place.
    """
    with environment(recipe):
        here = distributed.connect(recipe.trainer)
        folder = distributed.on_first(lambda: _claim(recipe.name, output))
        data, task = distributed.together(lambda: _prepare(recipe, here.size))
        return _run(recipe, data, task, folder, None, callbacks, command)


def resume(
    folder: str | os.PathLike[str],
    *,
    place: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    command: str | None = None,
) -> RunResult:
    """Continues an interrupted run from its last checkpoint, in the same folder.

    On a CPU the result is that of an uninterrupted run, bit for bit: weights, momentum, schedule,
    order and augmentation of the images and the metrics (except the seconds). A run that was
    stopped before its first checkpoint starts again.

    Args:
        folder: The run folder.
        place: Where to compute from now on: new values for the recipe's `trainer.accelerator`,
            `devices`, `threads` and `timeout`, and for `checkpoint_minutes`. The number of
            processes may change where an epoch keeps its batches.
        callbacks: Further Lightning callbacks, as of `fit`.
        command: What to record as the command; None records `sys.argv`.

    Raises:
        RecipeError: If there is no run in `folder`, it is finished, or its `config.yaml` is not the
            recipe of its checkpoint.
        CheckpointError: If the checkpoint is missing, truncated or of another net.
    """
    folder = Path(folder)
    recipe = read_recipe(folder, place)
    with environment(recipe):
        here = distributed.connect(recipe.trainer)
        checkpoint = distributed.on_first(lambda: last_checkpoint(folder))

        def prepare() -> tuple[EpochData, TrainingTask]:
            if checkpoint is None:
                return _prepare(recipe, here.size)
            state = read_state(checkpoint)
            saved = from_dict(state.get("recipe", {}), str(checkpoint)).to_dict()
            check_recipe(recipe, saved, folder / "config.yaml", checkpoint)
            check_unfinished(recipe, state, folder)
            data, task = _prepare(without_initial_weights(recipe), here.size)
            check_state(task, state["state_dict"], checkpoint)
            check_division(state, data.plan(here.size), checkpoint)
            data.first_epoch, data.first_batch = num_finished(state), num_batches_done(state)
            keep_readers(state, data, here.size, checkpoint)
            return data, task

        data, task = distributed.together(prepare)
        return _run(recipe, data, task, folder, checkpoint, callbacks, command)


def _claim(name: str, output: str | os.PathLike[str] | None) -> Path:
    """The folder of a new run, which must hold nothing."""
    if output is None:
        return dated_folder(name)
    folder = Path(output)
    if folder.exists() and (
        not folder.is_dir() or any(not is_temporary(path) for path in folder.iterdir())
    ):
        raise FileExistsError(
            f"output {str(output)!r} exists and is not empty; nothing in it is overwritten: "
            "choose another folder, or continue that run with --resume"
        )
    return folder


def _prepare(recipe: Recipe, world_size: int) -> tuple[EpochData, TrainingTask]:
    data = open_data(recipe)
    data.plan(world_size)
    task = build_task(recipe, data)
    if recipe.trainer.channels_last:
        # The first convolution gives its output the form of its weights; all others keep it.
        task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.trainer.precision == "64-true":
        task.double()  # Lightning reads a checkpoint first and converts the net then
    return data, task


def _run(
    recipe: Recipe,
    data: EpochData,
    task: TrainingTask,
    folder: Path,
    checkpoint: Path | None,
    callbacks: Sequence[Callback],
    command: str | None,
) -> RunResult:
    table = MetricsTable(folder / "metrics.csv")
    table.restore(data.first_epoch)
    requests = StopRequests()
    measuring = distributed.together(lambda: _stability(recipe, task, folder))
    minutes = recipe.trainer.checkpoint_minutes
    within = None if minutes is None else 60 * minutes
    apart = OwnState(recipe.seed)
    best_and_last = BestAndLast(
        folder / "checkpoints", task.monitor, within=within, around=apart.averaged
    )
    own = [apart, *_exponent(recipe), table, SameAnswers(), *measuring, *_patience(recipe, task)]
    own += [best_and_last, requests]
    trainer = distributed.together(lambda: _trainer(recipe, data, task, folder, [*own, *callbacks]))
    task.batch_weight = _batch_weight(trainer, data.plan(trainer.world_size))
    fast = distributed.together(lambda: _fast_step(recipe, trainer, task))
    task.fast_step = fast if task.has_tensor_batches else None
    # Only now: a recipe that cannot run leaves no folder behind.
    held = contextlib.ExitStack()
    distributed.on_first(lambda: _open_folder(folder, recipe, held, is_new=checkpoint is None))
    if trainer.is_global_zero:
        print(_headline(recipe, data, task, folder, trainer.world_size), flush=True)
        if checkpoint is not None:
            print(f"goes on after {what_is_kept(folder, recipe.epochs)}", flush=True)
        _list_left_out(data, folder)
    peers = distributed.Peers()
    start = time.monotonic()
    status = "interrupted"
    try:
        with requests:
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        status = "finished"
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        failure = _failure(error, trainer, requests, peers, recipe, folder)
        if not isinstance(failure, KeyboardInterrupt):
            status = f"stopped: {failure}"
        if failure is error:
            raise
        raise failure from error
    finally:
        seconds = time.monotonic() - start
        task.fast_step = None
        data.first_batch = 0  # whoever takes the data from the result wants whole epochs
        fast.close()
        if trainer.is_global_zero:
            # On a full disk the summary fails as well; the first error is the one to say.
            with contextlib.suppress(*([] if status == "finished" else [OSError])):
                write_summary(folder, recipe, table.rows, status, seconds, command, trainer, task)
        held.close()
    best = folder / "checkpoints" / "best.safetensors"
    return RunResult(
        folder=folder,
        best_checkpoint=best,
        last_checkpoint=folder / "checkpoints" / "last.safetensors",
        metrics=final_metrics(table.rows, task.monitor),
        history=table.rows,
        model=torchadder.load(best).eval(),
        data=data,
        seconds=seconds,
    )


def _exponent(recipe: Recipe) -> list[Callback]:
    schedule = schedule_of(recipe)
    return [] if schedule is None else [ExponentFall(schedule, recipe.lp.clip)]


def _patience(recipe: Recipe, task: TrainingTask) -> list[Callback]:
    patience = recipe.trainer.patience
    if patience is None:
        return []
    # Checked before the checkpoint of the epoch is written, which so knows how long it has waited.
    return [
        EarlyStopping(task.monitor, patience=patience, mode="max", check_on_train_epoch_end=False)
    ]


def _stability(recipe: Recipe, task: TrainingTask, folder: Path) -> list[Callback]:
    every = recipe.trainer.record_stability
    if not every:
        return []
    try:
        return [StabilityTable(folder / "stability.csv", task.plain_model, every)]
    except ValueError as error:
        raise RecipeError(f"trainer.record_stability = {every}: {error}") from error


def _open_folder(folder: Path, recipe: Recipe, held: contextlib.ExitStack, *, is_new: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held.enter_context(locks.locked(folder, seconds=PATIENCE))
    except BlockingIOError as error:
        raise RecipeError(f"{str(folder)!r}: another process is training there") from error
    remove_temporaries(folder)
    if is_new and not (folder / "config.yaml").is_file():
        write_atomically(folder / "config.yaml", config_text(recipe))


def _list_left_out(data: EpochData, folder: Path) -> None:
    """Says what of the data could not be used, and keeps the list in `left_out.txt`."""
    if not data.left_out:
        return
    lines = [str(entry) for entry in data.left_out]
    write_atomically(folder / LEFT_OUT, "\n".join(lines) + "\n")
    print(f"left out ({len(lines)}), also in {folder / LEFT_OUT}:")
    for line in lines[:NUM_LISTED]:
        print(f"  {line}")
    if len(lines) > NUM_LISTED:
        print(f"  and {len(lines) - NUM_LISTED} more", flush=True)


def _headline(
    recipe: Recipe, data: EpochData, task: TrainingTask, folder: Path, world_size: int
) -> str:
    num_weights = sum(parameter.numel() for parameter in task.plain_model.parameters())
    processes = f"{world_size} processes, " if world_size > 1 else ""
    return (
        f"{recipe.name}: {recipe.model.name} with {num_weights:,} weights, "
        f"{len(data.train):,} training and {len(data.val):,} validation images of "
        f"{data.num_classes} classes, {counted(recipe.epochs, 'epoch')}, {processes}to {folder}"
    )


def _fast_step(recipe: Recipe, trainer: lightning.Trainer, task: TrainingTask) -> FastStep:
    """The training step, compiled and recorded as the recipe says.

    Raises:
        RecipeError: If a step is to be recorded that several processes share.
    """
    options = recipe.trainer
    if options.cuda_graph and trainer.world_size > 1:
        raise RecipeError(
            f"trainer.cuda_graph = True: one process is wanted, not {trainer.world_size}; a "
            "recorded step cannot exchange gradients"
        )
    return FastStep(
        task,
        compile=options.compile,
        cuda_graph=options.cuda_graph,
        is_shared=trainer.world_size > 1,
    )


def _batch_weight(trainer: lightning.Trainer, plan: BatchPlan) -> Callable[[int], float] | None:
    """The weight of each batch in its step; None where it is 1 for all."""
    accumulate = trainer.accumulate_grad_batches
    if trainer.world_size == 1 and accumulate == 1:
        return None

    def weight(batch: int) -> float:
        limit = int(trainer.num_training_batches)
        return plan.weight(batch, trainer.global_rank, accumulate, limit)

    return weight


def _failure(
    error: BaseException,
    trainer: lightning.Trainer,
    requests: StopRequests,
    peers: distributed.Peers,
    recipe: Recipe,
    folder: Path,
) -> BaseException:
    """What to raise for what ended a run: the same, or something that tells the user more."""
    done = what_is_kept(folder, recipe.epochs)
    kept = "there is no checkpoint" if done is None else f"{done} are kept"
    goes_on = f"continue with: torchadder train --resume {folder}"
    is_interrupted = requests.received is not None or isinstance(error, KeyboardInterrupt)
    lost = None
    if requests.received != signal.SIGINT:  # the user's Ctrl-C reaches all processes
        lost = peers.explain(error, is_interrupted)
    if lost is not None:
        # The launcher of the processes stops them now, but not before this one has spoken.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        when = f"in epoch {trainer.current_epoch + 1} of {recipe.epochs}"
        return distributed.PeerLostError(f"{lost}, {when}; {kept}; {goes_on}", peers.speaks())
    if is_interrupted or (isinstance(error, SystemExit) and trainer.interrupted):
        # Lightning turns Ctrl-C into exit(1).
        words = f"{done}; {goes_on}" if done else f"0 of {recipe.epochs} epochs; nothing was kept"
        return KeyboardInterrupt(f"interrupted after {words}")
    if isinstance(error, OSError | CheckpointError):
        return OutputError(f"{_words(error)}; {kept}; {goes_on}")
    if "parameters that were not used in producing the loss" in str(error):
        named = trainer.lightning_module.named_parameters()
        idle = [name for name, p in named if p.requires_grad and p.grad is None]
        return RecipeError(
            "several processes can only train what takes part in the loss; these parameters do "
            f"not: {', '.join(idle) or 'unknown'}"
        )
    return error


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _limited(recipe: Recipe, key: str, num_batches: int) -> int:
    """The number of batches of an epoch that a key of the recipe leaves."""
    limit = getattr(recipe.trainer, key)
    left = min(num_batches, limit if isinstance(limit, int) else int(num_batches * limit))
    if left < 1:
        raise RecipeError(f"trainer.{key} = {limit} leaves none of the {num_batches} batches")
    return left


def _trainer(
    recipe: Recipe, data: EpochData, task: TrainingTask, folder: Path, callbacks: list[Callback]
) -> lightning.Trainer:
    options = recipe.trainer
    is_terminal = sys.stdout.isatty()
    here = distributed.world()
    place = distributed.trainer_options(options, here)
    division: dict[str, int] = {
        "world_size": here.size,
        "num_batches": data.plan(here.size).num_batches,
    }
    if data.stream_workers is not None:
        division["stream_workers"] = data.stream_workers
    num_batches = _limited(recipe, "limit_train_batches", division["num_batches"])
    _limited(recipe, "limit_val_batches", data.num_val_batches(here.size))
    try:
        return lightning.Trainer(
            max_epochs=recipe.epochs,
            accelerator=options.accelerator,
            precision=options.precision,  # type: ignore[arg-type]
            accumulate_grad_batches=options.accumulate,
            gradient_clip_val=options.gradient_clip,
            limit_train_batches=options.limit_train_batches,
            limit_val_batches=options.limit_val_batches,
            check_val_every_n_epoch=options.check_val_every,
            deterministic=options.deterministic,
            callbacks=[
                Bar() if is_terminal else Lines(),
                StepCurves(),
                NonFiniteGuard(deferred=None if task.has_tensor_batches else False),
                RunState(recipe.to_dict(), division),
                ValidateLastEpoch(),
                *callbacks,
            ],
            plugins=[
                SafetensorsCheckpointIO(task.plain_model, checkpoint_metadata(recipe, data)),
                *place.pop("plugins"),
            ],
            logger=TensorBoardLogger(folder, name=None, version="tensorboard"),
            log_every_n_steps=max(1, min(50, num_batches // 4)),
            default_root_dir=folder,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=is_terminal,
            use_distributed_sampler=False,  # the sampler of EpochData divides the images itself
            **place,
        )
    except (MisconfigurationException, ValueError, RuntimeError, AssertionError) as error:
        raise RecipeError(f"trainer: {' '.join(str(error).split())}") from error
