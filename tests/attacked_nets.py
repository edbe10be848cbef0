"""Small nets to attack, and images with the labels that they give them."""

import torch
from torch import nn

import torchadder as ta


class Small(nn.Module):
    """Convolution or adder layer, batch norm, classifier: smooth enough to be compared."""

    def __init__(self, layer, channels=3, classes=4):
        super().__init__()
        self.layer = layer(channels, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.layer(x))).mean((2, 3)))


def small(kind="conv", channels=3, classes=4, seed=0):
    torch.manual_seed(seed)
    net = Small(nn.Conv2d if kind == "conv" else ta.nn.Adder2d, channels, classes)
    with torch.no_grad():
        images = torch.rand(64, channels, 8, 8)
        for _ in range(20):
            net.train()(images)
        net.eval()
        # Every class is named for some images, with small margins.
        net.head.bias.sub_(net(images).mean(0))
        net.head.weight.mul_(8)
        net.head.bias.mul_(8)
    return net


def labelled(net, num_images=12, channels=3):
    """Images, with the labels that the net gives them but for the last two."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(num_images, channels, 8, 8, generator=generator)
    with torch.no_grad():
        logits = net(images)
    labels = logits.argmax(1)
    labels[-2:] = (labels[-2:] + 1) % logits.shape[1]
    return images, labels
