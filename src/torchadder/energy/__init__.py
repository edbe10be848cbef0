"""Op counts and energy: `count(model, *inputs)` for any module, and the papers' printed figures.

This package knows no layer class, only operators: it counts what a model calls, whoever wrote it.
Of integer nets, whose operators do several things at once, it reads the program.
"""

from torchadder.energy.costs import MEMORIES, CostTable, MemoryCost, OpEnergy
from torchadder.energy.counter import count
from torchadder.energy.report import EnergyReport, LayerCount

__all__ = [
    "MEMORIES",
    "CostTable",
    "EnergyReport",
    "LayerCount",
    "MemoryCost",
    "OpEnergy",
    "count",
]
