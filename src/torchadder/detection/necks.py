"""Feature pyramids: FPN, PAFPN, PAFPN with shortcuts, and R-PAFPN, of conv or adder layers.

Sources: FPN, arXiv 1612.03144; PAFPN (the path aggregation of PANet), arXiv 1803.01534; R-PAFPN,
the adder detection paper, arXiv 2112.13608. The text of the last one says "bottom-up first, then
top-down" and "a residual connection around every 3x3 adder filter"; the nodes are our reading,
drawn in docs/detection.md.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from torchadder.detection.layers import NormedLayer
from torchadder.models.convolution import ConvFactory

Maps = OrderedDict[str, Tensor]
"""Maps by level, finest first: "c3", "c4", "c5" of a backbone, "p3" ... "p7" of a neck."""

EXTRA = ("none", "pool", "p5", "c5")
"""Where levels above the fifth come from: nowhere, P5 thinned out, 3x3 layers on P5 or on C5."""


class FPN(nn.Module):
    """Laterals, a top-down path, and a 3x3 layer on each of its nodes.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        channels: channels of every level.
        layer: what builds a layer.
        norm: kind of norm behind each layer.
        shortcut: whether 3x3 layers get a shortcut.
        extra: source of the levels above the fifth, one of `EXTRA`.
        num_extra: how many, for the sources "p5" and "c5".
    """

    def __init__(
        self,
        in_channels: Mapping[str, int],
        channels: int,
        *,
        layer: ConvFactory,
        norm: str,
        shortcut: bool = False,
        extra: str = "p5",
        num_extra: int = 2,
    ) -> None:
        super().__init__()
        node = partial(NormedLayer, layer=layer, norm=norm)
        self.levels = tuple(name.replace("c", "p") for name in in_channels)
        self.lateral = nn.ModuleDict(
            {name: node(count, channels, 1) for name, count in in_channels.items()}
        )
        square = partial(node, channels, channels, 3, shortcut=shortcut)
        self.add_path_layers(square)
        self.output = nn.ModuleDict({level: square() for level in self.levels})
        self.extra = extra
        top: dict[str, nn.Module] = {}
        source = in_channels["c5"] if extra == "c5" else channels
        for index in range(num_extra if extra in ("p5", "c5") else 0):
            has_shortcut = shortcut and source == channels
            top[f"p{6 + index}"] = node(source, channels, 3, stride=2, shortcut=has_shortcut)
            source = channels
        self.top = nn.ModuleDict(top)

    @property
    def all_levels(self) -> tuple[str, ...]:
        """Names of the levels that `forward` returns."""
        return (*self.levels, *(("p6",) if self.extra == "pool" else self.top))

    def add_path_layers(self, node: Callable[..., nn.Module]) -> None:
        """Register the layers of paths that a plain pyramid does not have."""

    def forward(self, maps: Mapping[str, Tensor]) -> Maps:
        """Map the backbone's maps to (N, channels, H_i, W_i) on every level."""
        nodes = {
            level: self.lateral[name](maps[name])
            for level, name in zip(self.levels, self.lateral, strict=True)
        }
        pyramid: Maps = OrderedDict(self.fuse(nodes))
        if self.extra == "pool":
            pyramid["p6"] = pyramid["p5"][..., ::2, ::2]
        x = maps["c5"] if self.extra == "c5" else pyramid["p5"]
        for name, node in self.top.items():
            x = node(x if name == "p6" else F.relu(x))
            pyramid[name] = x
        return pyramid

    def fuse(self, nodes: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the levels of the pyramid, given the laterals."""
        return self.apply_outputs(self.top_down(nodes))

    def top_down(self, nodes: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add to every level the one above it, enlarged."""
        summed = dict(nodes)
        for lower, upper in zip(self.levels[-2::-1], self.levels[:0:-1], strict=True):
            size = nodes[lower].shape[-2:]
            summed[lower] = nodes[lower] + F.interpolate(summed[upper], size=size, mode="nearest")
        return summed

    def apply_outputs(self, nodes: dict[str, Tensor]) -> dict[str, Tensor]:
        """Apply each level's 3x3 output layer."""
        return {level: self.output[level](nodes[level]) for level in self.levels}


class PAFPN(FPN):
    """FPN, and behind it a bottom-up path: a 3x3 layer of stride 2 down, a sum, a 3x3 layer."""

    def add_path_layers(self, node: Callable[..., nn.Module]) -> None:
        """Register, for every level but the finest, the way down to it and the layer on its sum."""
        self.down = nn.ModuleDict({level: node(stride=2) for level in self.levels[1:]})
        self.merge = nn.ModuleDict({level: node() for level in self.levels[1:]})

    def bottom_up(self, nodes: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add to every level the finer one, thinned out, and apply the level's layer."""
        merged = dict(nodes)
        for lower, upper in zip(self.levels, self.levels[1:], strict=False):
            merged[upper] = self.merge[upper](nodes[upper] + self.down[upper](merged[lower]))
        return merged

    def fuse(self, nodes: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the levels of the pyramid, given the laterals."""
        return self.bottom_up(super().fuse(nodes))


class ReversePAFPN(PAFPN):
    """The two paths of PAFPN in the other order: bottom-up on the laterals, then FPN's top-down."""

    def fuse(self, nodes: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the levels of the pyramid, given the laterals."""
        return self.apply_outputs(self.top_down(self.bottom_up(nodes)))


NECKS: dict[str, Callable[..., FPN]] = {
    "fpn": FPN,
    "pafpn": PAFPN,
    "pafpn_shortcut": partial(PAFPN, shortcut=True),
    "r_pafpn": partial(ReversePAFPN, shortcut=True),
}
"""The necks by name, in the order of the paper's table 4."""
