# The 2018 challenge's classes: background, road with lane lines, vehicle without the ego hood.
_base_ = ['unet_lyft_bn.py']

scheme = 'challenge3'
num_classes = 3
class_weight = [0.5, 1.0, 3.59]  # labels.median_frequency_weights, published shares

model = dict(decode_head=dict(num_classes=num_classes, loss_decode=dict(class_weight=class_weight)))
train_dataloader = dict(dataset=dict(scheme=scheme))
val_dataloader = dict(dataset=dict(scheme=scheme))
test_dataloader = dict(dataset=dict(scheme=scheme))
# Beside the IoU, the challenge's own score; the checkpoint that scores best is kept.
val_evaluator = [dict(type='LyftIoUMetric'), dict(type='LyftScoreMetric', hood='exact')]
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(save_best='challenge/F_avg', rule='greater'))
