"""The same initial values for two nets of different kinds."""

from __future__ import annotations

import torch
from torch import nn

from torchadder.distill.taps import COMPILED
from torchadder.nn import AdderModule


@torch.no_grad()
def share_initial_values(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Give the student the teacher's initial values wherever names and shapes agree.

    The weights of an adder layer are drawn from N(0, 1), those of a convolution from a much
    narrower distribution, so where only one of the two nets has an adder layer its values are
    scaled: `w_S = w_T * std(w_S) / std(w_T)`, the same draw on the scale of its own kind. Whether
    the nets of PKKD (arXiv 2009.13044) share their values is not known; the scaling is our reading.

    Args:
        student: the net whose values are replaced.
        teacher: the net that they are taken from.

    Returns:
        The names of the student's parameters that were replaced.

    Raises:
        ValueError: the nets have no parameter in common.
    """
    theirs = {name.replace(COMPILED, ""): value for name, value in teacher.named_parameters()}
    kinds = [
        {
            f"{name.replace(COMPILED, '')}.weight"
            for name, layer in net.named_modules()
            if isinstance(layer, AdderModule)
        }
        for net in (student, teacher)
    ]
    shared = []
    for name, value in student.named_parameters():
        name = name.replace(COMPILED, "")
        source = theirs.get(name)
        if source is None or source.shape != value.shape:
            continue
        is_other_kind = (name in kinds[0]) != (name in kinds[1])
        scale = value.std() / source.std() if is_other_kind and value.numel() > 1 else 1.0
        value.copy_(source * scale)
        shared.append(name)
    if not shared:
        raise ValueError("student and teacher have no parameter of the same name and shape")
    return shared
