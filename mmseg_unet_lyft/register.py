"""Importing this module registers every class of the package in mmseg's registries."""

from .datasets import augment, loading, lyft_carla, stream
from .engine import amp
from .evaluation import iou_metric
from .models import preprocessor, segmentor, unet, unet_head
from .report import output_hook

__all__ = [
    'amp',
    'augment',
    'iou_metric',
    'loading',
    'lyft_carla',
    'output_hook',
    'preprocessor',
    'segmentor',
    'stream',
    'unet',
    'unet_head',
]
