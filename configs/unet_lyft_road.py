# Road or not, by one sigmoid output, as in the tutorial.
_base_ = ['unet_lyft_bn.py']

model = dict(
    decode_head=dict(
        num_classes=2,
        out_channels=1,
        threshold=0.5,  # probability from which a pixel is road
        loss_decode=dict(
            use_sigmoid=True,
            class_weight=None,  # weight of road pixels, [x], or None
        ),
    )
)
train_dataloader = dict(dataset=dict(scheme='road'))
val_dataloader = dict(dataset=dict(scheme='road'))
test_dataloader = dict(dataset=dict(scheme='road'))
