# A ResNet-18 encoder in place of the contracting path; logits at a quarter of the size.
_base_ = ['unet_lyft_bn.py']

model = dict(
    pretrained=None,  # 'open-mmlab://resnet18_v1c' downloads ImageNet weights
    backbone=dict(
        _delete_=True,
        type='ResNetV1c',
        depth=18,
        norm_cfg=dict(type='BN'),  # normalisation after each convolution; None is none
        with_cp=False,
    ),
    decode_head=dict(
        in_channels=[64, 128, 256, 512],
        decoder_channels=(32, 64, 128),  # of the decoder levels, finest (stride 4) first
    ),
)
optim_wrapper = dict(optimizer=dict(lr=3e-3))
