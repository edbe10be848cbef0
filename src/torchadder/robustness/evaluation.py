"""The whole evaluation: every attack in every setting, accuracy over epsilon, signs of masking."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchadder.robustness.ball import check_epsilon
from torchadder.robustness.gradient_attacks import EPSILON, check_step, pgd
from torchadder.robustness.masking import find_signs
from torchadder.robustness.report import (
    GRADIENTS,
    STATISTICS,
    Curve,
    Examples,
    Measurement,
    RobustnessReport,
    Zeros,
)
from torchadder.robustness.rows import ROWS, Settings
from torchadder.robustness.switching import (
    batch_statistics,
    has_adder_layers,
    has_batch_norm,
    input_gradient,
)
from torchadder.robustness.target import AttackResult, Target, check_inputs
from torchadder.robustness.transfer import check_source
from torchadder.robustness.zeros import zero_gradients

EPSILONS = tuple(value / 255 for value in (1, 2, 4, 8, 16, 32, 64, 128))
"""Radii of the curve. At 128/255 every image can be made grey: no accuracy may be left."""

NUM_EXAMPLES = 8


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is.

    Attributes:
        share: Part of the work that is done, 0..1, if no image were fooled early.
        text: What is done now.
        expected_s: Seconds of the whole evaluation, if no image were fooled early, as measured
            on one batch; None until then.
    """

    share: float
    text: str
    expected_s: float | None


@torch.inference_mode(False)
def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = EPSILON,
    step: float | None = None,
    batch_size: int = 100,
    rows: Sequence[str] | None = None,
    statistics: Sequence[str] | None = None,
    gradients: Sequence[str] | None = None,
    strong_iterations: int = 50,
    restarts: int = 5,
    queries: int = 1000,
    transfer_from: nn.Module | None = None,
    epsilons: Sequence[float] = EPSILONS,
    curve_iterations: int = 10,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> RobustnessReport:
    """Attack a model in every way of this package, and judge whether the figures can be believed.

    The rows clean, FGSM, BIM-7, PGD-7, MI-FGSM-5 and R-FGSM-5 are those of "Towards Stable and
    Robust AdderNets" (NeurIPS 2021); its epsilon, step and batch size are not known to us. Added
    are what that table lacks: the true sign gradient beside AdderNet's surrogate, PGD with many
    iterations and restarts, Square, transfer, accuracy over epsilon and exact zeros of gradients.

    Args:
        model: Logits (N, classes) of images in [0, 1] (`Normalised`); in evaluation mode.
        images: (N, C, H, W), float32 or float64, in [0, 1].
        labels: Class indices, int64 (N).
        epsilon: Largest change of a pixel.
        step: Change of a pixel in one iteration; None: a quarter of epsilon.
        batch_size: Images a pass. With batch statistics the figures depend on it.
        rows: Keys of `ROWS`; None: all, transfer only with `transfer_from`.
        statistics: "running" and "batch" (`batch_statistics`); None: both, or "running" for a model
            without batch norm.
        gradients: "surrogate" (the layers' own rule) and "sign" (`input_gradient`) for a model with
            adder layers, "true" for one without; None: all there are.
        strong_iterations: Iterations of the strong PGD.
        restarts: Its random starts.
        queries: Queries of Square.
        transfer_from: Another model, in evaluation mode, for images in [0, 1], too. Its input
            gradient is the true sign where it has adder layers.
        epsilons: Radii of the accuracy over epsilon, ascending; empty: no curve. PGD takes
            `curve_iterations` steps of 2.5 epsilon over their number from a random start. With
            running statistics an image that is fooled within a radius counts for all larger ones.
        curve_iterations: Iterations of that PGD.
        seed: Seed of everything random.
        progress: Called before each part of the work.

    Returns:
        The figures; ``str()`` is a table.

    Raises:
        ValueError: If an argument cannot be used, a switch does not fit the model, statistics of
            the batch are asked for and a batch holds one image, or `transfer_from` is in training
            mode, has other classes or is given though `rows` leave it out; or as of `fgsm`.
        TypeError: As of `fgsm`.

    Examples:
        >>> import torch, torchadder as ta
        >>> model = ta.models.lenet5_bn().eval()
        >>> images, labels = torch.rand(4, 1, 28, 28), torch.arange(4)
        >>> few = {"rows": ["clean", "fgsm"], "statistics": ["running"], "epsilons": ()}
        >>> report = ta.robustness.evaluate(model, images, labels, **few)
        >>> [found.label for found in report.measurements]
        ['clean', 'FGSM', 'FGSM']
    """
    check_inputs(model, images, labels, batch_size)
    check_epsilon(epsilon)
    if not epsilon > 0:
        raise ValueError(f"epsilon must be above 0 to compare attacks, got {epsilon:g}")
    step = epsilon / 4 if step is None else step
    check_step(step)
    for name, number in (
        ("strong_iterations", strong_iterations),
        ("restarts", restarts),
        ("queries", queries),
        ("curve_iterations", curve_iterations),
    ):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if images.dim() != 4:
        raise ValueError(f"images must have shape (N, C, H, W), got {tuple(images.shape)}")
    chosen_rows = _chosen_rows(rows, transfer_from)
    if transfer_from is not None:
        check_source("transfer_from", transfer_from, model, images)
    chosen_statistics = _chosen_statistics(statistics, model)
    if "batch" in chosen_statistics:
        _check_batches(len(images), batch_size)
    settings = Settings(epsilon, step, batch_size, strong_iterations, restarts, queries, seed=seed)
    work = _Work(
        model,
        images,
        labels.to(images.device),
        settings,
        rows=chosen_rows,
        statistics=chosen_statistics,
        gradients=_chosen_gradients(gradients, model),
        source=transfer_from,
        epsilons=_checked_epsilons(epsilons),
        curve_iterations=curve_iterations,
    )
    return work.run(progress)


