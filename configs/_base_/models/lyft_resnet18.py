# A ResNet-18 encoder under the U-Net's expansive path. Knobs first; everything below derives from them.
_base_ = ['applying.py']

pretrained = None  # 'open-mmlab://resnet18_v1c' downloads ImageNet weights
decoder_channels = (32, 64, 128)  # of the decoder levels, finest (stride 4) first
decoder_dropout = 0.0  # ratio behind each concatenation
num_classes = 13  # as many as the label scheme has
# One loss weight a class: labels.median_frequency_weights of the published shares of the training split.
class_weight = [0.18, 0.35, 1.06, 1.0, 5.0, 1.48, 1.18, 0.23, 0.36, 0.29, 0.25, 1.24, 3.87]
channels_last = True  # NHWC memory format

norm_cfg = dict(type='BN')  # normalisation behind each convolution; None is none
model = dict(
    type='LyftSegmentor',
    channels_last=channels_last,
    pretrained=pretrained,
    data_preprocessor=dict(
        type='LyftDataPreProcessor',
        # The ImageNet statistics its weights were trained with.
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        seg_pad_val=255,
        size_divisor=1,
    ),
    backbone=dict(type='ResNetV1c', depth=18, norm_cfg=norm_cfg),
    decode_head=dict(
        type='LyftUNetHead',
        in_channels=[64, 128, 256, 512],
        decoder_channels=decoder_channels,
        num_classes=num_classes,
        dropout=decoder_dropout,
        norm_cfg=norm_cfg,
        loss_decode=dict(type='LyftCrossEntropyLoss', class_weight=class_weight),
    ),
    train_cfg=dict(),
)
