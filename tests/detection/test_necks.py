"""The necks against the same graphs written out plainly."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchadder.detection.layers import NormedLayer, layer_factory, make_norm
from torchadder.detection.necks import NECKS

IN = {"c3": 4, "c4": 6, "c5": 8}
CHANNELS = 4
SIZES = {"c3": (13, 10), "c4": (7, 5), "c5": (4, 3)}


def neck_of(kind, extra="p5", is_adder=True, norm="batch"):
    torch.manual_seed(0)
    neck = NECKS[kind](
        IN, CHANNELS, layer=layer_factory(is_adder, "sign"), norm=norm, extra=extra
    ).double()
    for module in neck.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(-20, 3)
            module.running_var.uniform_(10, 30)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return neck.eval()


def maps_of(channels=IN):
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(2, count, *SIZES[name], dtype=torch.float64, generator=generator)
        for name, count in channels.items()
    }


def unfolded(node, x, shortcut):
    """A node of an adder neck: distances of unfolded patches, batch norm, shortcut."""
    weight = node.conv.weight
    patches = F.unfold(x, weight.shape[-1], padding=weight.shape[-1] // 2, stride=node.stride)
    distance = -torch.cdist(patches.transpose(1, 2), weight.flatten(1)[None], p=1)
    height = (x.shape[2] - 1) // node.stride + 1
    y = distance.transpose(1, 2).unflatten(2, (height, -1))
    norm = node.norm
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    y = (y - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    return y + F.max_pool2d(x, 1, node.stride) if shortcut else y


def enlarged(x, like):
    rows = torch.arange(like.shape[2]) * x.shape[2] // like.shape[2]
    columns = torch.arange(like.shape[3]) * x.shape[3] // like.shape[3]
    return x[:, :, rows][:, :, :, columns]


def plain(kind, neck, maps):
    """The four graphs, node by node."""
    node = partial(unfolded, shortcut=kind in ("pafpn_shortcut", "r_pafpn"))
    l3, l4, l5 = (unfolded(neck.lateral[c], maps[c], shortcut=False) for c in IN)
    out, down, merge = neck.output, getattr(neck, "down", None), getattr(neck, "merge", None)
    if kind == "r_pafpn":
        b3 = l3
        b4 = node(merge["p4"], l4 + node(down["p4"], b3))
        b5 = node(merge["p5"], l5 + node(down["p5"], b4))
        t5 = b5
        t4 = b4 + enlarged(t5, b4)
        t3 = b3 + enlarged(t4, b3)
        p3, p4, p5 = node(out["p3"], t3), node(out["p4"], t4), node(out["p5"], t5)
    else:
        t5 = l5
        t4 = l4 + enlarged(t5, l4)
        t3 = l3 + enlarged(t4, l3)
        p3, p4, p5 = node(out["p3"], t3), node(out["p4"], t4), node(out["p5"], t5)
        if kind != "fpn":
            p4 = node(merge["p4"], p4 + node(down["p4"], p3))
            p5 = node(merge["p5"], p5 + node(down["p5"], p4))
    p6 = node(neck.top["p6"], p5)
    p7 = node(neck.top["p7"], p6.relu())
    return {"p3": p3, "p4": p4, "p5": p5, "p6": p6, "p7": p7}


@pytest.mark.parametrize("kind", NECKS)
def test_nodes(kind):
    neck, maps = neck_of(kind), maps_of()
    wanted = plain(kind, neck, maps)
    found = neck(maps)
    assert list(found) == list(wanted)
    for level, value in wanted.items():
        torch.testing.assert_close(found[level], value, rtol=1e-10, atol=1e-9)


def test_the_necks_differ():
    """Where they have the same layers, their order and their shortcuts are what differs."""
    maps = maps_of()
    results = []
    states = []
    for kind in ("pafpn", "pafpn_shortcut", "r_pafpn"):
        neck = neck_of(kind)
        states.append(neck.state_dict())
        results.append(neck(maps)["p4"])
    assert list(states[0]) == list(states[1]) == list(states[2])
    assert all(torch.equal(states[0][key], states[2][key]) for key in states[0])
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert not torch.allclose(results[first], results[second])


def test_p6_of_c5_has_no_shortcut_where_the_channels_differ():
    neck, maps = neck_of("r_pafpn", extra="c5"), maps_of()
    assert not neck.top["p6"].shortcut
    assert neck.top["p7"].shortcut
    found = neck(maps)
    p6 = unfolded(neck.top["p6"], maps["c5"], shortcut=False)
    torch.testing.assert_close(found["p6"], p6)
    torch.testing.assert_close(found["p7"], unfolded(neck.top["p7"], p6.relu(), shortcut=True))


def test_p6_by_pooling_and_no_p6():
    maps = maps_of()
    found = neck_of("fpn", extra="pool")(maps)
    assert torch.equal(found["p6"], F.max_pool2d(found["p5"], 1, 2))
    assert list(neck_of("fpn", extra="none")(maps)) == ["p3", "p4", "p5"]


def test_laterals_outputs_and_extra_levels_are_adder_layers_with_norms():
    neck = neck_of("r_pafpn")
    nodes = [m for m in neck.modules() if isinstance(m, NormedLayer)]
    assert len(nodes) == 3 + 2 + 2 + 3 + 2
    for node in nodes:
        assert type(node.conv).__name__ == "Adder2d"
        assert node.conv.bias is None
        assert isinstance(node.norm, nn.BatchNorm2d)
        assert node.shortcut == (node.conv.kernel_size == (3, 3))


def test_conv_neck_is_torchvisions_pyramid():
    from torchvision.ops import FeaturePyramidNetwork
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    neck = neck_of("fpn", is_adder=False, norm="none")
    theirs = FeaturePyramidNetwork([4, 6, 8], CHANNELS, LastLevelP6P7(CHANNELS, CHANNELS)).double()
    names = {
        **{f"inner_blocks.{i}.0": f"lateral.{c}.conv" for i, c in enumerate(IN)},
        **{f"layer_blocks.{i}.0": f"output.p{i + 3}.conv" for i in range(3)},
        **{f"extra_blocks.{p}": f"top.{p}.conv" for p in ("p6", "p7")},
    }
    state = neck.state_dict()
    theirs.load_state_dict(
        {
            f"{a}.{leaf}": state[f"{b}.{leaf}"]
            for a, b in names.items()
            for leaf in ("weight", "bias")
        }
    )
    maps = maps_of()
    for ours, other in zip(neck(maps).values(), theirs(dict(maps)).values(), strict=True):
        torch.testing.assert_close(ours, other)


def test_group_norm_divides_the_channels():
    groups = {c: make_norm("group", c).num_groups for c in (256, 128, 64, 48, 16, 12, 7, 1)}
    assert groups == {256: 32, 128: 16, 64: 8, 48: 2, 16: 2, 12: 1, 7: 1, 1: 1}