class _Work:
    """One evaluation."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        settings: Settings,
        *,
        rows: Sequence[str],
        statistics: Sequence[str],
        gradients: Sequence[str],
        source: nn.Module | None,
        epsilons: tuple[float, ...],
        curve_iterations: int,
    ) -> None:
        self.model = model
        self.images = images
        self.labels = labels
        self.settings = settings
        self.rows = rows
        self.statistics = statistics
        self.gradients = gradients
        self.source = source
        self.epsilons = epsilons
        self.curve_iterations = curve_iterations
        self.measurements: list[Measurement] = []
        self.curves: list[Curve] = []
        self.zeros: list[Zeros] = []
        self.examples: Examples | None = None
        self.examples_left = len(images) + 1

    def run(self, progress: Callable[[Progress], None] | None) -> RobustnessReport:
        start = time.monotonic()
        parts = list(self._parts())
        total = sum(part.cost for part in parts)
        unit = _seconds_per_cost(self.model, self.images, self.labels, self.settings.batch_size)
        done = 0.0
        for part in parts:
            if progress is not None:
                progress(Progress(done / total, part.text, total * unit))
            part.work()
            done += part.cost
        signs, num_checks = find_signs(self.measurements, self.curves, self.zeros)
        return RobustnessReport(
            settings=self.settings,
            num_images=len(self.images),
            measurements=self.measurements,
            curves=self.curves,
            zeros=self.zeros,
            signs=signs,
            num_checks=num_checks,
            examples=self.examples,
            seconds=time.monotonic() - start,
        )

    def _parts(self) -> Iterator[_Part]:
        settings, num_images = self.settings, len(self.images)
        for statistics in self.statistics:
            for name in self.rows:
                row = ROWS[name]
                cost = row.num_forward(settings) + GRADIENT_COST * row.num_gradients(settings)
                for gradient in self.gradients if row.uses_gradient else [None]:
                    yield _Part(
                        f"{_label(name, settings)}, {_setting(statistics, gradient)}",
                        num_images * cost,
                        lambda n=name, s=statistics, g=gradient: self._measure(n, s, g),
                    )
            for gradient in self.gradients:
                yield _Part(
                    f"zero gradients, {_setting(statistics, gradient)}",
                    num_images * (1 + GRADIENT_COST),
                    lambda s=statistics, g=gradient: self._count_zeros(s, g),
                )
                if self.epsilons:
                    yield _Part(
                        f"accuracy over epsilon, {_setting(statistics, gradient)}",
                        num_images
                        * len(self.epsilons)
                        * (2 + GRADIENT_COST * self.curve_iterations),
                        lambda s=statistics, g=gradient: self._draw_curve(s, g),
                    )

    def _measure(self, name: str, statistics: str, gradient: str | None) -> None:
        row = ROWS[name]
        start = time.monotonic()
        with _set(self.model, statistics, gradient), _true_gradient(self.source):
            if row.attack is None:
                target = Target(self.model, self.images, self.labels, self.settings.batch_size)
                is_right, num_calls = ~target.wrong_before.cpu(), target.num_calls
            else:
                found = row.run(self.model, self.images, self.labels, self.settings, self.source)
                is_right, num_calls = ~found.success.cpu(), found.num_calls
                if row.uses_gradient and statistics == self.statistics[0]:
                    self._keep_examples(name, found)
        self.measurements.append(
            Measurement(
                row=name,
                label=_label(name, self.settings),
                kind=row.kind,
                statistics=statistics,
                gradient=gradient,
                is_right=is_right,
                calls_per_image=int(num_calls.sum()) / len(num_calls),
                seconds=time.monotonic() - start,
            )
        )

    def _keep_examples(self, name: str, found: AttackResult) -> None:
        """Images that the strongest attack so far fooled, or that withstood it if too few are."""
        num_left = int((~found.success).sum())
        if num_left >= self.examples_left:
            return
        self.examples_left = num_left
        was_right = ~found.wrong_before
        order = torch.argsort(
            (was_right & found.success).int() * 2 + was_right.int(), descending=True
        )
        chosen = order[:NUM_EXAMPLES].sort().values
        # All of them are asked about, for those of a batch may influence each other.
        attacked = Target(self.model, found.images, self.labels, self.settings.batch_size)
        self.examples = Examples(
            label=_label(name, self.settings),
            clean=self.images[chosen].cpu(),
            adversarial=found.images[chosen].cpu(),
            labels=self.labels[chosen].cpu(),
            named=attacked.named[chosen.to(attacked.device)].cpu(),
        )

    def _count_zeros(self, statistics: str, gradient: str) -> None:
        with _set(self.model, statistics, gradient):
            shares = zero_gradients(
                self.model, self.images, self.labels, batch_size=self.settings.batch_size
            )
        self.zeros.append(Zeros(statistics, gradient, shares))

    def _draw_curve(self, statistics: str, gradient: str) -> None:
        num_images = len(self.images)
        device = self.images.device
        with _set(self.model, statistics, gradient):
            target = Target(self.model, self.images, self.labels, self.settings.batch_size)
            left = (~target.wrong_before).nonzero().flatten().to(device)
            accuracies = [len(left) / num_images]
            if target.is_coupled:
                left = torch.arange(num_images, device=device)
            for epsilon in self.epsilons:
                if not len(left):
                    accuracies.append(0.0)
                    continue
                found = pgd(
                    self.model,
                    self.images[left],
                    self.labels[left],
                    epsilon=epsilon,
                    step=2.5 * epsilon / self.curve_iterations,
                    iterations=self.curve_iterations,
                    seed=self.settings.seed,
                    batch_size=self.settings.batch_size,
                )
                accuracies.append(int((~found.success).sum()) / num_images)
                if not target.is_coupled:
                    left = left[~found.success]
        self.curves.append(Curve(statistics, gradient, (0.0, *self.epsilons), tuple(accuracies)))


@dataclass(frozen=True)
class _Part:
    """A part of the work, with its cost in forward passes of one image."""

    text: str
    cost: float
    work: Callable[[], None]


GRADIENT_COST = 3.0
"""Cost of an input gradient, with its forward pass, in forward passes; a rough figure that only
the expected time depends on."""


def _seconds_per_cost(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> float:
    """Seconds of a unit of cost, by the input gradient of one batch."""
    target = Target(model, images[:batch_size], labels[:batch_size], everything=True)
    start = time.monotonic()
    target.gradient(target.images, target.rows)
    return (time.monotonic() - start) / (GRADIENT_COST * len(target.images))


@contextlib.contextmanager
def _set(model: nn.Module, statistics: str, gradient: str | None) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if statistics == "batch":
            stack.enter_context(batch_statistics(model))
        if gradient == "sign":
            stack.enter_context(input_gradient(model, "sign"))
        yield


def _true_gradient(model: nn.Module | None) -> contextlib.AbstractContextManager[object]:
    if model is None or not has_adder_layers(model):
        return contextlib.nullcontext()
    return input_gradient(model, "sign")


def _label(name: str, settings: Settings) -> str:
    return ROWS[name].label.format_map(vars(settings))


def _setting(statistics: str, gradient: str | None) -> str:
    words = [STATISTICS[statistics], *([] if gradient is None else [GRADIENTS[gradient]])]
    return ", ".join(words)


def _chosen_rows(rows: Sequence[str] | None, source: nn.Module | None) -> list[str]:
    if rows is None:
        return [name for name in ROWS if name != "transfer" or source is not None]
    _check_known("rows", rows, list(ROWS))
    if "transfer" not in rows and source is not None:
        raise ValueError(
            f"transfer_from is given, but rows leave 'transfer' out, got {', '.join(rows)}"
        )
    if "transfer" in rows and source is None:
        raise ValueError("rows: 'transfer' wants another model, transfer_from")
    return [name for name in ROWS if name in rows]


def _chosen_statistics(statistics: Sequence[str] | None, model: nn.Module) -> list[str]:
    available = list(STATISTICS) if has_batch_norm(model) else ["running"]
    if statistics is None:
        return available
    _check_known("statistics", statistics, list(STATISTICS))
    if "batch" in statistics and "batch" not in available:
        raise ValueError(
            f"statistics: 'batch' wants a model with batch norm, {type(model).__name__} has none"
        )
    return [name for name in STATISTICS if name in statistics]


def _check_batches(num_images: int, batch_size: int) -> None:
    smallest = num_images // math.ceil(num_images / batch_size)  # batches of nearly equal size
    if smallest < 2:
        raise ValueError(
            f"statistics: 'batch' wants at least 2 images in every batch, got {num_images} images "
            f"with batch_size = {batch_size}"
        )


def _chosen_gradients(gradients: Sequence[str] | None, model: nn.Module) -> list[str]:
    available = ["surrogate", "sign"] if has_adder_layers(model) else ["true"]
    if gradients is None:
        return available
    _check_known("gradients", gradients, list(GRADIENTS))
    for name in gradients:
        if name not in available:
            which = "has" if has_adder_layers(model) else "has no"
            raise ValueError(
                f"gradients: {name!r} does not fit, {type(model).__name__} {which} adder layers; "
                f"{' and '.join(available)} would"
            )
    return [name for name in available if name in gradients]


def _check_known(argument: str, names: Sequence[str], known: Sequence[str]) -> None:
    if isinstance(names, str) or not names:
        raise ValueError(f"{argument} must be a list of {', '.join(known)}, got {names!r}")
    for name in names:
        if name not in known:
            raise ValueError(f"{argument} must be of {', '.join(known)}, got {name!r}")


def _checked_epsilons(epsilons: Sequence[float]) -> tuple[float, ...]:
    values = tuple(epsilons)
    for before, value in zip((0.0, *values), values, strict=False):
        check_epsilon(value)
        if not value > before:
            raise ValueError(f"epsilons must be above 0 and ascending, got {list(values)}")
    return values
