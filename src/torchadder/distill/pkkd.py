"""Progressive kernel-based knowledge distillation of a CNN into an adder net."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchadder.distill.alignment import KernelAlignment
from torchadder.distill.distiller import (
    Distiller,
    DistillerOutput,
    NetOutput,
    check_temperature,
    check_weights,
)
from torchadder.distill.kernels import (
    EXPONENT_LIMIT,
    KERNELS,
    LEARNED_SCALES,
    OutputKernel,
    check_limit,
    kernel_for,
    needs_twin,
)
from torchadder.distill.soft_labels import soft_cross_entropy
from torchadder.distill.taps import (
    Reading,
    check_taps,
    find_taps,
    get_layer,
    module_key,
    num_channels,
)
from torchadder.distill.twins import check_twin, twin_output

PKKDOutput = DistillerOutput


class PKKD(Distiller):
    """Loss by which an adder net learns from labels and from a CNN of the same shape.

    `L = L_CE + alpha * L_KD + beta * L_mid` for the student, and `L_CE` of its own for the teacher
    (PKKD, arXiv 2009.13044):

    * `L_KD`, soft labels: `soft_cross_entropy` with the teacher's current logits;
    * `L_mid`, features: `KernelAlignment` of the tapped layers, averaged over the layers;
    * a progressive teacher is trained in the same step, so that both nets are at the same stage.

    `parts` of the output holds "ce", "kd" and "mid". A term of weight 0 is not computed; with
    `beta=0` no layer is tapped and there are no own parameters.

    Own parameters are the scales of the kernels and the student-side maps. They get their gradient
    from `loss` alone and are not needed after training. Weight decay is not meant for them:
    `own_parameters()` lists them.

    What the paper's text leaves open is decided in `OutputKernel` (centring, initial scale) and
    `KernelAlignment` (standardised maps, fixed map of the teacher); the average over the layers,
    where the formula has a sum, keeps the meaning of beta for nets of any depth. All of these are
    our reading.

    Args:
        student: the net to be kept, usually an adder net. Its logits are (N, K).
        teacher: usually the same architecture with convolutions. Either net may be of either kind.
        alpha: weight of the soft labels; 5 is the paper's best for ResNet-20 on CIFAR-100.
        beta: weight of the features; likewise.
        temperature: temperature of the soft labels.
        taps: names or patterns of the layers to compare; None for those that `find_taps` finds.
        kernel: "paper" or True for the paper's kernels, Laplacian for adder layers and Gaussian for
            convolutions; "gaussian" or "laplacian" for the same one on both sides, which costs
            another convolution or adder layer for each layer of the other kind (`twin_output`);
            "none" or False to compare the outputs as they are.
        linear_map: whether there are 1x1 convolutions behind the kernels.
        progressive: whether the teacher is trained; otherwise it is fixed, in eval mode.
        scale: how kernels find their initial scale, "deviation", "magnitude" or "batch", see
            `OutputKernel`.
        exponent_limit: bound of the kernels' exponents, see `exponential_kernel`.
        learned_scales: the sides whose kernels learn their scales, "both", "student" or "none". A
            scale that is not learned stays what `scale` says. (Our reading is that the paper learns
            both; a learned scale of the teacher changes what is to be learnt.)

    Shape:
        inputs (N, C, H, W) and labels (N,) to a `PKKDOutput`.

    Raises:
        ValueError: a weight, temperature or limit out of range, an unknown choice, nets that share
            parameters or have no layers to compare.

    Examples:
        >>> import torch, torchadder as ta
        >>> student = ta.models.lenet5_bn(conv="adder")
        >>> pkkd = PKKD(student, ta.models.lenet5_bn(conv="conv"))
        >>> output = pkkd(torch.randn(8, 1, 28, 28), torch.arange(8))
        >>> (output.loss + output.teacher_loss).backward()
        >>> sorted(output.parts)
        ['ce', 'kd', 'mid']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        alpha: float = 5.0,
        beta: float = 5.0,
        temperature: float = 1.0,
        taps: Sequence[str] | None = None,
        kernel: bool | str = True,
        linear_map: bool = True,
        progressive: bool = True,
        scale: str = "deviation",
        exponent_limit: float = EXPONENT_LIMIT,
        learned_scales: str = "both",
    ) -> None:
        check_weights(alpha=alpha, beta=beta)
        check_temperature(temperature)
        check_limit(exponent_limit, "exponent_limit")
        kind = {True: "paper", False: "none"}.get(kernel, kernel)  # type: ignore[call-overload]
        if kind not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
        if learned_scales not in LEARNED_SCALES:
            known = ", ".join(LEARNED_SCALES)
            raise ValueError(f"learned_scales must be one of {known}, got {learned_scales!r}")
        super().__init__(student, teacher, progressive=progressive)
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.alignments = nn.ModuleDict()
        if beta == 0:
            return
        self.taps = (
            find_taps(student, teacher) if taps is None else check_taps(student, teacher, taps)
        )
        for name in self.taps:
            student_kernel, teacher_kernel = None, None
            if kind != "none":
                student_kernel = kernel_for(get_layer(student, name), scale, kind, exponent_limit)
                teacher_kernel = kernel_for(get_layer(teacher, name), scale, kind, exponent_limit)
                student_kernel.log_scale.requires_grad_(learned_scales != "none")
                teacher_kernel.log_scale.requires_grad_(learned_scales == "both")
                self._read(self.student_readings, student, name, student_kernel)
                self._read(self.teacher_readings, teacher, name, teacher_kernel)
            self.alignments[module_key(name)] = KernelAlignment(
                num_channels(student, name), student_kernel, teacher_kernel, linear_map=linear_map
            )
        self.alignments.to(next(student.parameters()).device)

    @staticmethod
    def _read(
        readings: dict[str, Reading], net: nn.Module, name: str, kernel: OutputKernel
    ) -> None:
        """Has the twin of a layer read where a kernel is not of the layer's own kind."""
        layer = get_layer(net, name)
        if needs_twin(layer, kernel):
            check_twin(layer, name)
            readings[name] = twin_output

    @property
    def needs_teacher(self) -> bool:
        """Whether any term reads the teacher's outputs."""
        return self.alpha > 0 or self.beta > 0

    def sigmas(self) -> dict[str, Tensor]:
        """The current kernel scales by "<layer>/student" and "<layer>/teacher", detached."""
        scales: dict[str, Tensor] = {}
        for name in self.taps:
            alignment = self.alignments[module_key(name)]
            for side in ("student", "teacher"):
                kernel = getattr(alignment, f"{side}_kernel")
                if kernel is not None:
                    scales[f"{name}/{side}"] = kernel.sigma.detach()
        return scales

    def distillation_terms(
        self, student: NetOutput, teacher: NetOutput
    ) -> dict[str, tuple[float, Tensor]]:
        """Return the soft-label and the feature term, as far as they are switched on."""
        terms: dict[str, tuple[float, Tensor]] = {}
        if self.alpha > 0:
            soft = soft_cross_entropy(student.logits, teacher.logits, self.temperature)
            terms["kd"] = (self.alpha, soft)
        if self.taps:
            # Popped, so that an output of the teacher is freed as soon as it was compared.
            distances = [
                self.alignments[module_key(name)](student.taps.pop(name), teacher.taps.pop(name))
                for name in self.taps
            ]
            terms["mid"] = (self.beta, torch.stack(distances).mean())
        return terms
