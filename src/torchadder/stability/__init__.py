"""Why adder nets need care: the variance of their outputs, in theory and in a net.

* `adder_output_moments`, `conv_output_moments`, `adder_filter_moments`: mean and variance of a
  layer's output from the distributions of inputs and weights (`Normal`, `Laplace`, `Rectified`).
* `predict_output_variance`: predictions beside measurements, for every layer of a net.
* `StabilityMeter`: variances, batch norm's movement and gradient norms of a training step.
* `response_variance`, `gaussian_adder_variance`: the same where inputs are correlated.

Derivations, and what they leave out, are in docs/stability.md. Runs and their folders are unknown
here: `trainer.record_stability` of a recipe records, `torchadder diagnose --stability` reports.
"""

from torchadder.stability.correlation import gaussian_adder_variance as gaussian_adder_variance
from torchadder.stability.correlation import response_variance as response_variance
from torchadder.stability.distributions import Laplace as Laplace
from torchadder.stability.distributions import Normal as Normal
from torchadder.stability.distributions import Rectified as Rectified
from torchadder.stability.meter import QUANTITIES as QUANTITIES
from torchadder.stability.meter import StabilityMeter as StabilityMeter
from torchadder.stability.moments import OutputMoments as OutputMoments
from torchadder.stability.moments import adder_filter_moments as adder_filter_moments
from torchadder.stability.moments import adder_output_moments as adder_output_moments
from torchadder.stability.moments import conv_output_moments as conv_output_moments
from torchadder.stability.moments import mean_distance as mean_distance
from torchadder.stability.prediction import LayerPrediction as LayerPrediction
from torchadder.stability.prediction import predict_output_variance as predict_output_variance

__all__ = [
    "QUANTITIES",
    "Laplace",
    "LayerPrediction",
    "Normal",
    "OutputMoments",
    "Rectified",
    "StabilityMeter",
    "adder_filter_moments",
    "adder_output_moments",
    "conv_output_moments",
    "gaussian_adder_variance",
    "mean_distance",
    "predict_output_variance",
    "response_variance",
]
