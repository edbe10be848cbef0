"""Training on a CUDA device: the numbers of the CPU, no waiting for the device, no more memory."""

import lightning
import pytest
import torch

from short_runs import assert_rounding_only, batch, distillation, recipe
from torchadder.training import NonFiniteError, fit
from torchadder.training.graph import FastStep

pytestmark = pytest.mark.gpu

CUDA = {"trainer.accelerator": "cuda"}
WAYS = {
    "plain": {},
    "host loader": {"data.device_cache": False},
    "graph": {"trainer.cuda_graph": True},
    "compiled": {"trainer.compile": True},
    "compiled graph": {"trainer.compile": True, "trainer.cuda_graph": True},
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["conv", "adder", "pkkd"])
def test_20_steps_are_those_of_the_cpu(tmp_path, method, way):
    assert_rounding_only(tmp_path, method, **CUDA, **WAYS[way])


class NoWaiting(lightning.Callback):
    """Makes it an error that the host waits for the device within a step, from the fourth on.

    The first steps take PKKD's scales, and compile and record.
    """

    def __init__(self):
        self.num_steps = 0

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if batch_idx >= 3:
            torch.cuda.set_sync_debug_mode("error")

    def on_before_zero_grad(self, trainer, task, optimizer):
        self.num_steps += 1

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", [way for way in WAYS if way != "host loader"])
@pytest.mark.parametrize("method", ["adder", "pkkd"])
def test_a_step_does_not_make_the_host_wait(tmp_path, method, way):
    watched = NoWaiting()
    steps = {"trainer.limit_train_batches": 10, "epochs": 1}
    try:
        run = recipe(method, **steps, **CUDA, **WAYS[way])
        fit(run, output=tmp_path / "run", callbacks=[watched])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watched.num_steps == 10


class Poison(lightning.Callback):
    """Spoils a gradient from a step on."""

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if trainer.global_step == 6:
            task.plain_model.conv2.weight.register_hook(lambda gradient: gradient * float("nan"))


def test_step_and_layer_are_named(tmp_path):
    with pytest.raises(NonFiniteError, match=r"^step 6 \(epoch 2, batch 2\): .*layer 'conv2'"):
        fit(recipe("conv", **CUDA), output=tmp_path / "run", callbacks=[Poison()])


def test_a_recorded_step_gives_the_gradients_of_the_step_itself():
    task = distillation().to("cuda")
    task.loss_and_sums(*batch(device="cuda"))
    fast = FastStep(task, cuda_graph=True)
    buffers = {name: value.clone() for name, value in task.named_buffers()}
    for seed in range(3):
        images, labels = batch(seed, device="cuda")
        results = []
        for step in (task.loss_and_sums, fast):
            for name, value in task.named_buffers():
                value.copy_(buffers[name])
            task.zero_grad()
            loss, sums = step(images, labels)
            loss.backward()
            after = {name: value.clone() for name, value in task.named_buffers()}
            gradients = {n: p.grad.clone() for n, p in task.named_parameters()}
            results.append((loss.detach().clone(), sums, after, gradients))
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    fast.close()


def test_a_recorded_run_takes_little_more_memory(tmp_path):
    peaks = {}
    for way in ("plain", "graph"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        whole = {"data.batch_size": 512, "trainer.limit_train_batches": 6, "epochs": 1}
        fit(recipe("pkkd", **whole, **CUDA, **WAYS[way]), output=tmp_path / way)
        peaks[way] = torch.cuda.max_memory_allocated()
    # Beside the first, unrecorded step: copies of the batch, the buffers and the gradients.
    assert peaks["graph"] <= 1.5 * peaks["plain"] + 32 * 2**20
