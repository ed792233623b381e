# The 2018 challenge's classes: background, road with lane lines, vehicle without the ego hood.
_base_ = ['unet_lyft_lite.py']

model = dict(
    decode_head=dict(
        num_classes=3,
        loss_decode=dict(class_weight=[0.5, 1.0, 3.59]),  # median_frequency_weights of the published shares
    )
)
train_dataloader = dict(dataset=dict(scheme='challenge3'))
val_dataloader = dict(dataset=dict(scheme='challenge3'))
test_dataloader = dict(dataset=dict(scheme='challenge3'))
# Next to the IoU, the challenge's own score; the checkpoint that scores best is kept.
val_evaluator = [dict(type='LyftIoUMetric'), dict(type='LyftScoreMetric', hood='exact')]
test_evaluator = [dict(type='LyftIoUMetric'), dict(type='LyftScoreMetric', hood='exact')]
default_hooks = dict(checkpoint=dict(save_best='challenge/F_avg', rule='greater'))
