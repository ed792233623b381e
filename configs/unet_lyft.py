# The reference: the tutorial's U-Net as it stands, 13 classes, 600x800.
_base_ = [
    '_base_/models/lyft_unet.py',
    '_base_/datasets/lyft_carla.py',
    '_base_/schedules/adam.py',
    '_base_/default_runtime.py',
]
