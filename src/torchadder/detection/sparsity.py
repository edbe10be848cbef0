"""How many zeros the maps of a detector hold: the paper's reason for its neck."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def feature_sparsity(model: Any, images: Sequence[Tensor]) -> dict[str, float]:
    """Measure the share of zeros on each level of the backbone and of the neck.

    ``share_l = #{n, c, y, x: f_l[n, c, y, x] = 0} / #{n, c, y, x}`` over the pixels that belong to
    an image; the padding that brings images of a batch to one size is left out. The paper (arXiv
    2112.13608, section 3.3) finds more than 92 % zeros in the last block of an adder ResNet-50 and
    63 % in a ResNet-50. In the neck there are hardly any, as no ReLU stands behind its layers.

    The model runs in evaluation mode, so that it learns nothing from it, and its mode is put back.

    Args:
        model: a detector of this package.
        images: images of shape (3, H, W) with values from 0 to 1, of any sizes.

    Returns:
        Shares from 0 to 1: "c3" to "c5" (from "c2" for Faster R-CNN), "p3" to "p5".

    Raises:
        TypeError: if the model has no backbone with a neck.
        ValueError: if there are no images, or the model was quantised.
    """
    if not len(images):
        raise ValueError("images must hold at least one image, got none")
    maps, inside = _levels(model, images)
    shares = {}
    for name, features in maps.items():
        zeros = total = 0
        for index in range(len(images)):
            feature = inside(features, index)
            zeros += int((feature == 0).sum())
            total += feature.numel()
        shares[name] = zeros / total
    return shares


def zero_maps(model: Any, image: Tensor) -> dict[str, Tensor]:
    """Measure where on each level the features of one image are zero.

    ``share_l[y, x] = #{c: f_l[c, y, x] = 0} / #{c}``; levels and mode as in `feature_sparsity`.

    Args:
        model: a detector of this package.
        image: an image of shape (3, H, W) with values from 0 to 1.

    Returns:
        By level, float32 (h, w) on the CPU.

    Raises:
        TypeError: if the model has no backbone with a neck.
        ValueError: if the model was quantised.
    """
    maps, inside = _levels(model, [image])
    return {name: (inside(level, 0) == 0).float().mean(0).cpu() for name, level in maps.items()}


def _levels(
    model: Any, images: Sequence[Tensor]
) -> tuple[dict[str, Tensor], Callable[[Tensor, int], Tensor]]:
    """Return the maps of the levels, and what cuts the padding off the map of an image."""
    pyramid = getattr(model, "backbone", None)
    if pyramid is None or not hasattr(pyramid, "body") or not hasattr(pyramid, "neck"):
        raise TypeError(
            f"model must be a detector of torchadder.detection, got {type(model).__name__}"
        )
    if getattr(model, "integers", None) is not None:
        raise ValueError("the maps of a quantised detector are integers; measure the float one")
    device = next(pyramid.parameters()).device
    with torch.no_grad(), _evaluating(model):
        batch, _ = model.transform([image.to(device) for image in images])
        maps = pyramid.body(batch.tensors)
        levels = pyramid.neck(maps)
    shared = {name: level for name, level in levels.items() if name.replace("p", "c") in maps}
    height, width = batch.tensors.shape[-2:]

    def inside(features: Tensor, index: int) -> Tensor:
        h, w = batch.image_sizes[index]
        rows, columns = features.shape[-2] / height, features.shape[-1] / width
        return features[index, :, : math.ceil(h * rows), : math.ceil(w * columns)]

    return {**maps, **shared}, inside


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode for a while, each module back into its own after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
