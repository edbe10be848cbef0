"""Robustness: adversarial attacks, and an evaluation that looks for gradient masking.

Images lie in [0, 1] and the normalisation is part of the model (`Normalised`). Attacks take any
model in evaluation mode and leave it as it was. Nothing here knows files, recipes or figures.

>>> import torch, torchadder as ta
>>> model = ta.robustness.Normalised(ta.models.lenet5_bn(), [0.13], [0.31]).eval()
>>> result = ta.robustness.fgsm(model, torch.rand(4, 1, 28, 28), torch.arange(4))
>>> result.images.shape
torch.Size([4, 1, 28, 28])
"""

from torchadder.robustness.attacks import ATTACKS as ATTACKS
from torchadder.robustness.evaluation import EPSILONS as EPSILONS
from torchadder.robustness.evaluation import evaluate as evaluate
from torchadder.robustness.gradient_attacks import bim as bim
from torchadder.robustness.gradient_attacks import fgsm as fgsm
from torchadder.robustness.gradient_attacks import mifgsm as mifgsm
from torchadder.robustness.gradient_attacks import pgd as pgd
from torchadder.robustness.gradient_attacks import rfgsm as rfgsm
from torchadder.robustness.normalised import Normalised as Normalised
from torchadder.robustness.report import RobustnessReport as RobustnessReport
from torchadder.robustness.rows import ROWS as ROWS
from torchadder.robustness.square import square as square
from torchadder.robustness.switching import batch_statistics as batch_statistics
from torchadder.robustness.switching import input_gradient as input_gradient
from torchadder.robustness.target import AttackResult as AttackResult
from torchadder.robustness.transfer import transfer as transfer
from torchadder.robustness.zeros import ZeroGradients as ZeroGradients
from torchadder.robustness.zeros import zero_gradients as zero_gradients

__all__ = [
    "ATTACKS",
    "EPSILONS",
    "ROWS",
    "AttackResult",
    "Normalised",
    "RobustnessReport",
    "ZeroGradients",
    "batch_statistics",
    "bim",
    "evaluate",
    "fgsm",
    "input_gradient",
    "mifgsm",
    "pgd",
    "rfgsm",
    "square",
    "transfer",
    "zero_gradients",
]
