"""Float nets to quantise: small, with every step, and batch norms that know their statistics."""

import torch
from torch import nn
from torch.nn import functional as F

from torchadder.nn import Adder2d


class Block(nn.Module):
    def __init__(self, channels, out_channels, stride):
        super().__init__()
        self.conv1 = Adder2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = Adder2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(
                Adder2d(channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return F.relu(y)


class SmallResNet(nn.Module):
    """Convolution, max pool, two residual blocks, one with a shortcut, mean, linear layer."""

    def __init__(self, width=8, num_classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = Block(width, width, 1)
        self.layer2 = Block(width, 2 * width, 2)
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        x = self.pool(F.relu(self.bn(self.stem(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class OddNet(nn.Module):
    """What the residual net lacks: a norm first, signed values, groups, an addition, a flattening.

    The flattened image has more than one pixel, so that the order of its values matters, and the
    logits come from a ReLU.
    """

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.one = Adder2d(4, 8, 3, padding=1, groups=2)
        self.two = nn.Conv2d(4, 8, 3, padding=(1, 2), dilation=(1, 2), groups=4)
        self.mid = nn.BatchNorm2d(8)
        self.three = Adder2d(8, 8, 2, stride=2, bias=True)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 2 * 2, 6)

    def forward(self, x):
        x = self.norm(x)
        one, two = self.one(x), self.two(x)
        y = self.mid(F.avg_pool2d(one + two + one, 2))
        y = self.bn(self.three(F.relu(y)))
        return F.relu(self.fc(y.flatten(1)))


def settled(net, images, seed=0):
    """A net with random norms, in evaluation mode, whose norms have seen the images."""
    random = torch.Generator().manual_seed(seed)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        with torch.no_grad():
            norm.weight.uniform_(0.5, 1.5, generator=random)
            norm.bias.uniform_(-0.5, 0.5, generator=random)
        norm.momentum = None
    with torch.no_grad():
        net(images)
    return net.eval()


def small_resnet():
    torch.manual_seed(0)
    images = torch.randn(48, 3, 16, 16)
    return settled(SmallResNet(), images), images


def odd_net():
    torch.manual_seed(1)
    images = torch.randn(48, 4, 8, 8)
    return settled(OddNet(), images), images
