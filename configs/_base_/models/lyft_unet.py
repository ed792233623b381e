# The tutorial U-Net.
model = dict(
    type='LyftSegmentor',
    channels_last=True,  # NHWC memory format: 1.2 times faster in training on the CPU measured
    data_preprocessor=dict(
        type='LyftDataPreProcessor',
        # RGB, ImageNet statistics: centred inputs of unit spread help a network without norm to start.
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        seg_pad_val=255,
        size_divisor=1,  # stacks crops as they are; the network takes any size
    ),
    backbone=dict(
        type='LyftUNet',
        base_channels=16,  # channels of the finest level; 2.16 M parameters at 16, 8.63 M at 32
        dropout=None,  # ratio after each pool; None is the reference: 0.25, then 0.5
        with_cp=False,  # recompute activations in the backward pass: less memory, about 30 % more time
    ),
    decode_head=dict(
        type='LyftUNetHead',
        in_channels=[16, 32, 64, 128, 256],  # the backbone's base_channels, doubled from level to level
        num_classes=13,  # as many as the label scheme has
        dropout=0.5,  # ratio after each concatenation
        with_cp=False,
        loss_decode=dict(
            type='LyftCrossEntropyLoss',
            # One loss weight a class: median_frequency_weights of the published shares, without the hood.
            class_weight=[0.18, 0.35, 1.06, 1.0, 5.0, 1.48, 1.18, 0.23, 0.36, 0.29, 0.81, 1.24, 3.87],
        ),
    ),
    train_cfg=dict(),
    # How the trained network answers a frame, in validation, test and use.
    test_cfg=dict(
        mode='whole',  # or 'slide': by windows
        crop_size=None,  # height, width of a sliding window, for frames larger than in training
        stride=None,  # pixels between windows, down and across; None: half the window
        scales=(1.0,),  # test-time augmentation: mean probability over these factors on the frame's size
        flip=False,  # and over each mirrored left to right
        thresholds=None,  # one a class, > 0: the label is the class of the largest p / threshold
    ),
)
