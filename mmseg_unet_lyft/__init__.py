"""A U-Net for driving scenes, and the Lyft-Udacity (CARLA) data, as an MMSegmentation plugin."""

import os
import sys

__version__ = '0.2.0'

# The parent process stood in for mmcv's operators; this one imports mmseg too, so it does the same.
if 'MMSEG_UNET_LYFT_OPS_STAND_IN' in os.environ:
    from .compat import stand_in_for_ops

    stand_in_for_ops()
# `custom_imports=['mmseg_unet_lyft']` must register, but a bare import must not pull in torch.
if 'mmengine' in sys.modules:
    from . import register  # noqa: F401
