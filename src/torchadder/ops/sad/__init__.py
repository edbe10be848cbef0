"""The operators ``torchadder::sad_conv2d*``: sums of absolute differences of bytes, for inference.

``schema`` declares them, ``reference`` is the specification, ``cpu`` binds the C++ kernels. Exact:
every implementation gives the same integers. Nothing here knows what real numbers the bytes mean.
"""

from torchadder.ops.sad import schema as schema
from torchadder.ops.sad.schema import pack as pack

__all__ = ["pack"]
