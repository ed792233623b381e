# The recommended network on synthetic scenes at half size: minutes on a CPU (make demo).
_base_ = ['unet_lyft_lite.py']

model = dict(
    decode_head=dict(
        loss_decode=dict(
            # median_frequency_weights of the synthetic training frames, whose small things are not as rare.
            class_weight=[0.25, 0.49, 1.2, 1.31, 1.62, 1.0, 1.44, 0.34, 0.67, 0.54, 0.32, 1.11, 1.8]
        )
    )
)
train_dataloader = dict(
    dataset=dict(
        data_root='{{$LYFT_DATA_ROOT:data/drawn}}',
        pipeline=[
            dict(
                type='LyftRandomResizedCrop',
                scale=(400, 300),
                ratio_range=(0.8, 1.25),
                crop_size=(160, 224),
            ),
            dict(type='LyftPhotoMetricDistortion'),
            dict(type='PackLyftInputs'),
        ],
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root='{{$LYFT_DATA_ROOT:data/drawn}}',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(400, 300), keep_ratio=True),
            dict(type='LoadLyftLabel'),
            dict(type='PackSegInputs'),
        ],
    )
)
test_dataloader = dict(
    dataset=dict(
        data_root='{{$LYFT_DATA_ROOT:data/drawn}}',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(400, 300), keep_ratio=True),
            dict(type='LoadLyftLabel'),
            dict(type='PackSegInputs'),
        ],
    )
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(400, 300), keep_ratio=True),
    dict(type='LoadLyftLabel'),
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(400, 300), keep_ratio=True),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadLyftLabel')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
train_cfg = dict(max_iters=700, val_interval=350)
default_hooks = dict(checkpoint=dict(interval=350))
