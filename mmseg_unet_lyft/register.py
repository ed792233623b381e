"""Importing this module puts every class that a config can name into mmseg's registries."""

from .errors import InputError

try:
    from .datasets import lyft_carla, sampler, transforms  # noqa: F401
    from .engine import checkpoint_hook, device, train_loop  # noqa: F401
    from .evaluation import lyft_metrics  # noqa: F401
    from .models import efficientnet_lite, losses, preprocessor, segmentor, unet, unet_head  # noqa: F401
    from .report import report_hook  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != 'mmcv._ext':
        raise
    raise InputError(
        'mmseg imports compiled operators, and mmcv-lite has none. The commands of mmseg_unet_lyft stand in '
        'for them; code of your own does so before it imports mmseg, and names mmseg_unet_lyft.register in '
        'custom_imports: from mmseg_unet_lyft.compat import stand_in_for_ops; stand_in_for_ops()'
    ) from error
