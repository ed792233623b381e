# An EfficientNet-Lite encoder with ImageNet weights under the U-Net's expansive path; logits at half size.
model = dict(
    type='LyftSegmentor',
    channels_last=True,  # NHWC memory format
    pretrained='imagenet',  # weights of the extra [pretrained]; None: start without
    data_preprocessor=dict(
        type='LyftDataPreProcessor',
        # As its weights were trained: (x - 127) / 128, RGB.
        mean=[127.0, 127.0, 127.0],
        std=[128.0, 128.0, 128.0],
        bgr_to_rgb=True,
        seg_pad_val=255,
        size_divisor=1,
    ),
    backbone=dict(
        type='LyftEfficientNetLite',
        variant='lite0',  # 3.4 M parameters; lite1 and lite2 are larger
        norm_eval=False,  # True: batch norm keeps ImageNet's statistics in training
        with_cp=False,
    ),
    decode_head=dict(
        type='LyftUNetHead',
        in_channels=[16, 24, 40, 112, 320],  # lite2: 16, 24, 48, 120, 352
        decoder_channels=(24, 32, 48, 96),  # of the decoder levels, finest (stride 2) first
        num_classes=13,  # as many as the label scheme has
        dropout=0.0,  # ratio after each concatenation
        norm_cfg=dict(type='BN'),
        with_cp=False,
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
