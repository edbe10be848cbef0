"""Dropout of inputs that are given by keyword."""

import pytest
import torch
from torch import nn

from torchadder.distill import Dropout


class Keywords(nn.Module):
    """Calls its layers by keyword, the two-argument one in any order."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.join = nn.Bilinear(3, 3, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.conv(input=x).mean((2, 3))
        return self.fc(input=self.join(input2=x, input1=x))


class Positions(Keywords):
    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        return self.fc(self.join(x, x))


def batch():
    return torch.randn(6, 2, 4, 4), torch.arange(6) % 4


@pytest.mark.parametrize("taps", [None, ["conv"], ["join"], ["join", "fc"]])
def test_inputs_by_keyword(taps):
    by_position = Positions()
    by_keyword = Keywords()
    by_keyword.load_state_dict(by_position.state_dict())
    losses = []
    data = batch()
    for net in (by_position, by_keyword):
        torch.manual_seed(3)
        losses.append(Dropout(net, dropout=0.5, taps=taps)(*data).loss)
    assert torch.equal(*losses)
    with torch.no_grad():
        plain = nn.functional.cross_entropy(by_keyword(data[0]), data[1])
    assert not torch.equal(losses[1], plain)
    assert not any(module._forward_pre_hooks for module in by_keyword.modules())


@pytest.mark.parametrize("kind", [Keywords, Positions])
def test_one_graph_with_dropout(kind):
    distiller = Dropout(kind(), taps=["join", "fc"])
    data = batch()
    with distiller.hold_taps():
        compiled = torch.compile(distiller, backend="eager", fullgraph=True)
        compiled(*data).loss.backward()
        assert not torch.equal(compiled(*data).loss, compiled(*data).loss)
    torch._dynamo.reset()
