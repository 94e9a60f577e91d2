"""Networks trained on ImageNet, for perceptual losses and distances."""

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EPS = 1e-6

InputRange = Literal["signed", "unit"]


class Fire(nn.Module):
    """Squeeze to a few channels, then expand by parallel 1x1 and 3x3 convolutions. x (N, in, H, W) -> (N, 2 * expand, H, W)."""

    def __init__(self, n_in: int, squeeze: int, expand: int):
        super().__init__()
        self.squeeze = nn.Conv2d(n_in, squeeze, 1)
        self.expand1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.expand1(x), self.expand3(x)], 1))


class SqueezeNet(nn.Module):
    """The convolutions of SqueezeNet 1.1 (Iandola et al., 2016) up to fire9, for weights in Caffe's convention."""

    mean: Tensor

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        widths = (64, 128, 128, 256, 256, 384, 384, 512)
        self.fires = nn.ModuleList(  # fire2 ... fire9
            Fire(n_in, 16 * (1 + i // 2), 64 * (1 + i // 2)) for i, n_in in enumerate(widths)
        )
        self.register_buffer("mean", torch.tensor([104.006, 116.669, 122.679], device="cpu")[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (N, 3, H, W), RGB in [-1, 1] -> the outputs after ReLU of conv1, fire3, fire5, fire7 and fire9."""
        x = (image.flip(1) + 1) * 127.5 - self.mean  # BGR in 0..255, less the mean
        x = F.relu(self.conv1(x))
        features = [x]
        for i, fire in enumerate(self.fires, start=2):
            if i in (2, 4, 6):
                x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
            x = fire(x)
            if i % 2:
                features.append(x)
        return features


class ImageNetNetwork(nn.Module):
    """A network of torchvision's, which sees images less the mean of ImageNet, divided by its deviation."""

    mean: Tensor
    deviation: Tensor
    features: nn.Sequential

    def __init__(self):
        super().__init__()
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("deviation", (0.229, 0.224, 0.225))):  # of RGB in [0, 1]
            # On the CPU even for a network on the meta device: no file holds them.
            self.register_buffer(name, torch.tensor(values, device="cpu")[:, None, None], persistent=False)

    def normalised(self, image: Tensor) -> Tensor:
        """image (N, 3, H, W), RGB in [0, 1] -> what the first layer sees."""
        return (image - self.mean) / self.deviation


class VGG16(ImageNetNetwork):
    """The convolutions of VGG16 (Simonyan and Zisserman, 2014) up to conv4_3, torchvision's `vgg16().features[:22]` and its names.

    `input_range` is the range of images when they are normalised by ImageNet's mean and deviation for [0, 1]. "signed": [-1, 1], as in
    all of GLEAN's official configurations but one (mmagic's `norm_img=False`): a slip, but the published models were trained with it.
    "unit": (x + 1) / 2, for which VGG16 itself was trained, as in the blind 128 -> 1024 configuration.
    """

    def __init__(self, input_range: InputRange = "signed"):
        super().__init__()
        self.input_range = input_range
        self.features = _vgg((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))

    def forward(self, image: Tensor) -> Tensor:
        """image (N, 3, H, W), RGB in [-1, 1] -> the output of conv4_3 before its ReLU (N, 512, H / 8, W / 8)."""
        if self.input_range == "unit":
            image = (image + 1) / 2
        return self.features(self.normalised(image))


class VGG19(ImageNetNetwork):
    """The convolutions of VGG19 (Simonyan and Zisserman, 2014) up to conv5_4, torchvision's `vgg19().features[:35]` and its names."""

    def __init__(self):
        super().__init__()
        self.features = _vgg((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)

    def forward(self, image: Tensor) -> Tensor:
        """image (N, 3, H, W), RGB in [-1, 1] -> the output of conv5_4 before its ReLU (N, 512, H / 16, W / 16)."""
        return self.features(self.normalised((image + 1) / 2))


class VGG16Stages(ImageNetNetwork):
    """All convolutions of VGG16 under torchvision's names (`vgg16().features[:29]`), read at the end of each of the five stages."""

    min_size = 16

    def __init__(self):
        super().__init__()
        self.features = _vgg((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (N, 3, H, W), RGB in [-1, 1], sides of 16 and more -> relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3."""
        x = self.normalised((image + 1) / 2)
        stages = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                stages.append(x)
            x = layer(x)
        return [*stages, F.relu(x)]


def _vgg(*stages: tuple[int, ...]) -> nn.Sequential:
    """3x3 convolutions of these channels, each followed by a ReLU but for the last, with max-pooling between the stages."""
    layers: list[nn.Module] = []
    n_in = 3
    for stage in stages:
        for width in stage:
            layers += [nn.Conv2d(n_in, width, 3, padding=1), nn.ReLU(inplace=True)]
            n_in = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[:-2])


class AlexNet(ImageNetNetwork):
    """The convolutions of AlexNet in its later form (Krizhevsky, 2014) under torchvision's names (`alexnet().features[:12]`)."""

    min_size = 31

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (N, 3, H, W), RGB in [-1, 1], sides of 31 and more -> the outputs of the five convolutions after their ReLU."""
        x = self.normalised((image + 1) / 2)
        activations = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                activations.append(x)
        return activations


class InvertedResidual(nn.Module):
    """A block of MobileNetV2: widen by 1x1, 3x3 within each channel, narrow by 1x1 without activation.

    x (N, in, H, W) -> (N, out, H / stride, W / stride); the input is added where the shape allows.
    """

    def __init__(self, n_in: int, n_out: int, stride: int, expansion: int):
        super().__init__()
        self.residual = stride == 1 and n_in == n_out
        hidden = n_in * expansion
        self.conv = nn.Sequential(
            *([_conv_bn_relu6(n_in, hidden, 1)] if expansion > 1 else []),
            _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, n_out, 1, bias=False),
            nn.BatchNorm2d(n_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(ImageNetNetwork):
    """The convolutions of MobileNetV2 (Sandler et al., 2018) under torchvision's names: a metric network that no model was trained with."""

    def __init__(self):
        super().__init__()
        stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
        layers: list[nn.Module] = [_conv_bn_relu6(3, 32, 3, stride=2)]
        n_in = 32
        for expansion, width, blocks, stride in stages:
            for block in range(blocks):
                layers.append(InvertedResidual(n_in, width, stride if block == 0 else 1, expansion))
                n_in = width
        self.features = nn.Sequential(*layers, _conv_bn_relu6(n_in, 1280, 1))

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """image (N, 3, H, W), RGB in [-1, 1] -> the outputs of blocks 1, 3, 6, 13 and 17, and the last features averaged over positions
        (N, 1280)."""
        x = self.normalised((image + 1) / 2)
        features = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in (1, 3, 6, 13, 17):
                features.append(x)
        return features, x.mean((2, 3))


class EfficientNetBlock(nn.Module):
    """A block of EfficientNet-Lite: widen by 1x1, k x k within each channel, narrow by 1x1 without activation.

    Batch normalisation is folded into the convolutions.

    x (N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride)); the input is added where the shape allows.
    """

    def __init__(self, n_in: int, n_out: int, stride: int, expansion: int, kernel: int):
        super().__init__()
        self.residual = stride == 1 and n_in == n_out
        hidden = n_in * expansion
        self.expand = nn.Conv2d(n_in, hidden, 1) if expansion > 1 else nn.Identity()
        self.depthwise = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2 if stride == 1 else 0, groups=hidden)
        self.project = nn.Conv2d(hidden, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.expand(x)) if isinstance(self.expand, nn.Conv2d) else x
        y = self.project(F.relu6(self.depthwise(pad_same(y, self.depthwise))))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 up to its last block: EfficientNet (Tan and Le, 2019) without squeeze-and-excitation and with ReLU6, as TensorFlow
    publishes it."""

    def __init__(self):
        super().__init__()
        stages = (
            (1, 16, 1, 1, 3),
            (6, 24, 2, 2, 3),
            (6, 40, 2, 2, 5),
            (6, 80, 3, 2, 3),
            (6, 112, 3, 1, 5),
            (6, 192, 4, 2, 5),
            (6, 320, 1, 1, 3),
        )
        self.stem = nn.Conv2d(3, 32, 3, stride=2)
        self.blocks = nn.ModuleList()
        n_in = 32
        for expansion, width, blocks, stride, kernel in stages:
            for block in range(blocks):
                self.blocks.append(EfficientNetBlock(n_in, width, stride if block == 0 else 1, expansion, kernel))
                n_in = width

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (N, 3, H, W), RGB in [-1, 1] -> the outputs of blocks 1, 3, 5, 11 and 16, of 1/2 to 1/32 of the image's sides."""
        pixels = (image + 1) * 127.5
        x = F.relu6(self.stem(pad_same((pixels - 127) / 128, self.stem)))
        features = []
        for i, block in enumerate(self.blocks, start=1):
            x = block(x)
            if i in (1, 3, 5, 11, 16):
                features.append(x)
        return features


def pad_same(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Zeros around x (N, C, H, W) for an output of ceil(side / stride), as TensorFlow's "same" places them: an odd one below and right.

    A convolution of stride 1 pads by itself, without a copy.
    """
    if conv.stride[0] == 1:
        return x
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    height, width = (kernel - stride + -side % stride for side in x.shape[-2:])
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


PerceptualNetwork = SqueezeNet | EfficientNetLite0 | VGG16 | VGG19
"""Networks of equation (2)."""


def _conv_bn_relu6(n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(n_out), nn.ReLU6(inplace=True)
    )


def feature_distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Distance (N) between two lists of features (N, C, H, W): each normalised to unit length over channels, squared difference summed over
    channels, averaged over positions, summed over layers. It can be differentiated once."""
    distances = [_UnitDistance.apply(x, y) for x, y in zip(a, b, strict=True)]
    return torch.stack(cast("list[Tensor]", distances)).sum(0)


class _UnitDistance(torch.autograd.Function):
    """|x|^2 + |y|^2 - 2 x.y of unit vectors over channels, x and y (N, C, H, W), averaged over positions: (N), float32.

    Takes a third of the work of normalising first. Its gradient is a x + b y with one a and b per position; autograd takes four times as
    long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        xx, yy, xy = (torch.sum(u * v, 1, dtype=torch.float32) for u, v in ((x, x), (y, y), (x, y)))
        # A position without activation is the zero vector, at distance 1 from any unit vector; EPS keeps its gradient finite.
        cosine = xy * torch.rsqrt((xx + EPS) * (yy + EPS))
        ctx.save_for_backward(x, y, xx, yy, xy)
        return (xx / (xx + EPS) + yy / (yy + EPS) - 2 * cosine).mean((1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y, xx, yy, xy = ctx.saved_tensors
        share = gradient[:, None, None] * 2 / (x.shape[2] * x.shape[3])
        inverse = torch.rsqrt((xx + EPS) * (yy + EPS))

        def gradient_of(u: Tensor, v: Tensor, square: Tensor) -> Tensor:
            factor = share * (EPS / (square + EPS) ** 2 + xy * inverse / (square + EPS))
            return (factor[:, None].to(u.dtype) * u).addcmul_(-(share * inverse)[:, None].to(u.dtype), v)

        return (gradient_of(x, y, xx) if ctx.needs_input_grad[0] else None, gradient_of(y, x, yy) if ctx.needs_input_grad[1] else None)
