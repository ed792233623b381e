# The 2018 challenge's classes: background, road with lane lines, vehicle without the ego hood.
_base_ = ['unet_lyft_bn.py']

scheme = 'challenge3'
num_classes = 3
class_weight = [0.5, 1.0, 3.59]  # labels.median_frequency_weights, published shares

model = dict(decode_head=dict(num_classes=num_classes, loss_decode=dict(class_weight=class_weight)))
train_dataloader = dict(dataset=dict(scheme=scheme))
val_dataloader = dict(dataset=dict(scheme=scheme))
test_dataloader = dict(dataset=dict(scheme=scheme))
