"""The attacks once more: one image at a time, in loops, from the papers' formulas."""

import torch
from torch.nn import functional as F


def clip(candidate, image, epsilon):
    candidate = torch.max(torch.min(candidate, image + epsilon), image - epsilon)
    return candidate.clamp(0, 1)


def gradient(model, image, label):
    image = image.clone().requires_grad_()
    F.cross_entropy(model(image[None]), label[None]).backward()
    return image.grad


def fgsm(model, image, label, epsilon):
    return clip(image + epsilon * gradient(model, image, label).sign(), image, epsilon)


def steps(model, image, label, epsilon, step, iterations, start=None, decay=None):
    current, momentum = image if start is None else start, 0
    for _ in range(iterations):
        direction = gradient(model, current, label)
        if decay is not None:
            momentum = decay * momentum + direction / direction.abs().sum()
            direction = momentum
        current = clip(current + step * direction.sign(), image, epsilon)
    return current


def each(function, model, images, labels, *arguments, starts=None, **options):
    found = []
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        if starts is not None:
            options["start"] = starts[index]
        found.append(function(model, image, label, *arguments, **options))
    return torch.stack(found)
