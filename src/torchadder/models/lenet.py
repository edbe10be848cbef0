"""LeNet-5 with batch normalisation for 28x28 grey digits."""

from torch import Tensor, nn

from torchadder.models.classifier import ImageClassifier, positive_int, records_config
from torchadder.models.convolution import ConvSpec, make_conv, resolve
from torchadder.nn import Adder2d


class LeNet5BN(ImageClassifier):
    """The layers C1, C3, C5, F6 of LeNet-5, each followed by BN; see `lenet5_bn`."""

    head_layers = ("fc", "bn_fc")

    def __init__(
        self,
        *,
        num_classes: int,
        conv: ConvSpec,
        in_channels: int,
        feature_dim: int | None,
        head: ConvSpec,
    ) -> None:
        if feature_dim is not None:
            positive_int("feature_dim", feature_dim)
        super().__init__(
            num_classes=num_classes,
            num_features=84 if feature_dim is None else feature_dim,
            image_shape=(in_channels, 28, 28),
            min_size=28,
        )
        layer = resolve(conv)
        self.conv1 = nn.Conv2d(in_channels, 6, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = make_conv(layer, 6, 16, 5)
        self.bn2 = nn.BatchNorm2d(16)
        self.conv3 = make_conv(layer, 16, 120, 5)
        self.bn3 = nn.BatchNorm2d(120)
        self.conv4 = make_conv(layer, 120, 84, 1)
        self.bn4 = nn.BatchNorm2d(84)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.embedding = None
        if feature_dim is not None:
            self.embedding = nn.Sequential(
                make_conv(layer, 84, feature_dim, 1), nn.BatchNorm2d(feature_dim)
            )
        self.fc = make_conv(resolve(head, "head"), self.num_features, num_classes, 1)
        # A norm of the logits could move the classes apart by itself, each by an offset.
        self.bn_fc = nn.BatchNorm2d(num_classes) if feature_dim is None else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Return F6's activations, or the `feature_dim` embedding, shape (N, num_features)."""
        self.check_images(x)
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = self.pool(self.relu(self.bn2(self.conv2(x))))
        x = self.avgpool(self.relu(self.bn3(self.conv3(x))))
        x = self.relu(self.bn4(self.conv4(x)))
        if self.embedding is not None:
            x = self.embedding(x)
        return x.flatten(1)

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the logits of `features`, shape (N, num_classes)."""
        return self.bn_fc(self.fc(features[:, :, None, None])).flatten(1)


@records_config
def lenet5_bn(
    num_classes: int = 10,
    conv: ConvSpec = Adder2d,
    *,
    in_channels: int = 1,
    feature_dim: int | None = None,
    head: ConvSpec = nn.Conv2d,
) -> LeNet5BN:
    """Build LeNet-5 with batch normalisation, for 28x28 grey digits.

    5x5 convolutions 6-16-120 and a 1x1 convolution to 84 features, average pooling after the
    first two, BN and ReLU after each; the image is padded by 2, so the maps are those of the
    classic 32x32 input (LeCun et al., 1998, "Gradient-based learning applied to document
    recognition"). First and last layer are multiplicative, the last is followed by BN on the
    logits (AdderNet, arXiv 1912.13200). 416,520 multiply-adds; see docs/energy.md for the 435K
    quoted in the literature. Larger images are averaged over after the 120-channel layer.

    Args:
        num_classes: number of classes.
        conv: layer class of the inner layers, see `torchadder.models`.
        in_channels: channels of the images.
        feature_dim: if given, a layer of this width (BN behind it, no ReLU) sits between the 84
            features and the classifier and becomes the penultimate one, and the logits are not
            normalised, so that features alone separate the classes. With 2 they can be drawn:
            clusters for an adder net, rays for a CNN (AdderNet, figure 1).
        head: layer class of the classifier. Figure 1 is about nets that classify by distance, so
            draw it with `head="adder"` for the adder net.

    Raises:
        ValueError: if a count is below 1 or a layer name is unknown.
        TypeError: if `conv` or `head` is no layer class.
    """
    return LeNet5BN(
        num_classes=num_classes,
        conv=conv,
        in_channels=in_channels,
        feature_dim=feature_dim,
        head=head,
    )
