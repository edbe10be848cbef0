"""SLAC: classification by skewed Laplace densities, one a class.

"Handling Long-tailed Feature Distribution in AdderNets" (NeurIPS 2021): the features of an adder
net have long tails, so its classifier should model them. `SlacHead` takes the place of the last
layer and its logits are log densities, `slac_loss` is the loss with its three terms. A model gets
the head by `torchadder.models.build(name, head="slac")`. Nothing here knows models or trainers.
"""

from torchadder.slac.head import SlacHead
from torchadder.slac.loss import SlacLoss, angle_term, class_distances, slac_loss

__all__ = ["SlacHead", "SlacLoss", "angle_term", "class_distances", "slac_loss"]
