"""The operator ``torchadder::adder2d_lp``: ``|x - w|^p``, 1 <= p <= 2, instead of ``|x - w|``.

``schema`` declares it, ``reference`` is the specification, ``cpu`` binds the C++ kernels and
``squares`` computes p = 2 by convolutions.
"""

from torchadder.ops.lp import schema as schema
from torchadder.ops.lp.schema import check_exponent as check_exponent

__all__ = ["check_exponent"]
