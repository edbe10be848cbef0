"""What the methods that compare activations have in common: which layers, and two weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from torchadder.distill.distiller import Distiller, NetOutput, check_temperature, check_weights
from torchadder.distill.soft_labels import soft_cross_entropy
from torchadder.distill.taps import find_stages, match_layers


class FeatureDistiller(Distiller):
    """Base of the methods that compare activations: `L = L_CE + alpha * L_KD + beta * L_features`.

    A subclass says in `distance` what `L_features` is and in `part` what it is called. `L_KD` is
    `soft_cross_entropy`; most of the methods go without it (`alpha=0`). Unlike PKKD these methods
    read activations, not the raw outputs of layers: the outputs of an adder layer lie far below
    zero, so their squares and products hardly vary. An activation function that overwrites a tapped
    layer's output in place counts as a part of that layer.

    Args:
        student: the net that learns, images to logits (N, K).
        teacher: the net it learns from, with layers of the same names.
        alpha: weight of the soft labels.
        beta: weight of the features.
        temperature: temperature of the soft labels.
        taps: names or patterns of the layers to compare; None for those of `find_stages`.
        progressive: whether the teacher is trained, too.

    Raises:
        ValueError: a weight or temperature out of range, nets that share parameters, layers that
            are not in both nets.
    """

    part: ClassVar[str]
    reads_activations = True

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        alpha: float,
        beta: float,
        temperature: float,
        taps: Sequence[str] | None,
        progressive: bool,
    ) -> None:
        check_weights(alpha=alpha, beta=beta)
        check_temperature(temperature)
        super().__init__(student, teacher, progressive=progressive)
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        if beta > 0:
            self.taps = (
                find_stages(student, teacher)
                if taps is None
                else match_layers(student, teacher, taps)
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether any term reads the teacher's outputs."""
        return self.alpha > 0 or self.beta > 0

    @abstractmethod
    def distance(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        """Return `L_features` of the activations by layer, each (N, C, ...): a scalar."""
        raise NotImplementedError

    def distillation_terms(
        self, student: NetOutput, teacher: NetOutput
    ) -> dict[str, tuple[float, Tensor]]:
        """Return the soft-label and the feature term, as far as they are switched on."""
        terms: dict[str, tuple[float, Tensor]] = {}
        if self.alpha > 0:
            soft = soft_cross_entropy(student.logits, teacher.logits, self.temperature)
            terms["kd"] = (self.alpha, soft)
        if self.beta > 0:
            terms[self.part] = (self.beta, self.distance(student.taps, teacher.taps))
        return terms

    def _check_maps(self, *sides: Mapping[str, Tensor]) -> None:
        """Raise ValueError, naming the layer, unless all activations have positions."""
        for activations in sides:
            for name, values in activations.items():
                if values.dim() < 3:
                    raise ValueError(
                        f"{type(self).__name__} compares maps, which layer {name!r} has not: its "
                        f"output has shape {tuple(values.shape)}, (N, C, ...) is wanted"
                    )
