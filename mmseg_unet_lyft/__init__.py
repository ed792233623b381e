"""A U-Net for driving scenes, and the Lyft-Udacity (CARLA) data, as an MMSegmentation plugin."""

import sys

__version__ = '0.1.0'

# `custom_imports=['mmseg_unet_lyft']` must register, but a bare import must not pull in torch.
if 'mmengine' in sys.modules:
    from . import register  # noqa: F401
