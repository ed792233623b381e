# The tutorial U-Net. Knobs first; everything below derives from them.
_base_ = ['applying.py']

base_channels = 16  # channels of the finest level; 2.16 M parameters at 16, 8.63 M at 32
encoder_dropout = None  # ratio behind each pool; None is the reference: 0.25, then 0.5
decoder_dropout = 0.5  # ratio behind each concatenation
num_classes = 13  # as many as the label scheme has
# One loss weight a class: labels.median_frequency_weights of the published shares of the training split.
class_weight = [0.18, 0.35, 1.06, 1.0, 5.0, 1.48, 1.18, 0.23, 0.36, 0.29, 0.25, 1.24, 3.87]
with_cp = False  # recompute activations in the backward pass: less memory, about 30 % more time
channels_last = True  # NHWC memory format: 1.2 times faster in training on the CPU measured

model = dict(
    type='LyftSegmentor',
    channels_last=channels_last,
    data_preprocessor=dict(
        type='LyftDataPreProcessor',
        # RGB, ImageNet statistics: centred inputs of unit spread help a network without norm to start.
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        seg_pad_val=255,
        size_divisor=1,  # stacks crops as they are; the network takes any size
    ),
    backbone=dict(type='LyftUNet', base_channels=base_channels, dropout=encoder_dropout, with_cp=with_cp),
    decode_head=dict(
        type='LyftUNetHead',
        in_channels=[base_channels * 2**stage for stage in range(5)],
        num_classes=num_classes,
        dropout=decoder_dropout,
        with_cp=with_cp,
        loss_decode=dict(type='LyftCrossEntropyLoss', class_weight=class_weight),
    ),
    train_cfg=dict(),
)
