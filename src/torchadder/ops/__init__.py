"""The operators, declared once with ``torch.library`` and implemented per backend.

``declaration`` holds what torch asks of each (schema strings, fake kernels, autograd, autocast),
``dispatch`` declares ``adder2d`` and chooses its kernels, ``flops`` counts its operations.
``reference`` is the specification in plain torch, ``cpu`` binds the C++ library of ``csrc``,
``triton`` holds the kernels for GPUs and ``gpu`` decides when they serve. ``lp`` holds the same for
``|x - w|^p``, ``int8`` the forward of bytes, ``pkkd`` the sums by which PKKD compares two layers.
Nothing here knows of layers or models.
"""

from torchadder.ops import dispatch as dispatch
from torchadder.ops import flops
from torchadder.ops import int8 as int8
from torchadder.ops import lp as lp
from torchadder.ops import pkkd as pkkd
from torchadder.ops.cpu import cpu_library_info as cpu_library_info
from torchadder.ops.geometry import GRAD_RULES as GRAD_RULES
from torchadder.ops.geometry import Geometry as Geometry
from torchadder.ops.geometry import output_size as output_size
from torchadder.ops.precision import (
    allow_tf32_in_weight_gradient as allow_tf32_in_weight_gradient,
)
from torchadder.ops.triton.tuning import autotune as autotune

__all__ = [
    "GRAD_RULES",
    "Geometry",
    "allow_tf32_in_weight_gradient",
    "autotune",
    "cpu_library_info",
    "output_size",
]

flops.register_with_torch()
