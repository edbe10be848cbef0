"""The Square attack: random search that asks for logits only."""

from __future__ import annotations

import bisect
import math

import torch
from torch import Tensor, nn

from torchadder.robustness.ball import Ball
from torchadder.robustness.gradient_attacks import EPSILON
from torchadder.robustness.target import AttackResult, Target

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries of 10,000 after which the squares lose half of their area (section 4 of the paper)."""

SHARE = 0.8
"""Share of the image that the first squares cover. The paper's 0.05 is for ImageNet; AutoAttack
(arXiv 2003.01690) takes 0.8 on CIFAR."""


@torch.inference_mode(False)
def square(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = EPSILON,
    queries: int = 1000,
    share: float = SHARE,
    seed: int = 0,
    batch_size: int | None = None,
    everything: bool = False,
) -> AttackResult:
    """Square attack in the maximum norm (arXiv 1912.00049, algorithms 1 and 2).

    It starts from vertical stripes ``x + s e`` with a random sign s for each column and channel.
    Each query changes one random square window: every channel of it goes to one end of the ball,
    by ``+e`` or ``-e``. The change is kept if the margin ``z_y - max_{k != y} z_k`` of the logits
    falls. The windows shrink by the paper's schedule, scaled to the number of queries; a proposal
    that would change nothing is taken with the opposite signs. No gradient is used, so a gradient
    that is masked does not hinder it.

    An image that is fooled is left alone. Where the images of a batch are coupled, all go on until
    the whole batch is fooled, each with a proposal of its own, judged beside those of the others.

    Args:
        model: Logits (N, classes >= 2) of images in [0, 1]; in evaluation mode, left as it is.
        images: (N, C, H, W), float32 or float64, in [0, 1].
        labels: Class indices, int64 (N).
        epsilon: Largest change of a pixel.
        queries: Forward passes an image, at least 1.
        share: Share of the image's area that the first windows cover, above 0, up to 1.
        seed: Seed of signs and windows.
        batch_size: Images a pass; None: all at once.
        everything: Attack images that the model gets wrong already, too.

    Returns:
        Adversarial images, which of them the model gets wrong, and the number of calls.

    Raises:
        ValueError: As of `fgsm`; or images are no (N, C, H, W), queries is below 1, or share lies
            outside (0, 1].
        TypeError: As of `fgsm`.
    """
    if images.dim() != 4:
        raise ValueError(f"images must have shape (N, C, H, W), got {tuple(images.shape)}")
    if queries < 1:
        raise ValueError(f"queries must be at least 1, got {queries}")
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share:g}")
    ball = Ball(images, epsilon)
    target = Target(model, images, labels, batch_size, everything=everything)
    search = _Search(target, ball, seed)
    search.stripes()
    for query in range(1, queries):
        if search.is_done():
            break
        search.window(side(share, query, queries, *images.shape[2:]))
    return target.result(search.best)


def side(share: float, query: int, queries: int, height: int, width: int) -> int:
    """Side of the window in a query, in pixels.

    >>> [side(0.8, query, 10_000, 32, 32) for query in (1, 100, 9999)]
    [29, 14, 1]
    """
    progress = query * HALVINGS_SCALE // queries
    area = share / 2 ** bisect.bisect_left(HALVINGS, progress) * height * width
    return min(max(1, round(math.sqrt(area))), height, width)


HALVINGS_SCALE = 10_000


class _Search:
    """The state of a search: the best images so far and their margins."""

    def __init__(self, target: Target, ball: Ball, seed: int) -> None:
        self.target = target
        self.ball = ball
        self.generator = torch.Generator().manual_seed(seed)
        self.best = target.images[target.rows]
        self.margins = torch.full((len(self.best),), math.inf, device=target.device)

    def stripes(self) -> None:
        """The first query."""
        num_images, channels, _, width = self.target.images.shape
        rows = self.target.rows
        signs = self._signs(num_images, channels, 1, width)[rows]
        self._try(self._moved(signs, rows), torch.arange(len(rows), device=self.target.device))

    def window(self, side: int) -> None:
        """A query with a window in every image that still withstands."""
        # Drawn for all images, so that none depends on which others are left.
        num_images, channels, height, width = self.target.images.shape
        signs = self._signs(num_images, channels, 1, 1)
        top = self._integers(height - side + 1, num_images)
        left = self._integers(width - side + 1, num_images)
        chosen = self._open()
        rows = self.target.rows[chosen]
        down = torch.arange(height, device=rows.device)[:, None] - top[rows, None, None]
        right = torch.arange(width, device=rows.device) - left[rows, None, None]
        inside = ((down >= 0) & (down < side) & (right >= 0) & (right < side))[:, None]
        best = self.best[chosen]
        proposal = torch.where(inside, self._moved(signs[rows], rows), best)
        idle = (proposal == best).flatten(1).all(1)
        opposite = torch.where(inside, self._moved(-signs[rows], rows), best)
        proposal = torch.where(idle.view(-1, 1, 1, 1), opposite, proposal)
        self._try(proposal, chosen)

    def is_done(self) -> bool:
        """Whether every image is fooled."""
        return not len(self._open())

    def _open(self) -> Tensor:
        """Positions of the images that are asked about."""
        withstands = self.margins >= 0
        if self.target.is_coupled and bool(withstands.any()):
            withstands = torch.ones_like(withstands)
        return withstands.nonzero().flatten()

    def _try(self, proposal: Tensor, chosen: Tensor) -> None:
        rows = self.target.rows[chosen]
        margins = self.target.margin(self.target.logits(proposal, rows), rows)
        better = margins < self.margins[chosen]
        self.best[chosen[better]] = proposal[better]
        self.margins[chosen[better]] = margins[better]

    def _moved(self, signs: Tensor, rows: Tensor) -> Tensor:
        images = self.target.images[rows]
        return self.ball.project(images + self.ball.epsilon * signs, rows)

    def _signs(self, *shape: int) -> Tensor:
        bits = torch.randint(2, shape, generator=self.generator)
        return (2 * bits - 1).to(self.target.device, self.target.images.dtype)

    def _integers(self, end: int, count: int) -> Tensor:
        return torch.randint(end, (count,), generator=self.generator).to(self.target.device)
