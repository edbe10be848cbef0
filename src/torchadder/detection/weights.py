"""Backbone weights from a classifier's checkpoint."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from torchadder import checkpoint, models
from torchadder.checkpoint import CheckpointError
from torchadder.detection.backbone import ResNetBackbone
from torchadder.models.published import difference
from torchadder.nn import AdderModule


@dataclass(frozen=True)
class LoadedBackbone:
    """What `load_backbone_` took from a checkpoint.

    Attributes:
        path: the file.
        model: name of the classifier in it.
        names: entries of its state dict that the backbone now has.
        left_out: entries that belong to its classifier and were not needed.
    """

    path: str
    model: str
    names: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        rest = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        return f"backbone: {len(self.names)} tensors of {self.model} from {self.path}{rest}"


def load_backbone_(
    backbone: ResNetBackbone, path_or_hub_id: str | os.PathLike[str]
) -> LoadedBackbone:
    """Copy the weights of a classifier's checkpoint into a backbone, in place.

    Everything but the classifier's head must be there and fit; on any error the backbone is left as
    it was.

    Args:
        backbone: a detector's `backbone.body`.
        path_or_hub_id: what `torchadder.load` reads.

    Returns:
        What was loaded and what was left out; `str()` is one line.

    Raises:
        CheckpointError: if the file cannot be read, holds another net, or its layers are of another
            kind: the weights of a CNN are useless in its adder twin. The message names the layers.
    """
    classifier = checkpoint.load(path_or_hub_id)
    own = {name for name, _ in backbone.named_children()}
    found = _values(classifier)
    weights = {name: value for name, value in found.items() if name.partition(".")[0] in own}
    problems = difference(weights, _values(backbone), limit=3) or _other_layers(
        classifier, backbone
    )
    saved = _name(classifier)
    if problems:
        kind = "adder" if backbone.is_adder else "conv"
        raise CheckpointError(
            f"{path_or_hub_id} (saved from {saved}) does not fit the backbone {backbone.name} "
            f"({kind}): {'; '.join(problems)}"
        )
    backbone.load_state_dict(weights, strict=False)
    return LoadedBackbone(
        path=os.fspath(path_or_hub_id),
        model=saved,
        names=tuple(weights),
        left_out=tuple(name for name in found if name not in weights),
    )


def _values(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict without the batch norms' counters, which frozen ones do not have."""
    state = module.state_dict().items()
    return {name: value for name, value in state if not name.endswith("num_batches_tracked")}


def _name(classifier: nn.Module) -> str:
    config = getattr(classifier, "config", None)
    if not isinstance(classifier, models.ImageClassifier) or not isinstance(config, Mapping):
        return type(classifier).__name__
    layer = config["kwargs"].get("conv")
    kind = layer.get("type") if isinstance(layer, Mapping) else layer
    return f"{config['name']}, {kind}"


def _other_layers(classifier: nn.Module, backbone: nn.Module, limit: int = 3) -> list[str]:
    """Say which layers are of another class or have another stride than the backbone's."""
    saved = dict(classifier.named_modules())
    changes = []
    for name, layer in backbone.named_modules():
        if not isinstance(layer, AdderModule | nn.Conv2d):
            continue
        other = saved[name]
        if type(other) is not type(layer):
            changes.append(f"{name} is {type(other).__name__} instead of {type(layer).__name__}")
        elif other.stride != layer.stride:
            changes.append(f"stride of {name} is {other.stride} instead of {layer.stride}")
    more = f" and {len(changes) - limit} more" if len(changes) > limit else ""
    return [", ".join(changes[:limit]) + more] if changes else []
