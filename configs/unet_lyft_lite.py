# The one we recommend: an EfficientNet-Lite encoder with ImageNet weights; logits at half size.
_base_ = ['unet_lyft_bn.py']

model = dict(
    pretrained='imagenet',  # weights of the extra [pretrained]; None: start without
    # As its weights were trained: (x - 127) / 128, RGB.
    data_preprocessor=dict(mean=[127.0, 127.0, 127.0], std=[128.0, 128.0, 128.0]),
    backbone=dict(
        _delete_=True,
        type='LyftEfficientNetLite',
        variant='lite0',  # 3.0 M parameters; lite1 and lite2 are larger
        norm_eval=False,  # True: batch norm keeps ImageNet's statistics in training
        with_cp=False,
    ),
    decode_head=dict(
        in_channels=[16, 24, 40, 112, 320],  # lite2: 16, 24, 48, 120, 352
        decoder_channels=(32, 64, 96, 128),  # of the decoder levels, finest (stride 2) first
        num_convs=1,  # in a level; wide levels of one learn faster than narrow ones of two
        bilinear=True,  # upsample so, in place of transposed convolutions
    ),
)
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(
                type='LyftRandomResizedCrop',
                scale=(800, 600),
                ratio_range=(0.5, 2.0),
                crop_size=(384, 512),
            ),
            dict(type='LyftPhotoMetricDistortion'),
            dict(
                type='LyftWeather',
                prob=0.12,  # of each: light, fog, rain, blur, noise, JPEG; for days that no frame shows
            ),
            dict(type='PackLyftInputs'),
        ]
    )
)
