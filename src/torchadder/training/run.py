"""From a recipe to a run folder: data, task and Lightning's Trainer put together.

A run folder holds `config.yaml` (the complete recipe), `metrics.csv`, `tensorboard/`,
`checkpoints/{best,last}.ckpt` (state of the run) and `.safetensors` (weights of the plain net) and
`summary.json`. It is never used for a second run: only `resume` writes into an existing one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import json
import logging
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

import torchadder
from torchadder import models
from torchadder.atomic import is_temporary, remove_temporaries, write_atomically
from torchadder.checkpoint import CheckpointError, load_into
from torchadder.data import BatchPlan, ImageData
from torchadder.distill import Distiller, find_method, options_of, share_initial_values
from torchadder.lp import ExponentSchedule, set_exponent_
from torchadder.provenance import provenance
from torchadder.tasks import Classification, Distillation, Ramp, SlacClassification
from torchadder.training import distributed
from torchadder.training.callbacks import (
    BestAndLast,
    MetricsTable,
    RunState,
    ValidateLastEpoch,
    read_metrics,
)
from torchadder.training.checkpoint_io import SafetensorsCheckpointIO, read_state
from torchadder.training.exponent import ExponentFall
from torchadder.training.graph import FastStep
from torchadder.training.guard import NonFiniteGuard
from torchadder.training.progress import Bar, Lines, StepCurves
from torchadder.training.recipe import (
    PLACE_KEYS,
    ModelConfig,
    Recipe,
    RecipeError,
    from_dict,
    read_recipe,
)
from torchadder.training.stopping import StopRequests


class OutputError(OSError):
    """A file of a run could not be written or read; the message names it and how to go on."""


@dataclass
class RunResult:
    """What a finished run left behind.

    Attributes:
        folder: The run folder.
        best_checkpoint: Weights of the epoch with the highest validation accuracy (.safetensors).
        last_checkpoint: Weights of the last epoch (.safetensors).
        metrics: The last epoch's metrics, `best_val_accuracy` and `best_epoch` (counted from 1).
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
    data: ImageData
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
        callbacks: Further Lightning callbacks.
        command: What to record as the command; None records `sys.argv`.

    Returns:
        Where everything is, the metrics, and the net.

    Raises:
        RecipeError: If the recipe does not fit its data or the machine.
        DataError: If the data cannot be used.
        FileExistsError: If `output` holds files already.
        NonFiniteError: If a loss, gradient or weight becomes NaN or infinite.
        KeyboardInterrupt: After Ctrl-C, with the last epoch's checkpoint in place.
    """
    with _environment(recipe):
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
    """Continues an interrupted run from its last finished epoch, in the same folder.

    On a CPU the result is that of an uninterrupted run, bit for bit: weights, momentum, schedule,
    order and augmentation of the images and the metrics (except the seconds). A run that was
    stopped before its first epoch was finished starts again.

    Args:
        folder: The run folder.
        place: Where to compute from now on: new values for the recipe's `trainer.accelerator`,
            `devices`, `threads` and `timeout`. The number of processes may change where an epoch
            keeps its batches.
        callbacks: Further Lightning callbacks.
        command: What to record as the command; None records `sys.argv`.

    Raises:
        RecipeError: If there is no run in `folder`, it is finished, or its `config.yaml` is not the
            recipe of its checkpoint.
        CheckpointError: If the checkpoint is missing, truncated or of another net.
    """
    folder = Path(folder)
    recipe = read_recipe(folder, place)
    with _environment(recipe):
        here = distributed.connect(recipe.trainer)
        checkpoint = distributed.on_first(lambda: _last_checkpoint(folder))

        def prepare() -> tuple[ImageData, Classification]:
            if checkpoint is None:
                return _prepare(recipe, here.size)
            state = read_state(checkpoint)
            saved = from_dict(state.get("recipe", {}), str(checkpoint)).to_dict()
            _check_recipe(recipe, saved, folder / "config.yaml", checkpoint)
            _check_unfinished(recipe, state, folder)
            data, task = _prepare(recipe, here.size)
            _check_state(task, state["state_dict"], checkpoint)
            _check_division(state, data.plan(here.size), checkpoint)
            data.first_epoch = _num_finished(state)
            return data, task

        data, task = distributed.together(prepare)
        return _run(recipe, data, task, folder, checkpoint, callbacks, command)


def _claim(name: str, output: str | os.PathLike[str] | None) -> Path:
    """The folder of a new run, which must hold nothing."""
    if output is None:
        return _new_folder(name)
    folder = Path(output)
    if folder.exists() and (
        not folder.is_dir() or any(not is_temporary(path) for path in folder.iterdir())
    ):
        raise FileExistsError(
            f"output {str(output)!r} exists and is not empty; nothing in it is overwritten: "
            "choose another folder, or continue that run with --resume"
        )
    return folder


def _last_checkpoint(folder: Path) -> Path | None:
    """The state to go on from; None if the run was stopped before there was one."""
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if checkpoint.is_file():
        return checkpoint
    table = folder / "metrics.csv"
    # The first epoch's row is written a moment before its checkpoint.
    if table.is_file() and len(read_metrics(table)) > 1:
        raise CheckpointError(f"{checkpoint} is missing, though {table.name} has finished epochs")
    return None


def _prepare(recipe: Recipe, world_size: int) -> tuple[ImageData, Classification]:
    data = open_data(recipe)
    data.plan(world_size)
    task = build_task(recipe, data)
    if recipe.trainer.precision == "64-true":
        task.double()  # Lightning reads a checkpoint first and converts the net then
    return data, task


def open_data(recipe: Recipe) -> ImageData:
    """The images of a recipe, opened.

    Raises:
        DataError: If they cannot be used.
    """
    data = ImageData(**dataclasses.asdict(recipe.data), seed=recipe.seed)
    data.setup()
    return data


def build_task(recipe: Recipe, data: ImageData) -> Classification:
    """The task of a recipe: its net (or nets) with loss, optimizer and schedule.

    Raises:
        RecipeError: If the net cannot be built or does not take the images.
        CheckpointError: If initial weights cannot be used.
    """
    student = build_model(recipe.model, data, "model")
    _check_exponent(recipe, student)
    options: dict[str, Any] = {
        "num_classes": data.num_classes,
        **dataclasses.asdict(recipe.optimizer),
        "schedule": recipe.schedule.name,
        "interval": recipe.schedule.interval,
        "min_lr": recipe.schedule.min_lr,
    }
    if recipe.model.head == "slac":
        return SlacClassification(student, **options, **dataclasses.asdict(recipe.slac))
    if recipe.method == "supervised":
        return Classification(student, **options)
    config = recipe.distill
    return Distillation(
        build_distiller(recipe, data, student),
        ramp=Ramp(config.ramp, config.ramp_epochs, config.ramp_accuracy),
        **options,
    )


def _check_exponent(recipe: Recipe, model: nn.Module) -> None:
    """Refuses an exponent that falls in a net that has none."""
    if recipe.lp.schedule == "none":
        return
    try:
        set_exponent_(model, recipe.lp.start, clip=recipe.lp.clip)
    except ValueError as error:
        raise RecipeError(f"lp.schedule = {recipe.lp.schedule!r}: {error}") from error


def build_distiller(recipe: Recipe, data: ImageData, student: nn.Module) -> Distiller:
    """The loss of a recipe whose method is not "supervised", with its teacher.

    Raises:
        RecipeError: If the teacher cannot be built, or the method cannot be used on these nets.
        CheckpointError: If the teacher's weights cannot be used.
    """
    config = recipe.distill
    method = find_method(recipe.method)
    options = {name: getattr(config, name) for name in options_of(recipe.method)}
    teacher = None
    if method.wants_teacher:
        of_teacher = dataclasses.replace(
            recipe.model,
            name=config.teacher_model or recipe.model.name,
            kwargs=recipe.model.kwargs if config.teacher_kwargs is None else config.teacher_kwargs,
            conv=config.teacher_conv,
            checkpoint=config.teacher_checkpoint,
        )
        teacher = build_model(of_teacher, data, "distill.teacher")
    try:
        if teacher is not None and config.shared_init:
            share_initial_values(student, teacher)
        return method(student, teacher, **options)
    except ValueError as error:
        raise RecipeError(f"method {recipe.method}: {error}") from error


def build_model(config: ModelConfig, data: ImageData, key: str) -> nn.Module:
    """A net for the given images.

    Args:
        config: Which net.
        data: The images.
        key: What to call the net in an error.

    Raises:
        RecipeError: If the net cannot be built or does not take the images.
        CheckpointError: If the initial weights cannot be used.
    """
    channels, height, width = data.image_shape
    arguments = {
        "num_classes": data.num_classes,
        "in_channels": channels,
        "conv": config.conv,
        **config.kwargs,
    }
    if config.head is not None:
        arguments["head"] = config.head
    try:
        model = models.build(config.name, **arguments)
        model.eval()
        with torch.no_grad():
            num_outputs = model(torch.zeros(1, channels, height, width)).shape[1]
    except (ValueError, TypeError, RuntimeError) as error:
        raise RecipeError(
            f"{key} = {config.name} on images of {channels}x{height}x{width}: {error}"
        ) from error
    if num_outputs < data.num_classes:
        raise RecipeError(
            f"{key} has {num_outputs} outputs, the data has {data.num_classes} classes"
        )
    if config.checkpoint is not None:
        load_into(model, config.checkpoint)
    return model.train()


def _check_state(module: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    own = module.state_dict()
    for name in [*own, *state]:
        if name not in state or name not in own:
            lacks = "lacks" if name not in state else "has an unknown"
            raise CheckpointError(f"checkpoint {path} is of another net: it {lacks} {name!r}")
        if own[name].shape != state[name].shape:
            raise CheckpointError(
                f"checkpoint {path} is of another net: {name!r} has shape "
                f"{tuple(state[name].shape)}, {tuple(own[name].shape)} is wanted"
            )


def _check_recipe(recipe: Recipe, saved: dict[str, Any], config: Path, checkpoint: Path) -> None:
    # A checkpoint of an earlier version lacks the keys that came later: they had their defaults.
    now, then = _flat(recipe.to_dict()), _flat(from_dict(saved, str(checkpoint)).to_dict())
    place = {f"trainer.{key}" for key in PLACE_KEYS} | {"data.device_cache"}
    for key in sorted((now.keys() | then.keys()) - place):
        if now.get(key) != then.get(key):
            raise CheckpointError(
                f"{checkpoint} is of another recipe: {key} is {then.get(key)!r} there and "
                f"{now.get(key)!r} in {config}"
            )


def _check_unfinished(recipe: Recipe, state: dict[str, Any], folder: Path) -> None:
    done = _num_finished(state)
    if done < recipe.epochs:
        return
    # A run may have been stopped between its last checkpoint and its summary: it still has to end.
    with contextlib.suppress(OSError, ValueError, KeyError):
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        done = done if summary["status"] == "finished" else 0
    if done and (folder / "summary.json").is_file():
        raise RecipeError(f"resume {str(folder)!r}: the run is finished ({done} epochs)")


def _check_division(state: dict[str, Any], plan: BatchPlan, checkpoint: Path) -> None:
    """Refuses a number of processes with which an epoch would have other batches."""
    then = state.get("division")
    if then is None or then["num_batches"] == plan.num_batches:
        return
    raise CheckpointError(
        f"{checkpoint}: an epoch had {then['num_batches']} batches with {then['world_size']} "
        f"processes and would have {plan.num_batches} with {plan.world_size}, because its last "
        f"batch is too small to be shared; go on with {then['world_size']}"
    )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _run(
    recipe: Recipe,
    data: ImageData,
    task: Classification,
    folder: Path,
    checkpoint: Path | None,
    callbacks: Sequence[Callback],
    command: str | None,
) -> RunResult:
    table = MetricsTable(folder / "metrics.csv")
    table.restore(data.first_epoch)
    requests = StopRequests()
    own = [*_exponent(recipe), table, BestAndLast(folder / "checkpoints"), requests]
    trainer = distributed.together(lambda: _trainer(recipe, data, task, folder, [*own, *callbacks]))
    task.batch_weight = _batch_weight(trainer, data.plan(trainer.world_size))
    fast = distributed.together(lambda: _fast_step(recipe, trainer, task))
    task.fast_step = fast
    # Only now: a recipe that cannot run leaves no folder behind.
    distributed.on_first(lambda: _open_folder(folder, recipe, is_new=checkpoint is None))
    if trainer.is_global_zero:
        print(_headline(recipe, data, task, folder, trainer.world_size), flush=True)
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
        fast.close()
        if trainer.is_global_zero:
            # On a full disk the summary fails as well; the first error is the one to say.
            with contextlib.suppress(*([] if status == "finished" else [OSError])):
                _write_summary(folder, recipe, table.rows, status, seconds, command, trainer)
    best = folder / "checkpoints" / "best.safetensors"
    return RunResult(
        folder=folder,
        best_checkpoint=best,
        last_checkpoint=folder / "checkpoints" / "last.safetensors",
        metrics=_final_metrics(table.rows),
        history=table.rows,
        model=torchadder.load(best).eval(),
        data=data,
        seconds=seconds,
    )


def _exponent(recipe: Recipe) -> list[Callback]:
    lp = recipe.lp
    if lp.schedule == "none":
        return []
    return [ExponentFall(ExponentSchedule(lp.schedule, lp.start, lp.share, lp.steps), lp.clip)]


def _open_folder(folder: Path, recipe: Recipe, *, is_new: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    if is_new and not (folder / "config.yaml").is_file():
        write_atomically(folder / "config.yaml", _config_text(recipe))


def _headline(
    recipe: Recipe, data: ImageData, task: Classification, folder: Path, world_size: int
) -> str:
    num_weights = sum(parameter.numel() for parameter in task.plain_model.parameters())
    processes = f"{world_size} processes, " if world_size > 1 else ""
    return (
        f"{recipe.name}: {recipe.model.name} with {num_weights:,} weights, "
        f"{len(data.train):,} training and {len(data.val):,} validation images of "
        f"{data.num_classes} classes, {recipe.epochs} epochs, {processes}to {folder}"
    )


def _fast_step(recipe: Recipe, trainer: lightning.Trainer, task: Classification) -> FastStep:
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
    return FastStep(task, compile=options.compile, cuda_graph=options.cuda_graph)


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
    done = _num_kept(folder)
    kept = f"{done} of {recipe.epochs} epochs are kept" if done else "no epoch was finished"
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
        words = goes_on if done else "nothing was kept"
        return KeyboardInterrupt(f"interrupted after {done} of {recipe.epochs} epochs; {words}")
    if isinstance(error, OSError | CheckpointError):
        return OutputError(f"{_words(error)}; {kept}; {goes_on}")
    if "parameters that were not used in producing the loss" in str(error):
        idle = [name for name, p in trainer.lightning_module.named_parameters() if p.grad is None]
        return RecipeError(
            "several processes can only train what takes part in the loss; these parameters do "
            f"not: {', '.join(idle) or 'unknown'}"
        )
    return error


def _num_kept(folder: Path) -> int:
    """Finished epochs in the last checkpoint of a run folder."""
    checkpoint = folder / "checkpoints" / "last.ckpt"
    return _num_finished(read_state(checkpoint)) if checkpoint.is_file() else 0


def _num_finished(state: dict[str, Any]) -> int:
    return state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _trainer(
    recipe: Recipe, data: ImageData, task: Classification, folder: Path, callbacks: list[Callback]
) -> lightning.Trainer:
    options = recipe.trainer
    is_terminal = sys.stdout.isatty()
    here = distributed.world()
    place = distributed.trainer_options(options, here)
    division = {"world_size": here.size, "num_batches": data.plan(here.size).num_batches}
    num_batches = division["num_batches"]
    limit = options.limit_train_batches
    num_batches = min(num_batches, limit if isinstance(limit, int) else int(num_batches * limit))
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
                NonFiniteGuard(),
                RunState(recipe.to_dict(), division),
                ValidateLastEpoch(),
                distributed.EqualBuffers(recipe.seed),
                *callbacks,
            ],
            plugins=[
                SafetensorsCheckpointIO(task.plain_model, _metadata(recipe, data)),
                *place.pop("plugins"),
            ],
            logger=TensorBoardLogger(folder, name=None, version="tensorboard"),
            log_every_n_steps=max(1, min(50, num_batches // 4)),
            default_root_dir=folder,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=is_terminal,
            use_distributed_sampler=False,  # the sampler of ImageData divides the images itself
            **place,
        )
    except (MisconfigurationException, ValueError, RuntimeError, AssertionError) as error:
        raise RecipeError(f"trainer: {' '.join(str(error).split())}") from error


def _metadata(recipe: Recipe, data: ImageData) -> dict[str, Any]:
    """What `evaluate` and `predict` must know about the images a checkpoint was trained on."""
    return {
        "recipe": recipe.name,
        "data": dataclasses.asdict(recipe.data),
        "class_names": data.class_names,
        "preprocess": data.preprocess.to_dict(),
    }


@contextlib.contextmanager
def _environment(recipe: Recipe) -> Iterator[None]:
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
    """Whether convolutions on a GPU may round to TF32, which torch lets them unless it is told."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


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


