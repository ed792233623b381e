# The Lyft-Udacity (CARLA) frames.
allow_overlap = False  # whether frames may be scored that were trained on: one drive learnt by heart, say
train_dataloader = dict(
    batch_size=4,  # frames a step on each device
    num_workers=2,  # processes that load frames, for each loader on each device; 0 loads in the trainer
    persistent_workers=True,  # False where num_workers is 0
    drop_last=True,
    # The random numbers of a sample follow from the seed and its position in this stream.
    sampler=dict(type='LyftStreamSampler'),
    collate_fn=dict(type='lyft_collate'),
    dataset=dict(
        type='LyftCarlaDataset',
        data_root='{{$LYFT_DATA_ROOT:data/lyft}}',  # the Kaggle folder, or packed frames; also --data-root
        scheme='carla13',  # label scheme: carla13, challenge3, road, ... (docs/data.md)
        split='train',  # a benchmark split (train, val, test), or a list of drives
        # What becomes of a frame in training.
        pipeline=[
            # As RandomResize, RandomCrop and RandomFlip, computed on the window that survives.
            dict(
                type='LyftRandomResizedCrop',
                scale=(800, 600),  # width, height at which frames are trained and tested
                ratio_range=(0.5, 2.0),  # random resizing in training, as a factor of scale
                crop_size=(384, 512),  # height, width
            ),
            dict(type='LyftPhotoMetricDistortion'),
            dict(type='PackLyftInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,  # frames at once on each device in validation and test
    num_workers=2,
    persistent_workers=True,
    # Without rounding up, no frame counts twice when ranks do not divide the set.
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(
        type='LyftCarlaDataset',
        data_root='{{$LYFT_DATA_ROOT:data/lyft}}',
        scheme='carla13',
        split='val',  # as for training: the best checkpoint is chosen on it
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(800, 600), keep_ratio=True),
            # After Resize: the score is taken at the label's own size.
            dict(type='LoadLyftLabel'),
            dict(type='PackSegInputs'),
        ],
        test_mode=True,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(
        type='LyftCarlaDataset',
        data_root='{{$LYFT_DATA_ROOT:data/lyft}}',
        scheme='carla13',
        split='test',  # as for training: what the test command scores
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(800, 600), keep_ratio=True),
            dict(type='LoadLyftLabel'),
            dict(type='PackSegInputs'),
        ],
        test_mode=True,
    ),
)
# Of single frames: mmseg.apis.inference_model and our Segmenter read it here.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(800, 600), keep_ratio=True),
    dict(type='LoadLyftLabel'),
    dict(type='PackSegInputs'),
]
# For mmseg's test.py --tta; our commands take model.test_cfg (short names: test_scales, test_flip).
tta_model = dict(type='LyftTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(800, 600), keep_ratio=True),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadLyftLabel')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
val_evaluator = dict(type='LyftIoUMetric')
test_evaluator = dict(type='LyftIoUMetric')
