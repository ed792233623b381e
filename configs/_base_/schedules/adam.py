# AdamW with linear warm-up and cosine decay, by step. Knobs first; everything below derives from them.
max_iters = 20000  # optimizer steps
val_interval = 1000  # steps between validations and checkpoints
learning_rate = 3e-3  # of AdamW; without norm, Keras' default for Adam, 1e-3, learns slower (docs/results.md)
base_batch_size = 4  # frames a step, over all processes, that learning_rate is meant for
weight_decay = 0.01  # of AdamW: share of each weight, times the learning rate, that a step takes off
warmup_iters = 100  # steps from 1 % of the learning rate to all of it; 0 is none
accumulate = 1  # steps whose gradients are added up before the weights change
ema_momentum = None  # share of each step in a moving average of the weights, say 0.001; None is no average
compiled = 'auto'  # torch.compile in training: True, False, or 'auto': on a GPU, from 5,000 steps on
on_nonfinite = 'stop'  # a loss or gradient that is no number: 'stop', 'skip' the step, or 'roll back'
early_stop_patience = None  # validations without a better mIoU before training stops; None is never

train_cfg = dict(type='LyftTrainLoop', max_iters=max_iters, val_interval=val_interval)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    # fused: all weights in one pass over memory.
    optimizer=dict(type='AdamW', lr=learning_rate, weight_decay=weight_decay, fused=True),
    accumulative_counts=accumulate,
)
# --auto-scale-lr: learning_rate times frames a step / base_batch_size.
auto_scale_lr = dict(enable=False, base_batch_size=base_batch_size)
# Both from step 0, multiplied; the decay has no `end` and so takes the loop's max_iters.
param_scheduler = [
    # A warm-up of one step would never end: mmengine reaches the full rate at step end - 1.
    dict(
        type='LinearLR',
        start_factor=0.01 if warmup_iters > 1 else 1.0,
        end=max(warmup_iters, 2),
        by_epoch=False,
    ),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False),
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        # Two: the one before is there when the newest is found damaged.
        type='LyftCheckpointHook',
        by_epoch=False,
        interval=val_interval,
        save_best='mIoU',
        max_keep_ckpts=2,
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [
    dict(type='LyftCompileHook', wanted=compiled),
    dict(type='LyftGuardHook', on_nonfinite=on_nonfinite),
]
if ema_momentum is not None:
    # Validated, and saved as the weights; the others go on in `ema_state_dict`.
    custom_hooks.append(dict(type='EMAHook', momentum=ema_momentum))
if early_stop_patience is not None:
    # Percent points of mIoU; with 0 mmengine would take a tie for an improvement.
    custom_hooks.append(
        dict(
            type='LyftEarlyStoppingHook',
            monitor='mIoU',
            rule='greater',
            min_delta=0.01,
            patience=early_stop_patience,
        )
    )
