"""From the l2 to the l1 norm: adder layers whose exponent falls from 2 to 1 during training.

The idea is that of "Universal Adder Neural Networks" (arXiv 2105.14202), whose abstract names "a
training approach by investigating the lp-norm"; formulas and schedule are our reading, see
docs/lp.md. `LpAdder2d` is the layer, `set_exponent_` turns the adder layers of a net into it and
back, `ExponentSchedule` says which exponent an epoch has. Nothing here knows trainers.
"""

from torchadder.lp.exponent import finish_, set_exponent_
from torchadder.lp.layer import LpAdder2d, adder2d
from torchadder.lp.schedule import ExponentSchedule

__all__ = ["ExponentSchedule", "LpAdder2d", "adder2d", "finish_", "set_exponent_"]
