# AdamW with linear warm-up and cosine decay, by step.
train_cfg = dict(
    type='LyftTrainLoop',
    max_iters=20000,  # optimizer steps
    val_interval=1000,  # steps between validations and checkpoints
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='AdamW',
        lr=3e-3,  # without norm, Keras' default for Adam, 1e-3, learns slower (docs/results.md)
        weight_decay=0.01,  # share of each weight, times the learning rate, that a step takes off
        fused=True,  # all weights in one pass over memory
    ),
    accumulative_counts=1,  # batches of a step: their gradients are added up before the weights change
)
# --auto-scale-lr: the learning rate times frames a step / base_batch_size.
auto_scale_lr = dict(
    enable=False,
    base_batch_size=4,  # frames a step, over all processes, that the learning rate is meant for
)
# Both from step 0, multiplied; the decay has no `end` and so takes the loop's max_iters.
param_scheduler = [
    # A warm-up of one step would never end: mmengine reaches the full rate at step end - 1.
    dict(
        type='LinearLR',
        start_factor=0.01,
        end=100,  # steps from 1 % of the learning rate to all of it; for none: start_factor=1.0, end=2
        by_epoch=False,
    ),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False),
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    # Some of the first steps and the last one are logged too.
    logger=dict(type='LyftLoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='LyftCheckpointHook',
        by_epoch=False,
        interval=1000,
        save_best='mIoU',
        max_keep_ckpts=2,  # the one before is there when the newest is found damaged
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='LyftVisualizationHook'),  # for mmseg's test.py --show-dir
)
custom_hooks = [
    dict(
        type='LyftCompileHook',
        wanted='auto',  # torch.compile in training: True, False, or 'auto': on a GPU, from 5,000 steps on
    ),
    dict(
        type='LyftGuardHook',
        on_nonfinite='stop',  # at a NaN or infinite loss or gradient: 'stop', 'skip' the step, or 'rollback'
        stall_seconds=600.0,  # without progress, after which the run ends with code 75; None: never
    ),
    # The average is validated, and saved as the weights; the others go on in `ema_state_dict`.
    dict(
        type='LyftEMAHook',
        momentum=None,  # share of each step in a moving average of the weights, say 0.001; None: off
    ),
    dict(
        type='LyftEarlyStoppingHook',
        monitor='mIoU',
        rule='greater',
        min_delta=0.01,  # percent points; with 0 mmengine would take a tie for an improvement
        patience=None,  # validations without a better mIoU before training stops; None is never
    ),
]
