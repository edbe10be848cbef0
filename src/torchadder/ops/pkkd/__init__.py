"""What PKKD's distance between two layers sums up, and its gradient (arXiv 2009.13044).

``sums`` and ``gradient`` choose what computes: ``cpu`` binds the C++ kernels, for narrow layers
whose channels lie next to each other; ``reference``, torch's matrix products, serves all others.
"""

from torchadder.ops.pkkd.dispatch import MAX_LIMIT as MAX_LIMIT
from torchadder.ops.pkkd.dispatch import gradient as gradient
from torchadder.ops.pkkd.dispatch import sums as sums
from torchadder.ops.pkkd.sides import LOG2_E as LOG2_E
from torchadder.ops.pkkd.sides import Sides as Sides

__all__ = ["LOG2_E", "MAX_LIMIT", "Sides", "gradient", "sums"]
