"""The contracting path: `LyftUNet`, a backbone with five output maps by default.

Shape legend: N batch, C channels, H x W the input's size, c ``base_channels``. Map ``i`` of the output
has ``c * 2**i`` channels and ``H // 2**i`` rows.
"""

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError

# Keras' default (glorot uniform, zero bias). PyTorch's own leaves the lower levels of this network almost
# without gradient: 1e-9 at the bottom, against 8e-6 with this one.
KERAS_INIT = (
    dict(type='Xavier', layer=['Conv2d', 'ConvTranspose2d'], distribution='uniform'),
    dict(type='Constant', layer=['_BatchNorm', 'GroupNorm'], val=1),
)


def unet_level(
    in_channels: int,
    out_channels: int,
    norm_cfg: dict | None = None,
    act_cfg: dict | None = None,
    num_convs: int = 2,
) -> nn.Sequential:
    """3x3 "same" convolutions, each with norm (if any) and activation: (N, C, H, W) -> (N, C', H, W)."""
    act_cfg = act_cfg or dict(type='ReLU')
    # A plain Sequential: a ConvModule directly below a BaseModule would redo its own initialisation.
    return nn.Sequential(
        *(
            ConvModule(channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg)
            for channels in (in_channels, *[out_channels] * (num_convs - 1))
        )
    )


def run_level(level: nn.Module, inputs: Tensor, with_cp: bool) -> Tensor:
    """The level's output; ``with_cp`` computes its activations again in the backward pass."""
    if with_cp and inputs.requires_grad:
        return checkpoint(level, inputs, use_reentrant=False)
    return level(inputs)


@MODELS.register_module()
class LyftUNet(BaseModule):
    """The tutorial U-Net's contracting path and middle level.

    A level is two 3x3 "same" convolutions with ReLU; between levels a 2x2 max-pool, then dropout. The
    middle level has neither pool nor dropout.

    Args:
        in_channels: Channels of the input image.
        base_channels: Channels of the finest map (c); each further level has twice as many.
        num_stages: Number of levels, the middle one included.
        dropout: Dropout ratio after each pool, one number or ``num_stages - 1`` of them, finest first.
            ``None`` means the reference's: 0.25, then 0.5.
        norm_cfg: Normalisation after each convolution; the reference has none.
        act_cfg: Activation; ReLU by default.
        with_cp: Trade time for memory by computing activations twice.
        init_cfg: Initialisation; Keras' by default.

    Raises:
        InputError: If the number of dropout ratios does not fit.

    Source: the Keras U-Net tutorial this project started from; ``build_model(input_layer, 16)``.
    """

    def __init__(
        self,
        in_channels: int = 3,
        base_channels: int = 16,
        num_stages: int = 5,
        dropout: float | Sequence[float] | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        with_cp: bool = False,
        init_cfg: dict | Sequence[dict] | None = KERAS_INIT,
    ) -> None:
        super().__init__([dict(cfg) for cfg in init_cfg] if init_cfg is KERAS_INIT else init_cfg)
        if num_stages < 2:
            raise InputError(f'LyftUNet: num_stages={num_stages}; a U has 2 or more')
        pools = num_stages - 1
        if dropout is None:
            dropout = (0.25, *[0.5] * (pools - 1))
        elif isinstance(dropout, (int, float)):
            dropout = [dropout] * pools
        if len(dropout) != pools:
            raise InputError(
                f'LyftUNet: dropout={tuple(dropout)} has {len(dropout)} ratios, but {num_stages} stages have '
                f'{pools} pools; give one number or {pools} of them'
            )
        self.with_cp = with_cp
        self.smallest_side = 2**pools
        channels = [base_channels * 2**stage for stage in range(num_stages)]
        self.levels = nn.ModuleList(
            unet_level(previous, current, norm_cfg, act_cfg)
            for previous, current in zip([in_channels, *channels], channels, strict=False)
        )
        self.pools = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), nn.Dropout(ratio)) for ratio in dropout)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Maps of all levels, float (N, c * 2**i, H // 2**i, W // 2**i), finest first.

        Takes normalised images, float (N, C, H, W). An InputError if they are too small for the pools: below
        16x16 for 5 stages.
        """
        if min(inputs.shape[2:]) < self.smallest_side:
            height, width = inputs.shape[2:]
            raise InputError(
                f'input of {height}x{width} is too small: {len(self.pools)} pools need at least '
                f'{self.smallest_side}x{self.smallest_side}; use larger crops or fewer num_stages'
            )
        maps = []
        for level, pool in zip(self.levels, [nn.Identity(), *self.pools], strict=True):
            maps.append(run_level(level, pool(maps[-1]) if maps else inputs, self.with_cp))
        return tuple(maps)
