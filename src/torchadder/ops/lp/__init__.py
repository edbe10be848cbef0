"""The operator ``torchadder::adder2d_lp``: ``|x - w|^p``, 1 <= p <= 2, instead of ``|x - w|``.

``dispatch`` declares it and chooses its kernels, ``reference`` is the specification, ``cpu`` binds
the C++ kernels and ``squares`` computes p = 2 by convolutions.
"""

from torchadder.ops.lp import dispatch as dispatch
from torchadder.ops.lp.dispatch import check_exponent as check_exponent

__all__ = ["check_exponent"]
