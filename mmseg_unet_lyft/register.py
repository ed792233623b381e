"""Importing this module registers every class of the package in mmseg's registries."""

from .errors import InputError

try:
    from .datasets import augment, loading, lyft_carla, stream
    from .engine import compiling, device, early_stopping, guard_hook, report_hook, saving, train_loop
    from .evaluation import calibration_metric, iou_metric, lyft_score
    from .inference import exported_segmentor
    from .models import losses, preprocessor, segmentor, unet, unet_head
    from .report import output_hook
except ModuleNotFoundError as error:
    if error.name != 'mmcv._ext':
        raise
    raise InputError(
        'mmseg imports compiled operators, and mmcv-lite has none. The commands of mmseg_unet_lyft stand in '
        'for them; code of your own does so before it imports mmseg, and names mmseg_unet_lyft.register in '
        'custom_imports: from mmseg_unet_lyft.compat import stand_in_for_ops; stand_in_for_ops()'
    ) from error

__all__ = [
    'augment',
    'calibration_metric',
    'compiling',
    'device',
    'early_stopping',
    'exported_segmentor',
    'guard_hook',
    'iou_metric',
    'loading',
    'losses',
    'lyft_carla',
    'lyft_score',
    'output_hook',
    'preprocessor',
    'report_hook',
    'saving',
    'segmentor',
    'stream',
    'train_loop',
    'unet',
    'unet_head',
]
