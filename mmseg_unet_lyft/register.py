"""Importing this module registers every class of the package in mmseg's registries."""

from .datasets import loading, lyft_carla
from .engine import device
from .evaluation import iou_metric
from .models import losses, segmentor, unet, unet_head
from .report import output_hook

__all__ = [
    'device',
    'iou_metric',
    'loading',
    'losses',
    'lyft_carla',
    'output_hook',
    'segmentor',
    'unet',
    'unet_head',
]
