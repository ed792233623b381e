# How a trained network answers a frame, in validation, test and use. Knobs first; the rest derives from them.
test_scales = (1.0,)  # test-time augmentation: mean probability over these factors on the frame's size
test_flip = False  # and over each mirrored left to right
window_size = None  # height, width of a sliding window, for frames larger than in training; None: whole
window_stride = None  # pixels between windows, down and across; None: half the window
window = 'gaussian'  # the middle of each weighs most; 'uniform': all of it alike, as in mmseg
class_thresholds = None  # one a class, > 0: the label is the class of the largest p / threshold

model = dict(
    test_cfg=dict(
        mode='whole' if window_size is None else 'slide',
        crop_size=window_size,
        stride=window_stride,
        window=window,
        scales=test_scales,
        flip=test_flip,
        thresholds=class_thresholds,
    )
)
