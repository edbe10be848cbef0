"""VGG-small for 32x32 images."""

from torch import Tensor, nn

from torchadder.models.classifier import ImageClassifier, records_config
from torchadder.models.convolution import ConvSpec, make_conv, resolve
from torchadder.nn import Adder2d


class VGGSmall(ImageClassifier):
    """Six 3x3 convolutions in three pairs and a 1x1 classifier; see `vgg_small`."""

    head_layers = ("fc", "bn_fc")

    def __init__(self, *, num_classes: int, conv: ConvSpec, in_channels: int) -> None:
        super().__init__(
            num_classes=num_classes,
            num_features=512 * 4 * 4,
            image_shape=(in_channels, 32, 32),
            min_size=8,
        )
        layer = resolve(conv)
        self.conv1 = nn.Conv2d(in_channels, 128, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(128)
        self.conv2 = make_conv(layer, 128, 128, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(128)
        self.conv3 = make_conv(layer, 128, 256, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(256)
        self.conv4 = make_conv(layer, 256, 256, 3, padding=1)
        self.bn4 = nn.BatchNorm2d(256)
        self.conv5 = make_conv(layer, 256, 512, 3, padding=1)
        self.bn5 = nn.BatchNorm2d(512)
        self.conv6 = make_conv(layer, 512, 512, 3, padding=1)
        self.bn6 = nn.BatchNorm2d(512)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        # The identity on the 4x4 maps of a 32x32 image.
        self.avgpool = nn.AdaptiveAvgPool2d(4)
        self.fc = nn.Conv2d(self.num_features, num_classes, 1, bias=False)
        self.bn_fc = nn.BatchNorm2d(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the flattened 512x4x4 maps, shape (N, 8192)."""
        self.check_images(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.pool(self.conv2(x))))
        x = self.relu(self.bn3(self.conv3(x)))
        x = self.relu(self.bn4(self.pool(self.conv4(x))))
        x = self.relu(self.bn5(self.conv5(x)))
        x = self.relu(self.bn6(self.pool(self.conv6(x))))
        return self.avgpool(x).flatten(1)

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the logits of `features`, shape (N, num_classes)."""
        return self.bn_fc(self.fc(features[:, :, None, None])).flatten(1)


@records_config
def vgg_small(num_classes: int = 10, conv: ConvSpec = Adder2d, *, in_channels: int = 3) -> VGGSmall:
    """Build VGG-small: 128-128-256-256-512-512 channels and a classifier, for 32x32 images.

    The net of LQ-Nets (arXiv 1807.10029), which AdderNet (arXiv 1912.13200) compares on: in the
    second convolution of each pair the order is convolution, max pooling, BN, ReLU. First and
    last layer are multiplicative. Images of another size are pooled to 4x4 maps at the end.

    The logits pass through a BN, as in the other nets here; LQ-Nets has none and trains at a fifth
    of AdderNet's learning rate. At 0.1 a step moves plain logits of 8192 features by tens, and the
    features of the adder net fall below 0 for good.

    Args:
        num_classes: number of classes.
        conv: layer class of the inner layers, see `torchadder.models`.
        in_channels: channels of the images.

    Raises:
        ValueError: if a count is below 1 or the layer name is unknown.
        TypeError: if `conv` is no layer class.
    """
    return VGGSmall(num_classes=num_classes, conv=conv, in_channels=in_channels)
