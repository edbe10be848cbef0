"""How the images of an epoch become batches, and the batches the shares of several processes.

The order of the images, the batches and the weight of every image in a step do not depend on the
number of processes; which process sees an image does. Loaders and trainers are not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

from torchadder.data.sources import DataError


@dataclass(frozen=True)
class BatchPlan:
    """The batches of one epoch, counted over all processes.

    Batch b holds the images `b * batch_size` and following of the epoch's order; of each batch,
    process r of W takes every W-th image from the r-th on. The last batch may be smaller. It is
    left out where it would give a process fewer than two images, which batch norm needs, unless it
    is the only one.

    Args:
        num_images: Images of an epoch.
        batch_size: Images of a batch, all processes together.
        world_size: Number of processes, W.

    Raises:
        DataError: If a batch cannot be divided into equal shares, or some process gets no image.
    """

    num_images: int
    batch_size: int
    world_size: int = 1

    def __post_init__(self) -> None:
        """Checks that every process gets its share."""
        if self.batch_size % self.world_size:
            raise DataError(
                f"data.batch_size={self.batch_size} counts the images of all processes; with "
                f"{self.world_size} processes a multiple of {self.world_size} is wanted"
            )
        if self.num_images < self.world_size:
            raise DataError(
                f"{self.num_images} training images are too few for {self.world_size} processes"
            )

    @property
    def local_batch_size(self) -> int:
        """Images of a full batch that one process gets."""
        return self.batch_size // self.world_size

    @property
    def num_used(self) -> int:
        """Images of an epoch that are used."""
        rest = self.num_images % self.batch_size
        is_left_out = rest < 2 * self.world_size and self.num_images > self.batch_size
        return self.num_images - rest if is_left_out else self.num_images

    @property
    def num_batches(self) -> int:
        """Batches of an epoch."""
        return -(-self.num_used // self.batch_size)

    def size(self, batch: int) -> int:
        """Images of batch number `batch`, all processes together."""
        return min(self.batch_size, self.num_used - batch * self.batch_size)

    def share(self, batch: int, rank: int) -> int:
        """Images of batch number `batch` that process `rank` gets."""
        return len(range(rank, self.size(batch), self.world_size))

    def weight(self, batch: int, rank: int, accumulate: int = 1, limit: int | None = None) -> float:
        """The factor of a share's mean loss by which every image of a step counts the same.

        A step uses `accumulate` batches, the last step of an epoch perhaps fewer. The gradients are
        averaged over the processes and divided by `accumulate`, which is the mean over the images
        only if all shares are equal. With n[b,r] images in a share, W processes, k = `accumulate`
        and the batches b' of the step,

        `weight[b,r] = n[b,r] * W * k / sum over b', r' of n[b',r']`.

        Args:
            batch: Number of the batch in the epoch.
            rank: Number of the process.
            accumulate: Batches of a step.
            limit: Batches of the epoch after which training stops; None: all.
        """
        end = self.num_batches if limit is None else min(limit, self.num_batches)
        first = batch - batch % accumulate
        together = sum(self.size(other) for other in range(first, min(first + accumulate, end)))
        return self.share(batch, rank) * self.world_size * accumulate / together
