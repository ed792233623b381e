# The one we recommend: an encoder with ImageNet weights.
_base_ = [
    '_base_/models/lyft_lite.py',
    '_base_/datasets/lyft_carla.py',
    '_base_/schedules/adamw.py',
    '_base_/default_runtime.py',
]

optim_wrapper = dict(optimizer=dict(lr=1e-3))
