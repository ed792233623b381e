# A ResNet-18 encoder under the U-Net's expansive path.
model = dict(
    type='LyftSegmentor',
    channels_last=True,  # NHWC memory format
    pretrained=None,  # 'open-mmlab://resnet18_v1c' downloads ImageNet weights
    data_preprocessor=dict(
        type='LyftDataPreProcessor',
        # The ImageNet statistics its weights were trained with.
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        seg_pad_val=255,
        size_divisor=1,
    ),
    backbone=dict(
        type='ResNetV1c',
        depth=18,
        norm_cfg=dict(type='BN'),  # normalisation after each convolution; None is none
    ),
    decode_head=dict(
        type='LyftUNetHead',
        in_channels=[64, 128, 256, 512],
        decoder_channels=(32, 64, 128),  # of the decoder levels, finest (stride 4) first
        num_classes=13,  # as many as the label scheme has
        dropout=0.0,  # ratio after each concatenation
        norm_cfg=dict(type='BN'),
        loss_decode=dict(
            type='LyftCrossEntropyLoss',
            # One loss weight a class: median_frequency_weights of the published shares of the training split.
            class_weight=[0.18, 0.35, 1.06, 1.0, 5.0, 1.48, 1.18, 0.23, 0.36, 0.29, 0.25, 1.24, 3.87],
        ),
    ),
    train_cfg=dict(),
    # How the trained network answers a frame, in validation, test and use.
    test_cfg=dict(
        mode='whole',  # or 'slide': by windows
        crop_size=None,  # height, width of a sliding window, for frames larger than in training
        stride=None,  # pixels between windows, down and across; None: half the window
        window='gaussian',  # the middle of each window weighs most; 'uniform': all of it alike, as in mmseg
        scales=(1.0,),  # test-time augmentation: mean probability over these factors on the frame's size
        flip=False,  # and over each mirrored left to right
        thresholds=None,  # one a class, > 0: the label is the class of the largest p / threshold
    ),
)
