"""Small images with a box each, and small detectors."""

import torch

from torchadder import detection

SMALL = {"backbone": "resnet18", "neck_channels": 16, "min_size": 64, "max_size": 96}


def small(name="fcos", num_classes=3, seed=0, **arguments):
    torch.manual_seed(seed)
    return detection.build(name, num_classes=num_classes, **{**SMALL, **arguments})


def scenes(sizes=((64, 96), (64, 64)), num_classes=3):
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, height, width, generator=generator) for height, width in sizes]
    targets = [
        {
            "boxes": torch.tensor([[8.0, 8.0, 40.0, 48.0], [30.0, 20.0, 60.0, 60.0]]),
            "labels": torch.tensor([0, num_classes - 1]),
        }
        for _ in sizes
    ]
    return images, targets


def settle_(model):
    """Give the batch norms the statistics of the scenes, without which an adder net is blind."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(*scenes())
    return model
