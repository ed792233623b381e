# A ResNet-18 encoder in place of the tutorial's contracting path.
_base_ = [
    '_base_/models/lyft_resnet18.py',
    '_base_/datasets/lyft_carla.py',
    '_base_/schedules/adamw.py',
    '_base_/default_runtime.py',
]
