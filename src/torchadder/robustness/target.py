"""A model under attack: checked inputs, its answers, its input gradient, and the outcome."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchadder.robustness.switching import constant_weights, is_coupled


@dataclass(frozen=True)
class AttackResult:
    """What an attack reached; every field has one entry an image.

    Attributes:
        images: Adversarial images, shape, dtype and device of those attacked.
        success: Whether the model names another class than the label, or none because its highest
            logit is not finite, bool (N). Images that it got wrong before count.
        wrong_before: Whether it did so without the attack, bool (N).
        zero_gradient: Whether the first input gradient was zero in every pixel, bool (N): such an
            image could not be attacked from where it was. False for attacks without gradients.
        num_calls: Forward passes of the model on the image, int64 (N), the two that compare its
            answers before and after the attack included.
    """

    images: Tensor
    success: Tensor
    wrong_before: Tensor
    zero_gradient: Tensor
    num_calls: Tensor

    @property
    def accuracy(self) -> float:
        """Share of the images whose class is still named, 0..1."""
        return 1 - share(self.success)

    @property
    def zero_share(self) -> float:
        """Share of the images whose first gradient was zero, 0..1."""
        return share(self.zero_gradient)


class Target:
    """A model with the images on which it is attacked.

    Images that the model gets wrong need no attack and are left out, unless the images of a batch
    influence each other (`is_coupled`): then the batches stay as they are throughout. Batches
    are as equal in size as can be, so that none is left with a single image.

    Args:
        model: The model, in evaluation mode; nothing of it is changed.
        images: (N, ...), float32 or float64, in [0, 1].
        labels: Class indices (N).
        batch_size: Images a forward pass; None: all at once.
        everything: Attack the images that the model gets wrong, too.

    Attributes:
        rows: Numbers of the images to attack, ascending.
        named: Class that the model names for each image before the attack.
        is_coupled: Whether the images of a batch influence each other.

    Raises:
        ValueError: If an argument cannot be used, see the message.
        TypeError: If images or labels are no tensors of the right dtype.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        batch_size: int | None = None,
        *,
        everything: bool = False,
    ) -> None:
        check_inputs(model, images, labels, batch_size)
        self.batch_size = batch_size
        self.is_coupled = is_coupled(model)
        tensors = [*model.parameters(), *model.buffers()]
        self.device = tensors[0].device if tensors else images.device
        # Autograd cannot keep tensors made in inference mode; their copies it can.
        is_inference = any(tensor.is_inference() for tensor in tensors)
        self.model = copy.deepcopy(model) if is_inference else model
        self.given = images
        self.images = _ordinary(images.detach().to(self.device))
        self.labels = _ordinary(labels.to(self.device))
        self.num_calls = torch.zeros(len(images), dtype=torch.int64, device=self.device)
        self.zero = torch.zeros(len(images), dtype=torch.bool, device=self.device)
        everyone = torch.arange(len(images), device=self.device)
        logits = self.logits(self.images, everyone)
        self._check_classes(logits)
        self.named = logits.argmax(1)
        self.wrong_before = self.is_wrong(logits, everyone)
        is_all = self.is_coupled or everything
        self.rows = everyone if is_all else (~self.wrong_before).nonzero().flatten()

    def logits(self, images: Tensor, rows: Tensor) -> Tensor:
        """What the model says about images (n, ...) that stand for those numbered `rows`."""
        parts = []
        with torch.no_grad():
            for part in self._parts(rows):
                parts.append(_wide(self.model(images[part])))
                self.num_calls[rows[part]] += 1
        return torch.cat(parts) if parts else torch.empty(0, 1, device=self.device)

    def gradient(self, images: Tensor, rows: Tensor, *, first: bool = False) -> Tensor:
        """Gradient of the summed cross-entropy with respect to the images, shape of the images.

        What is not finite (half-precision models) becomes 0 or a large number.

        Args:
            images: Images (n, ...).
            rows: Their numbers.
            first: Whether to note which images have a gradient of zero.

        Raises:
            ValueError: If the logits do not depend on the images in a way that can be
                differentiated.
        """
        gradients = torch.empty_like(images)
        for part in self._parts(rows):
            gradients[part] = self._gradient(images[part], self.labels[rows[part]])
            self.num_calls[rows[part]] += 1
        if first:
            self.zero[rows] = (gradients == 0).flatten(1).all(1)
        return gradients

    def _gradient(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad(), constant_weights():
            leaf = images.detach().clone().requires_grad_()
            logits = self.model(leaf)
            if not logits.requires_grad:
                raise ValueError(
                    f"model {type(self.model).__name__} has no input gradient: its logits do not "
                    "depend differentiably on the images; the Square attack needs none"
                )
            loss = F.cross_entropy(_wide(logits), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, leaf)
        return torch.nan_to_num(gradient, nan=0.0, posinf=_LARGE, neginf=-_LARGE)

    def is_wrong(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Whether logits name another class than the labels, or none (not finite), bool (n)."""
        return (logits.argmax(1) != self.labels[rows]) | ~_names_a_class(logits)

    def margin(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Logit of the label minus the highest other one, (n); negative: another class is named.

        Minus infinity where none is named.
        """
        labels = self.labels[rows, None]
        own = logits.gather(1, labels)[:, 0]
        margin = own - logits.scatter(1, labels, -math.inf).amax(1)
        return torch.where(_names_a_class(logits), margin, -math.inf)

    def pooled(self, values: Tensor) -> Tensor:
        """Values of all attacked images, (n); where a batch is one whole, its mean for each."""
        if not self.is_coupled:
            return values
        parts = [values[part] for part in self._parts(self.rows)]
        return torch.cat([part.mean().expand(len(part)) for part in parts])

    def result(self, images: Tensor) -> AttackResult:
        """The outcome, given adversarial images for `rows`."""
        success = self.wrong_before.clone()
        final = self.images.clone()
        final[self.rows] = images
        success[self.rows] = self.is_wrong(self.logits(images, self.rows), self.rows)
        home = self.given.device
        return AttackResult(
            images=final.to(home),
            success=success.to(home),
            wrong_before=self.wrong_before.to(home),
            zero_gradient=self.zero.to(home),
            num_calls=self.num_calls.to(home),
        )

    def _parts(self, rows: Tensor) -> list[Tensor]:
        """Positions in `rows`, batch by batch."""
        positions = torch.arange(len(rows), device=self.device)
        size = self.batch_size or max(1, len(rows))
        return list(positions.tensor_split(math.ceil(len(rows) / size))) if len(rows) else []

    def _check_classes(self, logits: Tensor) -> None:
        if logits.dim() != 2 or len(logits) != len(self.labels):
            raise ValueError(
                f"model must give logits of shape ({len(self.labels)}, classes), got "
                f"{tuple(logits.shape)}"
            )
        num_classes = logits.shape[1]
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= num_classes:
            raise ValueError(
                f"labels must lie in 0 .. {num_classes - 1}, the classes of the model, got "
                f"{int(self.labels.min())} .. {int(self.labels.max())}"
            )


_LARGE = 1e30


def _names_a_class(logits: Tensor) -> Tensor:
    """Whether the highest logit is finite, bool (n); a class may be excluded by minus infinity."""
    return logits.amax(1).isfinite()


def _ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or its copy if it was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


def _wide(logits: Tensor) -> Tensor:
    """Logits in at least 32 bits."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def check_inputs(
    model: nn.Module, images: Tensor, labels: Tensor | None, batch_size: int | None
) -> None:
    """Raise ValueError or TypeError, in one line, unless an attack can be started."""
    if not isinstance(images, Tensor) or images.dtype not in (torch.float32, torch.float64):
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a float32 or float64 tensor, got {kind}")
    if images.dim() < 2 or not images.numel():
        raise ValueError(f"images must have shape (N, ...) and not be empty, got {images.shape}")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"images must lie in [0, 1], got values in {low:g} .. {high:g}; put the normalisation "
            "into the model: torchadder.robustness.Normalised(model, mean, std)"
        )
    if labels is None:
        raise ValueError(f"labels are missing: class indices of the {len(images)} images wanted")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be an int64 tensor, got {kind}")
    if tuple(labels.shape) != (len(images),):
        raise ValueError(f"labels must have shape ({len(images)},), got {tuple(labels.shape)}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    check_mode("model", model)


def check_mode(argument: str, model: nn.Module) -> None:
    """Raise ValueError unless a model is in evaluation mode."""
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        where = f"its module {training!r}" if training else type(model).__name__
        raise ValueError(
            f"{argument} is in training mode ({where}): call {argument}.eval(); statistics of the "
            f"batch are had by torchadder.robustness.batch_statistics({argument})"
        )


def share(chosen: Tensor) -> float:
    """Share of what is True, 0..1; without float64, which not every device has."""
    return int(chosen.sum()) / chosen.numel()
