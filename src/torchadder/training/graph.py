"""A training step without the cost of launching it: compiled, recorded as a CUDA graph, or both.

A step of a small net is a few thousand kernels of a few microseconds, which Python cannot launch as
fast as a GPU runs them. `torch.compile` joins most of them; a CUDA graph launches what remains at
once. Only loss and gradients are recorded. Metrics, AdaptiveLR, optimizer and schedule stay where
Lightning runs them: they are a few kernels for all layers together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from torchadder.tasks import TrainingTask
from torchadder.training.recipe import RecipeError

LossAndSums = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


class FastStep:
    """Computes the `loss_and_sums` of a task, which has it as its `fast_step`.

    * Compiled, as one graph, is the function for batches of the first size; the smaller last batch
      of an epoch runs as it is, since compiling for it would take longer than it is worth. Where
      several processes share a batch the last one does so in any case: their shares may differ in
      size, and all of them must exchange the same things in the same order.
    * Recorded are loss and gradients for every size of batch. Recording runs the step a few times,
      which changes nothing: the buffers of the net are put back. What is returned, and the
      gradients of the parameters, lie in memory that the next step writes over.
    * As long as the task's `step_key` is None, its step runs as it is (in the first one, PKKD takes
      the scales of its kernels and checks its taps); when the key changes, the step is recorded
      anew.

    Args:
        task: The task.
        compile: False, True, or a mode of `torch.compile`.
        cuda_graph: Record the step of tensors on a CUDA device.
        is_shared: Whether several processes share a batch.

    Raises:
        RecipeError: By a call, if the step cannot be compiled as one graph, or not be recorded.
    """

    def __init__(
        self,
        task: TrainingTask,
        *,
        compile: bool | str = False,
        cuda_graph: bool = False,
        is_shared: bool = False,
    ) -> None:
        self.task = task
        self.compile = compile
        self.cuda_graph = cuda_graph
        self.is_shared = is_shared
        self._held = contextlib.ExitStack()
        self._compiled: LossAndSums | None = None
        self._first_size: torch.Size | None = None
        self._key: Hashable = None
        self._recorded: dict[torch.Size, LossAndSums] = {}

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and sums of a batch, as of the task's `loss_and_sums`."""
        key = self.task.step_key
        if self._first_size is None:
            self._first_size = images.shape
        if key is None:
            return self.task.loss_and_sums(images, labels)
        if not self._is_recorded(images):
            with self._explained():
                return self._function_for(images.shape)(images, labels)
        if key != self._key:
            self._recorded.clear()
            self._key = key
        recorded = self._recorded.get(images.shape)
        if recorded is None:
            with self._explained():
                function = self._function_for(images.shape)
                recorded = record(function, self.task.model, images, labels)
            self._recorded[images.shape] = recorded
        return recorded(images, labels)

    def close(self) -> None:
        """Forgets what was compiled and recorded; the task's own step is left."""
        self._recorded.clear()
        if self._compiled is not None:
            self._compiled = None
            torch.compiler.reset()
        self._held.close()

    def _is_recorded(self, images: Tensor) -> bool:
        return self.cuda_graph and images.device.type == "cuda"

    def _function_for(self, shape: torch.Size) -> LossAndSums:
        if self.compile is False or shape != self._first_size:
            return self.task.loss_and_sums
        if self.is_shared and self.task.trainer.is_last_batch:
            return self.task.loss_and_sums
        if self._compiled is None:
            self._held.enter_context(self.task.hold())
            mode = None if self.compile is True else self.compile
            # In pieces, the taps of the teacher were lost between one piece and the next.
            self._compiled = torch.compile(
                self.task.loss_and_sums, mode=mode, dynamic=False, fullgraph=True
            )
        return self._compiled

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Says of an error of the compiler which setting asked for it."""
        try:
            yield
        except RuntimeError as error:
            if not _is_of_compiler(error):
                raise
            raise RecipeError(
                f"trainer.compile = {self.compile}: the training step cannot be compiled as one "
                f"graph ({str(error).strip().splitlines()[0]}); false runs it as it is"
            ) from error


class _Step(nn.Module):
    """A function of a batch as a module with the parameters that it uses."""

    def __init__(self, function: LossAndSums, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, images: Tensor, labels: Tensor) -> Any:
        return self.function(images, labels)


def record(function: LossAndSums, model: nn.Module, images: Tensor, labels: Tensor) -> LossAndSums:
    """Records a function of a batch and its backward pass as CUDA graphs.

    Args:
        function: What to record: its first result is differentiated.
        model: The parameters and buffers that it uses; the buffers keep their values.
        images: A batch of the size that the recording is for.
        labels: Its labels.

    Returns:
        The function, for batches of this size.

    Raises:
        RecipeError: If the function waits for the device, or does something else that a CUDA graph
            cannot hold.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    uses_cache = torch.is_autocast_cache_enabled()
    # A weight that autocast has cast before would be recorded as it was then.
    torch.set_autocast_cache_enabled(False)
    try:
        return torch.cuda.make_graphed_callables(  # type: ignore[return-value]
            _Step(function, model),
            (images.clone(), labels.clone()),
            allow_unused_input=True,
            # The thread that decodes images or pins memory may go on meanwhile.
            capture_error_mode="thread_local",
        )
    except RuntimeError as error:
        if _is_of_compiler(error):
            raise
        raise RecipeError(
            "trainer.cuda_graph = True: the training step cannot be recorded as a CUDA graph "
            f"({' '.join(str(error).split())}); false runs it as it is"
        ) from error
    finally:
        torch.set_autocast_cache_enabled(uses_cache)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _is_of_compiler(error: RuntimeError) -> bool:
    """Whether `torch.compile` raised it."""
    from torch._dynamo.exc import TorchDynamoException  # takes long, and is seldom wanted

    return isinstance(error, TorchDynamoException)
