"""Tasks: LightningModules that join a model and a loss.

A task knows how a batch becomes a loss, which metrics are logged and which optimizer is used. It
knows neither files nor folders nor the number of epochs; that is the trainer's part.

`torchadder.tasks.detection` is imported by those who detect: it needs torchvision's detectors.
"""

from torchadder.tasks.adversarial import AdversarialClassification
from torchadder.tasks.base import TrainingTask
from torchadder.tasks.classification import Classification
from torchadder.tasks.distillation import Distillation
from torchadder.tasks.ramp import Ramp
from torchadder.tasks.slac import SlacClassification

__all__ = [
    "AdversarialClassification",
    "Classification",
    "Distillation",
    "Ramp",
    "SlacClassification",
    "TrainingTask",
]
