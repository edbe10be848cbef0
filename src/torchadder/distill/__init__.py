"""Losses between two nets of the same shape, for training one from the other.

`PKKD` distils a CNN into an adder net while both are trained. It is put together from parts that
are public and can be used alone: taps, kernels, standardised maps, soft labels. A further method
derives from `Distiller`.

This package knows tensors and nets; optimizers, epochs, data and logs belong to
`torchadder.tasks`.
"""

from torchadder.distill.alignment import KernelAlignment, fixed_orthogonal_map, standardise
from torchadder.distill.distiller import Distiller, DistillerOutput, NetOutput
from torchadder.distill.kernels import (
    EXPONENT_LIMIT,
    GaussianKernel,
    LaplacianKernel,
    OutputKernel,
    exponential_kernel,
    kernel_for,
)
from torchadder.distill.pkkd import PKKD, PKKDOutput
from torchadder.distill.soft_labels import soft_cross_entropy
from torchadder.distill.taps import capture, check_taps, find_taps

__all__ = [
    "EXPONENT_LIMIT",
    "PKKD",
    "Distiller",
    "DistillerOutput",
    "GaussianKernel",
    "KernelAlignment",
    "LaplacianKernel",
    "NetOutput",
    "OutputKernel",
    "PKKDOutput",
    "capture",
    "check_taps",
    "exponential_kernel",
    "find_taps",
    "fixed_orthogonal_map",
    "kernel_for",
    "soft_cross_entropy",
    "standardise",
]
