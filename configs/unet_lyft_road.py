# Road or not, by one sigmoid output, as in the tutorial.
_base_ = ['unet_lyft_bn.py']

scheme = 'road'
num_classes = 2
threshold = 0.5  # probability from which a pixel is road
class_weight = None  # weight of road pixels, [x], or None

model = dict(
    decode_head=dict(
        num_classes=num_classes,
        out_channels=1,
        threshold=threshold,
        loss_decode=dict(use_sigmoid=True, class_weight=class_weight),
    )
)
train_dataloader = dict(dataset=dict(scheme=scheme))
val_dataloader = dict(dataset=dict(scheme=scheme))
test_dataloader = dict(dataset=dict(scheme=scheme))
