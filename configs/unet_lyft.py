# The reference: the tutorial's network as it stands, 13 classes, 600x800; the training recipe is ours.
_base_ = [
    '_base_/models/lyft_unet.py',
    '_base_/datasets/lyft_carla.py',
    '_base_/schedules/adamw.py',
    '_base_/default_runtime.py',
]
