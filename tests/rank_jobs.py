"""What tests run in processes of their own, see `ranks`. Nothing here looks at the results."""

import errno
import hashlib
import os
import resource
import signal
import time
import warnings
from pathlib import Path

import datasets
import lightning
import torch
import torch.distributed as dist
from torch import nn

import torchadder
from torchadder import atomic, models, recipes
from torchadder.training import fit, resume, run, sync_batchnorm


class At(lightning.Callback):
    """Does something once, in one process, after a batch of the run."""

    def __init__(self, action, epoch, batch, rank=0):
        self.action, self.moment, self.rank = action, (epoch, batch), rank

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.moment and trainer.global_rank == self.rank:
            self.action(task)


def _kill(task):
    os.kill(os.getpid(), signal.SIGKILL)


def _terminate(task):
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(task):
    os.kill(os.getpid(), signal.SIGINT)


def _hang(task):
    time.sleep(15)


def _poison(task):
    task.plain_model.bn2.running_mean[0] = float("nan")
    next(task.plain_model.parameters()).data.flatten()[0] = float("inf")


ACTIONS = {
    "kill": _kill,
    "terminate": _terminate,
    "interrupt": _interrupt,
    "hang": _hang,
    "poison": _poison,
}


def _quiet(data):
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    datasets.config.HF_DATASETS_CACHE = Path(data).parent / "cache"


def small_recipe(data, row="adder", **overrides):
    """Three epochs of the images in the folder `data`."""
    small = {"epochs": 3, "data.source": str(data), "data.batch_size": 16, "trainer.threads": 1}
    small |= {"trainer.accelerator": "cpu", "trainer.timeout": 60}
    return recipes.load(f"mnist_lenet5bn_{row}", small | overrides)


def train(
    data, output, row="adder", *, norm="batch", idle=False, at=(), compiler=None, **overrides
):
    """Trains a small recipe; returns the history, a digest of the task's state and sigmas.

    A `compiler` is a backend of `torch.compile`; how many calls it served is told, too.
    """
    _quiet(data)
    num_compiled = _count_compiled_calls(compiler)
    if idle:
        _add_an_idle_parameter()
    tasks = []
    if norm == "group":
        _use_group_norm()
    callbacks = [At(ACTIONS[action], *moment) for action, *moment in at]
    recipe = small_recipe(data, row, **overrides)
    result = fit(recipe, output=output, callbacks=[*callbacks, _Keep(tasks)])
    return _told(result, tasks[0]) | {"num_compiled": len(num_compiled)}


def _count_compiled_calls(backend):
    """Lets `torch.compile` use a backend; returns a list that grows with each call."""
    calls = []
    compile_with_code = torch.compile

    def compile_and_count(function, *, mode, **options):
        compiled = compile_with_code(function, backend=backend, **options)

        def call(*arguments):
            calls.append(None)
            return compiled(*arguments)

        return call

    if backend is not None:
        torch.compile = compile_and_count
    return calls


def go_on(folder, data, place=None, *, norm="batch"):
    """Resumes a run; returns what `train` returns."""
    _quiet(data)
    tasks = []
    if norm == "group":
        _use_group_norm()
    result = resume(folder, place=place, callbacks=[_Keep(tasks)])
    return _told(result, tasks[0] if tasks else None)


class _Keep(lightning.Callback):
    """Keeps the task, to look at it after training."""

    def __init__(self, tasks):
        self.tasks = tasks

    def setup(self, trainer, task, stage):
        self.tasks.append(task)


def _told(result, task):
    told = {"history": result.history, "folder": str(result.folder)}
    if task is None:
        return told
    digest = hashlib.sha256()
    for _, value in sorted(task.state_dict().items()):
        digest.update(value.contiguous().numpy().tobytes())
    sigmas = getattr(task.model, "sigmas", dict)()
    return told | {
        "digest": digest.hexdigest(),
        "sigmas": {name: float(value) for name, value in sigmas.items()},
        "norms": sorted({type(m).__name__ for m in task.modules() if "Norm" in type(m).__name__}),
    }


def _add_an_idle_parameter():
    """Builds nets with a parameter that no output depends on."""
    build = run.build_task

    def build_with_idle_parameter(recipe, data):
        task = build(recipe, data)
        task.model.idle = nn.Parameter(torch.zeros(3))
        return task

    run.build_task = build_with_idle_parameter


def _use_group_norm():
    """Builds nets whose norms look at one image at a time: no statistics over a batch."""
    build = models.build

    def build_with_group_norm(name, **arguments):
        net = build(name, **arguments)
        for part in list(net.modules()):
            for key, layer in part.named_children():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    setattr(part, key, nn.GroupNorm(1, layer.num_features))
        return net

    models.build = build_with_group_norm
    # Such a net has no config, so its weights cannot be turned into a net again.
    torchadder.load = lambda path: nn.Identity()


def _before_writes(action):
    """Calls `action(n)` before the n-th time that a file is forced onto the disk or renamed."""
    count = iter(range(1, 10_000))

    def watched(function):
        def call(*args):
            action(next(count))
            return function(*args)

        return call

    atomic.os.fsync = watched(os.fsync)
    atomic.os.replace = watched(os.replace)


def crash_while_writing(data, output, moment, **overrides):
    """Trains, or goes on, and dies by SIGKILL in the middle of writing a file."""
    _quiet(data)

    def act(count):
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    _before_writes(act)
    train_or_go_on(data, output, **overrides)


def train_or_go_on(data, output, **overrides):
    """Resumes if there is a run in the folder, else trains."""
    _quiet(data)
    if (Path(output) / "config.yaml").is_file():
        resume(output)
    else:
        fit(small_recipe(data, **overrides), output=output)


def fill_disk(data, output, limit_bytes, **overrides):
    """Trains while no file may grow beyond a limit, as on a disk that is full."""
    _quiet(data)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    fit(small_recipe(data, **overrides), output=output)


def fail_to_write(data, output, moment, **overrides):
    """Trains on a disk that becomes full in the middle of writing a file, and stays so."""
    _quiet(data)

    def act(count):
        if count >= moment:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _before_writes(act)
    fit(small_recipe(data, **overrides), output=output)


def share_of_norm(inputs, gradient, momentum, rows):
    """This process's rows through the synchronised norm, forward and backward; NumPy arrays."""
    inputs, gradient = torch.from_numpy(inputs), torch.from_numpy(gradient)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    layer = sync_batchnorm.AllReduceBatchNorm(inputs.shape[1], momentum=momentum)
    layer = layer.to(inputs.dtype)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))
    own = inputs[rows[rank]].requires_grad_()
    output = layer(own)
    output.backward(gradient[rows[rank]])
    results = [output, own.grad, layer.weight.grad, layer.bias.grad]
    results += [layer.running_mean, layer.running_var]
    of_batches = sync_batchnorm.AllReduceBatchNorm(len(layer.weight), track_running_stats=False)
    results += [of_batches.to(inputs.dtype).eval()(own)]
    return [value.detach().numpy() for value in results]


def disagree(kind):
    """Ways in which processes fail together; returns nothing."""
    from torchadder.training import distributed
    from torchadder.training.recipe import TrainerConfig

    distributed.connect(TrainerConfig(accelerator="cpu", timeout=60))
    rank = dist.get_rank()
    if kind == "first":
        distributed.on_first(lambda: int("seven"))
    if kind == "bytes":  # an error that cannot be made from its text
        distributed.on_first(lambda: b"\xff".decode())
    distributed.together(lambda: int("seven" if rank == 1 else "7"))
