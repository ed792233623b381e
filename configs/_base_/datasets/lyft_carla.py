# The Lyft-Udacity (CARLA) frames. Knobs first; everything below derives from them.
data_root = '{{$LYFT_DATA_ROOT:data/lyft}}'  # the Kaggle folder, or packed frames; also --data-root
scheme = 'carla13'  # label scheme: carla13, challenge3 or road
train_drives = 'train'  # a benchmark split (train, val, test), or a list of drives
val_drives = 'val'  # the same, of validation: the best checkpoint is chosen on it
test_drives = 'test'  # the same, of the test command
allow_overlap = False  # whether frames may be scored that were trained on: one drive learnt by heart, say
image_scale_wh = (800, 600)  # width, height at which frames are trained and tested
scale_range = (0.5, 2.0)  # random resizing in training, as a factor of image_scale_wh
crop_size = (384, 512)  # height, width
colour_on_device = False  # colours change where the network runs, and not in the workers
batch_size = 4  # frames a step on each device
val_batch_size = 1  # frames at once on each device in validation and test
num_workers = 2  # processes that load frames, for each loader on each device; 0 loads in the trainer

train_pipeline = [
    # As RandomResize, RandomCrop and RandomFlip, computed on the window that survives.
    dict(type='LyftCropFirst', scale=image_scale_wh, ratio_range=scale_range, crop_size=crop_size),
    dict(type='LyftColour', on_device=colour_on_device),
    dict(type='PackLyftInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale_wh, keep_ratio=True),
    # After Resize: the score is taken at the label's own size.
    dict(type='LoadLyftLabel'),
    dict(type='PackSegInputs'),
]
dataset = dict(type='LyftCarlaDataset', data_root=data_root, scheme=scheme)
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    drop_last=True,
    # The random numbers of a sample follow from the seed and its position in this stream.
    sampler=dict(type='LyftStreamSampler'),
    collate_fn=dict(type='lyft_collate'),
    dataset=dict(split=train_drives, pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(
    batch_size=val_batch_size,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    # Without rounding up, no frame counts twice when ranks do not divide the set.
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(split=val_drives, pipeline=test_pipeline, test_mode=True, **dataset),
)
test_dataloader = dict(
    batch_size=val_batch_size,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(split=test_drives, pipeline=test_pipeline, test_mode=True, **dataset),
)
val_evaluator = dict(type='LyftIoUMetric')
test_evaluator = val_evaluator
