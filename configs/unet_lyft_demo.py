# The recommended network on drawn scenes at half size: minutes on a CPU (make demo).
_base_ = ['unet_lyft_bn.py']

data_root = '{{$LYFT_DATA_ROOT:data/drawn}}'
image_scale_wh = (400, 300)
scale_range = (0.8, 1.25)
crop_size = (160, 224)
max_iters = 1400
val_interval = 700
# labels.median_frequency_weights of the drawn training frames, whose small things are not as rare.
class_weight = [0.25, 0.49, 1.2, 1.31, 1.62, 1.0, 1.44, 0.34, 0.67, 0.54, 0.32, 1.11, 1.8]

train_pipeline = _base_.train_pipeline
train_pipeline[0].update(scale=image_scale_wh, ratio_range=scale_range, crop_size=crop_size)
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=image_scale_wh)
model = dict(decode_head=dict(loss_decode=dict(class_weight=class_weight)))
train_dataloader = dict(dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline))
train_cfg = dict(max_iters=max_iters, val_interval=val_interval)
default_hooks = dict(checkpoint=dict(interval=val_interval))
