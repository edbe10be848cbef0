"""A whole recipe: its sections, checked together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from torchadder.training.recipe import checks
from torchadder.training.recipe.distillation import check_distill, complete
from torchadder.training.recipe.sections import (
    AdversarialConfig,
    DataConfig,
    DetectionConfig,
    DistillConfig,
    LpConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    SlacConfig,
    TrainerConfig,
)


@dataclass
class Recipe:
    """A training run, complete.

    Args:
        name: Name of the run, the first part of its folder's name.
        seed: Seed of the initial weights, the order of the images and their augmentation.
        epochs: Passes over the training images.
        method: "supervised" (labels only), "detection" (objects and their boxes), or a method of
            `torchadder.distill.METHODS`: "pkkd", "kd", "at", "sp", "fsp", "fitnet", "snapshot",
            "dropout".
        data: The images.
        model: The net.
        optimizer: The optimizer.
        schedule: The learning rate over time.
        detection: The detector and its images, if `method` is "detection".
        distill: The distillation, if `method` is one.
        lp: The exponent of the adder layers over time.
        slac: The loss, if `model.head` is "slac".
        adversarial: An attack on the training images.
        trainer: The loop.
    """

    name: str = "run"
    seed: int = 0
    epochs: int = 10
    method: str = "supervised"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    lp: LpConfig = field(default_factory=LpConfig)
    slac: SlacConfig = field(default_factory=SlacConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        """Refuses values out of range.

        Raises:
            RecipeError: If a number is out of range or two keys contradict each other.
        """
        checks.check_run(self)
        checks.check_data(self.data)
        checks.check_optimizer(self.optimizer)
        checks.check_schedule(self.schedule, self.optimizer.lr)
        checks.check_trainer(self.trainer)
        self.distill = complete(self.method, self.distill)
        check_distill(self.distill, self.epochs, self.model.checkpoint)
        checks.check_lp_and_slac(self)
        checks.check_adversarial(self)
        checks.check_weight_norm(self)
        checks.check_detection(self)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as nested dicts of plain values, ready for YAML or JSON."""
        return dataclasses.asdict(self)
