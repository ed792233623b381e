# What every run shares.
# `.register`, not the bare package: it registers in whatever order things are imported.
custom_imports = dict(imports=['mmseg_unet_lyft.register'], allow_failed_imports=False)
default_scope = 'mmseg'
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
visualizer = dict(
    type='SegLocalVisualizer',
    name='visualizer',  # mmseg's own tools need one
    vis_backends=[dict(type='LocalVisBackend')],  # where scalars go besides the log: TensorBoard, MLflow, ...
)
# mmengine smooths whatever has "loss" in its name; a validation loss is of this validation alone.
log_processor = dict(by_epoch=False, mean_pattern=r'^(?!.*val_loss).*(loss|time|data_time|grad_norm).*')
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=None, deterministic=False, diff_rank_seed=False)
