"""Residual networks for CIFAR (ResNet-20, -32) and ImageNet (ResNet-18, -34, -50, -101).

Sources: He et al., arXiv 1512.03385; AdderNet's choice of layers and its classifier head,
arXiv 1912.13200 and its released code.
"""

from torch import Tensor, nn

from torchadder.models.classifier import ImageClassifier, positive_int, records_config
from torchadder.models.convolution import ConvFactory, ConvSpec, make_conv, resolve
from torchadder.nn import Adder2d


class BasicBlock(nn.Module):
    """Two 3x3 layers beside a shortcut; the first one carries the stride."""

    expansion = 1

    def __init__(
        self, conv: ConvFactory, in_channels: int, width: int, stride: int, stride_in_1x1: bool
    ) -> None:
        del stride_in_1x1
        super().__init__()
        self.conv1 = make_conv(conv, in_channels, width, 3, stride=stride, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = make_conv(conv, width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = projection(conv, in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, width, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 layers beside a shortcut; the stride sits on the first or the second."""

    expansion = 4

    def __init__(
        self, conv: ConvFactory, in_channels: int, width: int, stride: int, stride_in_1x1: bool
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = make_conv(conv, in_channels, width, 1, stride=stride_1x1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = make_conv(conv, width, width, 3, stride=stride_3x3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = make_conv(conv, width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(conv, in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, 4 * width, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


def projection(
    conv: ConvFactory, in_channels: int, out_channels: int, stride: int
) -> nn.Sequential | None:
    """Return the 1x1 shortcut with BN where the shape changes, None where the identity fits."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        make_conv(conv, in_channels, out_channels, 1, stride=stride),
        nn.BatchNorm2d(out_channels),
    )


class ResNet(ImageClassifier):
    """A stem, stages of blocks, global average pooling and a 1x1 classifier with BN behind it.

    The subclasses choose the stem. The classifier is a multiplicative 1x1 convolution on the
    pooled features whose logits are normalised by a BN, as in AdderNet's released code.
    """

    head_layers = ("fc", "bn2")

    def __init__(
        self,
        *,
        block: type[BasicBlock | Bottleneck],
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        num_classes: int,
        conv: ConvSpec,
        image_shape: tuple[int, int, int],
        head_bias: bool,
        stride_in_1x1: bool,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            num_features=widths[-1] * block.expansion,
            image_shape=image_shape,
        )
        self.build_stem(image_shape[0], widths[0])
        factory = resolve(conv)
        channels = widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(factory, channels, width, stride, stride_in_1x1))
                channels = width * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.num_stages = len(depths)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Conv2d(self.num_features, num_classes, 1, bias=head_bias)
        self.bn2 = nn.BatchNorm2d(num_classes)

    def build_stem(self, in_channels: int, width: int) -> None:
        """Register the layers of the stem."""
        raise NotImplementedError

    def forward_stem(self, x: Tensor) -> Tensor:
        """Return the input of the first stage."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the globally averaged maps of the last stage, shape (N, num_features)."""
        self.check_images(x)
        x = self.forward_stem(x)
        for stage in range(1, self.num_stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.avgpool(x).flatten(1)

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the logits of `features`, shape (N, num_classes)."""
        return self.bn2(self.fc(features[:, :, None, None])).flatten(1)


class CifarResNet(ResNet):
    """ResNet for 32x32 images: 3x3 stem, three stages of basic blocks with 16, 32, 64 channels."""

    def __init__(
        self, depths: tuple[int, int, int], *, num_classes: int, conv: ConvSpec, in_channels: int
    ) -> None:
        super().__init__(
            block=BasicBlock,
            depths=depths,
            widths=(16, 32, 64),
            num_classes=num_classes,
            conv=conv,
            image_shape=(in_channels, 32, 32),
            head_bias=False,
            stride_in_1x1=False,
        )

    def build_stem(self, in_channels: int, width: int) -> None:
        """Register a 3x3 convolution, always multiplicative, with BN and ReLU."""
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward_stem(self, x: Tensor) -> Tensor:
        """Return the input of the first stage, at full resolution."""
        return self.relu(self.bn1(self.conv1(x)))


class ImageNetResNet(ResNet):
    """ResNet for 224x224 images: 7x7 stem, max pooling, four stages of 1, 2, 4, 8 times `width`."""

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: tuple[int, int, int, int],
        *,
        num_classes: int,
        conv: ConvSpec,
        in_channels: int,
        width: int = 64,
        stride_in_1x1: bool = False,
    ) -> None:
        positive_int("width", width)
        super().__init__(
            block=block,
            depths=depths,
            widths=(width, 2 * width, 4 * width, 8 * width),
            num_classes=num_classes,
            conv=conv,
            image_shape=(in_channels, 224, 224),
            head_bias=True,
            stride_in_1x1=stride_in_1x1,
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def build_stem(self, in_channels: int, width: int) -> None:
        """Register a 7x7 stride-2 convolution, always multiplicative, BN, ReLU and pooling."""
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward_stem(self, x: Tensor) -> Tensor:
        """Return the input of the first stage, at a quarter of the resolution."""
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))


@records_config
def resnet20(
    num_classes: int = 10, conv: ConvSpec = Adder2d, *, in_channels: int = 3
) -> CifarResNet:
    """Build ResNet-20 for 32x32 images, with 1x1 projections where the resolution changes.

    First convolution and classifier are multiplicative, everything between them, projections
    included, is built by `conv`; BN follows every layer, the classifier too (AdderNet,
    arXiv 1912.13200). Initial values: N(0, 1) for adder weights, torch's default for convolutions.
    Global average pooling takes images of any size.

    Args:
        num_classes: number of classes.
        conv: layer class of the inner layers, see `torchadder.models`.
        in_channels: channels of the images.

    Raises:
        ValueError: if a count is below 1 or the layer name is unknown.
        TypeError: if `conv` is no layer class.

    >>> import torch
    >>> resnet20(conv="conv").eval()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    return CifarResNet((3, 3, 3), num_classes=num_classes, conv=conv, in_channels=in_channels)


@records_config
def resnet32(
    num_classes: int = 10, conv: ConvSpec = Adder2d, *, in_channels: int = 3
) -> CifarResNet:
    """Build ResNet-32 for 32x32 images; see `resnet20`."""
    return CifarResNet((5, 5, 5), num_classes=num_classes, conv=conv, in_channels=in_channels)


@records_config
def resnet18(
    num_classes: int = 1000, conv: ConvSpec = Adder2d, *, in_channels: int = 3, width: int = 64
) -> ImageNetResNet:
    """Build ResNet-18 for 224x224 images; see `resnet50`."""
    return ImageNetResNet(
        BasicBlock,
        (2, 2, 2, 2),
        num_classes=num_classes,
        conv=conv,
        in_channels=in_channels,
        width=width,
    )


@records_config
def resnet34(
    num_classes: int = 1000, conv: ConvSpec = Adder2d, *, in_channels: int = 3, width: int = 64
) -> ImageNetResNet:
    """Build ResNet-34 for 224x224 images; see `resnet50`."""
    return ImageNetResNet(
        BasicBlock,
        (3, 4, 6, 3),
        num_classes=num_classes,
        conv=conv,
        in_channels=in_channels,
        width=width,
    )


@records_config
def resnet50(
    num_classes: int = 1000,
    conv: ConvSpec = Adder2d,
    *,
    in_channels: int = 3,
    width: int = 64,
    stride_in_1x1: bool = False,
) -> ImageNetResNet:
    """Build ResNet-50 for 224x224 images.

    First convolution and classifier are multiplicative, everything between them, 1x1 layers and
    projections included, is built by `conv`; BN follows every layer, the classifier too
    (AdderNet, arXiv 1912.13200). Initial values: N(0, 1) for adder weights, He's normal
    distribution over the fan-out for convolutions.

    Args:
        num_classes: number of classes.
        conv: layer class of the inner layers, see `torchadder.models`.
        in_channels: channels of the images.
        width: channels of the first stage's 3x3 layers; each later stage has twice as many.
        stride_in_1x1: put the stride of a stage's first block on its 1x1 layer, as in the original
            ResNet and in the op counts of the AdderNet paper (3.86G), and not on the 3x3 layer, as
            in torchvision and in AdderNet's released code (4.09G).

    Raises:
        ValueError: if a count is below 1 or the layer name is unknown.
        TypeError: if `conv` is no layer class.
    """
    return ImageNetResNet(
        Bottleneck,
        (3, 4, 6, 3),
        num_classes=num_classes,
        conv=conv,
        in_channels=in_channels,
        width=width,
        stride_in_1x1=stride_in_1x1,
    )


@records_config
def resnet101(
    num_classes: int = 1000,
    conv: ConvSpec = Adder2d,
    *,
    in_channels: int = 3,
    width: int = 64,
    stride_in_1x1: bool = False,
) -> ImageNetResNet:
    """Build ResNet-101 for 224x224 images; see `resnet50`."""
    return ImageNetResNet(
        Bottleneck,
        (3, 4, 23, 3),
        num_classes=num_classes,
        conv=conv,
        in_channels=in_channels,
        width=width,
        stride_in_1x1=stride_in_1x1,
    )
