"""What PKKD's kernels do to the distributions of two nets: samples, fits, distances.

PKKD (arXiv 2009.13044) rests on the remark that features and weights of an adder net are
distributed differently (Laplace) from those of a CNN (normal), and that kernels bring the two
together. Here that is measured on trained nets and real images. `torchadder diagnose` prints it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchadder.distill import (
    EXPONENT_LIMIT,
    PKKD,
    LaplacianKernel,
    OutputKernel,
    capture,
    kernel_for,
)
from torchadder.distill.taps import get_layer, module_key
from torchadder.nn import AdderModule
from torchadder.report import distances
from torchadder.report.distances import standardised
from torchadder.report.statistics import WeightFits, fit_weights

MAX_VALUES = 100_000
ROUNDINGS = 8
"""Roundings in float32, at most, between the bound of an exponent and the kernel value there."""

SIDES = ("student", "teacher")
STAGES = {
    "features": ("before", "kernel", "mapped"),
    "weights": ("before", "kernel"),
}


@dataclass(frozen=True)
class Sample:
    """Values of one layer of one net.

    Attributes:
        layer: Name of the layer.
        side: "student" or "teacher".
        is_adder: Whether it is an adder layer.
        kind: "features" or "weights".
        stage: "before" the kernel, behind the "kernel", or behind the linear map, "mapped".
        values: The values, flat, at most `MAX_VALUES` of them.
        limit: Bound of the exponents of kernel values.
    """

    layer: str
    side: str
    is_adder: bool
    kind: str
    stage: str
    values: NDArray[np.float64]
    limit: float = EXPONENT_LIMIT

    @property
    def fits(self) -> WeightFits:
        """Both distributions fitted by maximum likelihood."""
        return fit_weights(self.values)

    def describe(self) -> dict[str, Any]:
        """Distances of the sample to both fits.

        `ks` is Kolmogorov-Smirnov's, `w1` Wasserstein-1 in units of the sample's standard
        deviation; `nearer` names the fit with the smaller Wasserstein distance. `clamped` is the
        share of kernel values at the bounds of the exponent, None at other stages.
        """
        fits, values = self.fits, self.values
        points, spread = distances.midpoints(len(values)), float(values.std())
        row: dict[str, Any] = {
            "layer": self.layer,
            "side": self.side,
            "layer_kind": "adder" if self.is_adder else "conv",
            "kind": self.kind,
            "stage": self.stage,
            "num_values": len(values),
            "mean": float(values.mean()),
            "std": spread,
            "clamped": None,
        }
        if self.stage == "kernel":
            exponents = np.abs(np.log(np.maximum(values, np.finfo(np.float64).tiny)))
            # A rounded value moves its exponent by eps, a rounded exponent by eps times itself.
            rounding = ROUNDINGS * np.finfo(np.float32).eps * (1 + self.limit)
            row["clamped"] = float(np.mean(exponents > self.limit - rounding))
        for name, fit, cdf, quantile in (
            ("laplace", fits.laplace, distances.laplace_cdf, distances.laplace_quantile),
            ("normal", fits.normal, distances.normal_cdf, distances.normal_quantile),
        ):
            row[f"{name}_ks"] = distances.ks_to_fit(values, cdf(values, fit))
            to_fit = distances.wasserstein_to_fit(values, quantile(points, fit))
            row[f"{name}_w1"] = to_fit / spread
        row["nearer"] = "laplace" if row["laplace_w1"] < row["normal_w1"] else "normal"
        return row


def sample_layers(
    pkkd: PKKD, images: Tensor, layers: Sequence[str] | None = None, max_values: int = MAX_VALUES
) -> list[Sample]:
    """Features and weights of both nets, before and behind the kernels.

    Features before are a layer's outputs y less the mean of their channel, as the kernel sees them;
    behind it `exp(y / (2 sigma^2))`; behind the map what the loss compares, up to `standardise`.
    Weights before are the layer's weights. A kernel takes pairs, so weights behind it are its
    values for all pairs of different filters f, f' of the layer, `exp(-|f - f'|_1 / c)` or
    `exp(<f, f'> / c)`, with the exponents centred and c such that they have unit mean deviation, as
    for outputs. (Our reading: the paper shows histograms without saying how they were made.)

    Values are drawn from a layer at random, with a fixed seed. A layer whose values are all equal
    or not finite is left out.

    Args:
        pkkd: Both nets and the kernels between them; comes back in evaluation mode.
        images: Images (N, C, H, W), prepared as for the nets.
        layers: Names of tapped layers; None: all of them.
        max_values: Most values of a sample.
    """
    pkkd.eval()
    found = []
    for name in pkkd.taps if layers is None else layers:
        for side in SIDES:
            net: Any = getattr(pkkd, side)
            layer = get_layer(net, name)
            kernel = _kernel(pkkd, side, name)
            values = itertools.chain(
                _feature_stages(pkkd, side, name, images, kernel), _weight_stages(layer, kernel)
            )
            for kind, stage, tensor in values:
                array = _draw(tensor, max_values)
                if np.isfinite(array).all() and np.ptp(array) > 0:
                    is_adder = isinstance(layer, AdderModule)
                    sample = Sample(name, side, is_adder, kind, stage, array, kernel.limit)
                    found.append(sample)
    return found


def compare_sides(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """How far student and teacher are apart, layer by layer and stage by stage.

    Both samples are shifted and scaled to mean 0 and standard deviation 1 first: `ks` is
    Kolmogorov-Smirnov's distance, `w1` Wasserstein-1.
    """
    by_key = {(s.layer, s.kind, s.stage, s.side): standardised(s.values) for s in samples}
    rows = []
    for layer, kind, stage in dict.fromkeys(key[:3] for key in by_key):
        pair = [by_key.get((layer, kind, stage, side)) for side in SIDES]
        if pair[0] is None or pair[1] is None:
            continue
        rows.append(
            {
                "layer": layer,
                "kind": kind,
                "stage": stage,
                "ks": distances.ks_between(pair[0], pair[1]),
                "w1": distances.wasserstein_between(pair[0], pair[1]),
            }
        )
    return rows


@torch.no_grad()
def _feature_stages(
    pkkd: PKKD, side: str, name: str, images: Tensor, kernel: OutputKernel
) -> Iterator[tuple[str, str, Tensor]]:
    readings = getattr(pkkd, f"{side}_readings")
    net: nn.Module = getattr(pkkd, side)
    with capture(net, [name], detach=True, readings=readings) as outputs:
        net(images)
    output = outputs[name].float()
    centred = output - output.mean([0, *range(2, output.dim())], keepdim=True)
    yield "features", "before", centred
    values = kernel(output)
    yield "features", "kernel", values
    linear_map = getattr(pkkd.alignments[module_key(name)], f"{side}_map")
    if linear_map is not None:
        yield "features", "mapped", torch.einsum("oc,nc...->no...", linear_map, values)


@torch.no_grad()
def _weight_stages(layer: Any, kernel: OutputKernel) -> Iterator[tuple[str, str, Tensor]]:
    weight = layer.weight.detach().float()
    yield "weights", "before", weight
    filters = weight.flatten(1)
    if len(filters) < 2:
        return
    is_laplacian = isinstance(kernel, LaplacianKernel)
    pairs = -torch.cdist(filters, filters, p=1) if is_laplacian else filters @ filters.T
    rows, columns = torch.triu_indices(len(filters), len(filters), offset=1)
    exponents = pairs[rows, columns] - pairs[rows, columns].mean()
    scale = exponents.abs().mean().clamp(min=torch.finfo(exponents.dtype).tiny)
    yield "weights", "kernel", (exponents / scale).clamp(-kernel.limit, kernel.limit).exp()


def _kernel(pkkd: PKKD, side: str, name: str) -> OutputKernel:
    """The kernel of a layer; where the run has none, that of the paper."""
    alignment: Any = pkkd.alignments[module_key(name)]
    own = getattr(alignment, f"{side}_kernel")
    return own or kernel_for(get_layer(getattr(pkkd, side), name)).eval()


def _draw(values: Tensor, count: int) -> NDArray[np.float64]:
    flat = values.flatten().double().cpu()
    if len(flat) > count:
        generator = torch.Generator().manual_seed(0)
        flat = flat[torch.randperm(len(flat), generator=generator)[:count]]
    return flat.numpy()
