"""Losses between two nets, for training one from the other.

`PKKD` distils a CNN into an adder net while both are trained. It is put together from parts that
are public and can be used alone: taps, kernels, standardised maps, soft labels. Beside it stand the
methods it is compared with: `KD`, `AT`, `SP`, `FSP`, `FitNet`, `Snapshot` and the control
`Dropout`. A further method derives from `Distiller`; `METHODS` gives it a name in recipes.

This package knows tensors and nets; optimizers, epochs, data and logs belong to
`torchadder.tasks`.
"""

from torchadder.distill.alignment import KernelAlignment, fixed_orthogonal_map, standardise
from torchadder.distill.attention import AT, attention_map
from torchadder.distill.cka import layer_alignment, linear_cka
from torchadder.distill.distiller import Distiller, DistillerOutput, NetOutput
from torchadder.distill.dropout import Dropout
from torchadder.distill.features import FeatureDistiller
from torchadder.distill.fitnet import FitNet
from torchadder.distill.fsp import FSP, fsp_matrix
from torchadder.distill.gradients import Pull, term_gradients
from torchadder.distill.initial import share_initial_values
from torchadder.distill.kernels import (
    EXPONENT_LIMIT,
    GaussianKernel,
    LaplacianKernel,
    OutputKernel,
    exponential_kernel,
    kernel_for,
)
from torchadder.distill.pkkd import PKKD, PKKDOutput
from torchadder.distill.registry import METHODS, find_method, methods_with, options_of
from torchadder.distill.similarity import SP, similarity_matrix
from torchadder.distill.snapshot import Snapshot, cycle_starts
from torchadder.distill.soft_labels import KD, soft_cross_entropy
from torchadder.distill.taps import capture, check_taps, find_stages, find_taps, shared_layers
from torchadder.distill.twins import twin_output

__all__ = [
    "AT",
    "EXPONENT_LIMIT",
    "FSP",
    "KD",
    "METHODS",
    "PKKD",
    "SP",
    "Distiller",
    "DistillerOutput",
    "Dropout",
    "FeatureDistiller",
    "FitNet",
    "GaussianKernel",
    "KernelAlignment",
    "LaplacianKernel",
    "NetOutput",
    "OutputKernel",
    "PKKDOutput",
    "Pull",
    "Snapshot",
    "attention_map",
    "capture",
    "check_taps",
    "cycle_starts",
    "exponential_kernel",
    "find_method",
    "find_stages",
    "find_taps",
    "fixed_orthogonal_map",
    "fsp_matrix",
    "kernel_for",
    "layer_alignment",
    "linear_cka",
    "methods_with",
    "options_of",
    "share_initial_values",
    "shared_layers",
    "similarity_matrix",
    "soft_cross_entropy",
    "standardise",
    "term_gradients",
    "twin_output",
]
