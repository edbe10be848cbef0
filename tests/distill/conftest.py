import pytest
from torch import nn

from torchadder.nn import Adder2d


class Net(nn.Module):
    """Four layers like the package's models: multiplicative first and last, BN behind each."""

    def __init__(self, conv, width=6, num_classes=4, dropout=0.0):
        super().__init__()
        self.conv1 = nn.Conv2d(2, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.body = nn.Sequential(
            conv(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            conv(2 * width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.body(self.bn1(self.conv1(x)).relu())
        return self.fc(self.dropout(x.mean((2, 3))))


TAPS = ("body.0", "body.3")


@pytest.fixture
def adder_net():
    return lambda **options: Net(Adder2d, **options)


@pytest.fixture
def conv_net():
    return lambda **options: Net(nn.Conv2d, **options)


@pytest.fixture
def taps():
    return TAPS
