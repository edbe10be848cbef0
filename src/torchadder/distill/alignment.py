"""How two layers' outputs of the same shape are compared: kernels, linear maps, standardised maps.

No part of this comparison can be made small by shrinking what is compared; docs/pkkd.md has the
argument. Nets, taps and weights of the loss are not known here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchadder.distill.kernels import EXPONENT_LIMIT, OutputKernel
from torchadder.distill.moments import kernel_moments
from torchadder.processes import BatchStatistics

RELATIVE_EPS = 1e-5
ABSOLUTE_EPS = 1e-7


def standardise(maps: Tensor) -> Tensor:
    """Shift and scale every channel to mean 0 and variance 1 over samples and positions.

    `z[n,c,p] = (m[n,c,p] - mean_c) / sqrt(var_c + 1e-5 * mean over channels of var_c + 1e-7)`.
    The first regulariser moves with the maps, so the result does not depend on their scale; it
    keeps channels that are nearly constant from being blown up. The second one only matters for
    layers that are constant as a whole, which come out as 0, as does a single value.

    Args:
        maps: shape (N, C, ...).

    Returns:
        Tensor of the same shape and dtype.

    Examples:
        >>> standardise(torch.tensor([[1.0], [3.0]])).flatten()
        tensor([-1.0000,  1.0000])
    """
    over_samples = [0, *range(2, maps.dim())]
    centred = maps - maps.mean(over_samples, keepdim=True)
    variance = centred.square().mean(over_samples, keepdim=True)
    return centred * torch.rsqrt(variance + variance_floor(variance))


def variance_floor(variances: Tensor) -> Tensor:
    """The regulariser of `standardise`, given the variances of all channels: a scalar."""
    return RELATIVE_EPS * variances.mean() + ABSOLUTE_EPS


def fixed_orthogonal_map(channels: int) -> Tensor:
    """Return a random orthogonal matrix, shape (C, C), drawn from torch's global generator.

    It serves as the 1x1 convolution on the side of the target: it mixes the channels, keeps all
    their directions and lengths, and is not trained.
    """
    return nn.init.orthogonal_(torch.empty(channels, channels))


class KernelAlignment(nn.Module, BatchStatistics):
    """Distance of one pair of layers in kernel space (PKKD's L_mid for one layer).

    `mean((z(rho_a h) - z(rho_c g))^2)`, with h and g the kernel values of the student's and the
    teacher's output, rho 1x1 convolutions without bias and z `standardise`. For standardised maps
    this is `2 (1 - correlation)`, averaged over the channels: 0 for equal maps, 2 for unrelated
    ones, whatever the scales.

    arXiv 2009.13044 has kernels, maps and MSE; that the maps are standardised and that the
    teacher's map is a fixed orthogonal matrix (`fixed_orthogonal_map`, the student's map starts
    from the same one) is our reading. With two free maps and no standardisation the distance falls
    to 0 as both shrink; with two free standardised maps all channels may follow one direction that
    the nets happen to share.

    Means and variances are over the process's share of the batch, or, `synchronised`, over the
    whole batch.

    Args:
        channels: C, number of channels of both outputs.
        student_kernel: kernel of the student's side, None to compare the outputs themselves.
        teacher_kernel: kernel of the teacher's side, likewise.
        linear_map: whether there are maps.

    Raises:
        ValueError: kernels with different bounds of their exponents.

    Shape:
        two tensors (N, C, ...) to a scalar, float32 for half precision inputs.
    """

    teacher_map: Tensor | None

    def __init__(
        self,
        channels: int,
        student_kernel: OutputKernel | None,
        teacher_kernel: OutputKernel | None,
        *,
        linear_map: bool = True,
    ) -> None:
        super().__init__()
        limits = {kernel.limit for kernel in (student_kernel, teacher_kernel) if kernel is not None}
        if len(limits) > 1:
            raise ValueError(f"both kernels must have the same limit, got {sorted(limits)}")
        self.limit = limits.pop() if limits else EXPONENT_LIMIT
        self.student_kernel = student_kernel
        self.teacher_kernel = teacher_kernel
        target_map = fixed_orthogonal_map(channels) if linear_map else None
        self.register_buffer("teacher_map", target_map)
        self.student_map = nn.Parameter(target_map.clone()) if target_map is not None else None

    def forward(self, student_output: Tensor, teacher_output: Tensor) -> Tensor:
        """Return the distance; the teacher's output is a constant.

        Computed from `kernel_moments`: with the variances `s`, `t` and the covariance `c` of the
        mapped values and `i = 1 / sqrt(variance + floor)`, see `standardise`, the distance is
        `mean_c (s i_s^2 + t i_t^2 - 2 c i_s i_t)`. `specification` is the same in plain form.
        """
        if student_output.dim() == 2:
            student_output, teacher_output = student_output[..., None], teacher_output[..., None]
        moments = kernel_moments(
            student_output,
            teacher_output,
            self.student_kernel.rate(student_output) if self.student_kernel is not None else None,
            self.teacher_kernel.rate(teacher_output) if self.teacher_kernel is not None else None,
            _matching(self.student_map, student_output),
            _matching(self.teacher_map, teacher_output),
            self.limit,
            over_processes=self.spans_processes(),
        )
        of_student = torch.rsqrt(moments.student + variance_floor(moments.student))
        of_teacher = torch.rsqrt(moments.teacher + variance_floor(moments.teacher))
        return (
            moments.student * of_student.square()
            + moments.teacher * of_teacher.square()
            - 2 * moments.both * of_student * of_teacher
        ).mean()

    def specification(self, student_output: Tensor, teacher_output: Tensor) -> Tensor:
        """Return the distance by the formula as it stands, of one process; slow, many copies."""
        student_maps = self._maps(student_output, self.student_kernel, self.student_map)
        teacher_maps = self._maps(teacher_output.detach(), self.teacher_kernel, self.teacher_map)
        return F.mse_loss(student_maps, teacher_maps)

    @staticmethod
    def _maps(output: Tensor, kernel: OutputKernel | None, linear_map: Tensor | None) -> Tensor:
        maps = output.to(torch.promote_types(output.dtype, torch.float32))
        if kernel is not None:
            maps = kernel(maps)
        if linear_map is not None:
            maps = torch.einsum("oc,nc...->no...", linear_map.to(maps.dtype), maps)
        return standardise(maps)


def _matching(linear_map: Tensor | None, output: Tensor) -> Tensor | None:
    """A map in the type that an output's kernel values have."""
    if linear_map is None:
        return None
    return linear_map.to(torch.promote_types(output.dtype, torch.float32))
