"""Groups of numbers that lie close together: k-means in one dimension, solved exactly."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def kmeans(numbers: Tensor, num_groups: int) -> list[Tensor]:
    """Indices of the groups with the smallest sum of squared distances to their means.

    Sorted numbers have contiguous groups, so the best division is found by dynamic programming:
    no starting point, no chance.

    Args:
        numbers: One dimension, n of them.
        num_groups: At most so many groups; fewer where there are fewer different numbers.

    Returns:
        For each group, from the smallest numbers to the largest, its indices in rising order.
    """
    ordered, order = numbers.double().sort(stable=True)
    num_groups = min(num_groups, len(ordered.unique()))
    n = len(ordered)
    zero = ordered.new_zeros(1)
    sums = torch.cat([zero, ordered.cumsum(0)])
    squares = torch.cat([zero, ordered.square().cumsum(0)])
    start, end = torch.arange(n + 1)[:, None], torch.arange(n + 1)[None]
    length = (end - start).clamp(min=1)
    # cost[i, j]: squared distances of the numbers i .. j - 1 to their mean.
    cost = squares[None] - squares[:, None] - (sums[None] - sums[:, None]).square() / length
    cost = torch.where(end > start, cost.clamp(min=0), torch.inf)
    best, cuts = cost[0], []
    for _ in range(1, num_groups):
        best, cut = (best[:, None] + cost).min(0)
        cuts.append(cut)
    edges = [n]
    for cut in reversed(cuts):
        edges.append(int(cut[edges[-1]]))
    edges.append(0)
    bounds = edges[::-1]
    return [order[a:b].sort().values for a, b in itertools.pairwise(bounds)]
