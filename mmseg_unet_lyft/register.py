"""Importing this module registers every class of the package in mmseg's registries."""

from .datasets import augment, loading, lyft_carla, stream
from .engine import device
from .evaluation import iou_metric
from .models import losses, preprocessor, segmentor, unet, unet_head
from .report import output_hook

__all__ = [
    'augment',
    'device',
    'iou_metric',
    'loading',
    'losses',
    'lyft_carla',
    'output_hook',
    'preprocessor',
    'segmentor',
    'stream',
    'unet',
    'unet_head',
]
