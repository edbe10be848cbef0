"""The operators ``torchadder::adder2d_int8`` and ``conv2d_int8``: layers of bytes, for inference.

``schema`` declares them and their requantised forms, ``packing`` orders filters, ``reference`` is
the specification, ``cpu`` binds the C++ kernels. Exact: every implementation gives the same
integers. ``pool`` is ``max_pool2d_int8``. Nothing here knows what real numbers the bytes mean.
"""

from torchadder.ops.int8 import pool as pool
from torchadder.ops.int8 import schema as schema
from torchadder.ops.int8.schema import pack as pack

__all__ = ["pack"]
