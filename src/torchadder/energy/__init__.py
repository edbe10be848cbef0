"""Op counts and energy: `count(model, *inputs)` for any module, and the papers' printed figures.

This package knows no layer class, only operators: it counts what a model calls, whoever wrote it.
"""

from torchadder.energy.costs import CostTable, OpEnergy
from torchadder.energy.counter import count
from torchadder.energy.report import EnergyReport, LayerCount

__all__ = ["CostTable", "EnergyReport", "LayerCount", "OpEnergy", "count"]
