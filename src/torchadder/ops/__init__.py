"""The operators, declared once with ``torch.library`` and implemented per backend.

``schema`` declares them (schema strings, fake kernels, autograd, autocast, flop formulas),
``reference`` is the specification in plain torch, ``cpu`` binds the C++ library of ``csrc``. ``lp``
holds the same for ``|x - w|^p``.
Nothing here knows of layers or models.
"""

from torchadder.ops import flops
from torchadder.ops import lp as lp
from torchadder.ops import schema as schema
from torchadder.ops.cpu import cpu_library_info as cpu_library_info
from torchadder.ops.geometry import GRAD_RULES as GRAD_RULES
from torchadder.ops.geometry import Geometry as Geometry
from torchadder.ops.geometry import output_size as output_size

__all__ = ["GRAD_RULES", "Geometry", "cpu_library_info", "output_size"]

flops.register_with_torch()
