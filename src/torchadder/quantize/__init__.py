"""Integer nets from trained ones: `torchadder.quantize_`.

`tracing` writes a float net down as steps (`graph`), `ranges` finds the ranges of its values,
`choosing` says which integers they get, and `lowering` makes a `Program` of it, which `interpreter`
explains and `net` and `modules` run fast. `core` says what a model has to offer of which only a
part becomes integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from torchadder.quantize.calibration import Calibration as Calibration
from torchadder.quantize.calibration import device_of
from torchadder.quantize.config import Int8Config as Int8Config
from torchadder.quantize.core import HasCore as HasCore
from torchadder.quantize.core import integer_net as integer_net
from torchadder.quantize.graph import QuantizationError as QuantizationError
from torchadder.quantize.modules import Adder2dInt8 as Adder2dInt8
from torchadder.quantize.modules import Conv2dInt8 as Conv2dInt8
from torchadder.quantize.net import IntegerNet as IntegerNet
from torchadder.quantize.program import Program as Program
from torchadder.quantize.report import LayerReport as LayerReport
from torchadder.quantize.report import QuantizationReport as QuantizationReport

__all__ = [
    "Adder2dInt8",
    "Calibration",
    "Conv2dInt8",
    "HasCore",
    "Int8Config",
    "IntegerNet",
    "LayerReport",
    "Program",
    "QuantizationError",
    "QuantizationReport",
    "integer_net",
    "quantize",
    "quantize_",
]


def quantize_(
    model: nn.Module,
    calibration_batches: Iterable[Any],
    config: Int8Config | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> QuantizationReport:
    """Makes an integer net of a trained model, in place: afterwards it is an `IntegerNet`.

    A detector stays the detector that it is, and backbone, neck and head become the integer net.

    Post-training: the calibration images go through the float net, twice for the ranges of its
    values and once more to be compared. The result is a function of the model and the images alone.
    `-sum |x - w|` of reals is `scale` times `-sum |x_q - w_q|` of integers if x and w have one
    scale and zero point (arXiv 2101.10015); see docs/int8.md for what is shared with whom.

    Args:
        model: Images (N, C, H, W) to logits or maps, in evaluation mode: adder layers,
            convolutions, linear layers, batch norms, group norms, ReLU, residual additions,
            pooling, enlarging, flattening. Or a detector, `fcos` or `retinanet` of
            `torchadder.detection`.
        calibration_batches: Images as the model takes them: tensors, or tuples or lists that begin
            with one, such as a data loader gives; for a detector images (3, H, W) or lists of them,
            of any sizes. A few hundred images are plenty.
        config: What to choose; 8 bits by default.
        mean: Of each channel, what the images were normalised with, for exports; pixels in 0..1.
        std: Likewise.

    Returns:
        Range, clipped share and signal-to-noise ratio of every layer.

    Raises:
        QuantizationError: If a layer cannot be quantised (with its name and the reason), there is
            no calibration data, it has NaN in it, or a range is zero. A ValueError; the model is
            unchanged after any error.
        TypeError: If the batches are no tensors.
    """
    program, report = quantize(model, calibration_batches, config, mean=mean, std=std)
    net = IntegerNet(program).to(device_of(model)).train(model.training)
    if isinstance(model, HasCore):
        model.use_integers_(net)
        return report
    model.__class__ = IntegerNet
    vars(model).clear()
    vars(model).update(vars(net))
    return report


def quantize(
    model: nn.Module,
    calibration_batches: Iterable[Any],
    config: Int8Config | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[Program, QuantizationReport]:
    """The integer program of a model, which stays as it is; arguments as of `quantize_`."""
    config = config or Int8Config()
    calibration = Calibration(model, calibration_batches, mean=mean, std=std)
    program, ranges = calibration.lower(config)
    return program, calibration.report(program, ranges)