def _new_folder(name: str) -> Path:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    first = Path("runs") / f"{name}-{stamp}"
    others = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in itertools.chain([first], others) if not folder.exists())


def _config_text(recipe: Recipe) -> str:
    head = f"# Written by torchadder {torchadder.__version__}; repeat with: torchadder train FILE\n"
    return head + yaml.safe_dump(recipe.to_dict(), sort_keys=False)


def _final_metrics(rows: list[dict[str, float]]) -> dict[str, float]:
    metrics = dict(rows[-1])
    comparable = [row for row in rows if row.get("p") == rows[-1].get("p")]  # of one operator
    best = max(comparable, key=lambda row: row.get("val_accuracy", 0.0))
    if "val_accuracy" in best:
        metrics |= {"best_val_accuracy": best["val_accuracy"], "best_epoch": best["epoch"]}
    return metrics


def _write_summary(
    folder: Path,
    recipe: Recipe,
    rows: list[dict[str, float]],
    status: str,
    seconds: float,
    command: str | None,
    trainer: lightning.Trainer,
) -> None:
    kibibyte = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes on macOS
    origin = provenance(command)
    origin["hardware"] |= {
        "device": str(trainer.strategy.root_device),
        "num_devices": trainer.num_devices,
    }
    origin["versions"]["lightning"] = lightning.__version__
    summary = {
        "name": recipe.name,
        "status": status,
        "seed": recipe.seed,
        "epochs": len(rows),
        "metrics": _final_metrics(rows) if rows else {},
        "seconds": round(seconds, 3),
        "seconds_per_epoch": (
            round(sum(row["seconds"] for row in rows) / len(rows), 3) if rows else None
        ),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kibibyte,
        **origin,
    }
    text = json.dumps(summary, indent=2, allow_nan=True) + "\n"
    write_atomically(folder / "summary.json", text)
