"""What copying the nearest training frame's label scores, against known drives."""

import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.datasets.checks import inspect
from mmseg_unet_lyft.evaluation import leak


def add_frame(kaggle, stem: str, level: int, tag: int, folder: str = 'dataA/dataA') -> None:
    image, _ = kaggle.add(stem, folder, tags=tag)
    Image.fromarray(np.full((24, 32, 3), level, np.uint8)).save(image)


def test_the_nearest_is_by_l2_and_the_first_of_equals():
    queries = np.array([[0, 0], [250, 250]], np.uint8)
    candidates = np.array([[3, 4], [255, 250], [250, 255], [4, 3]], np.uint8)
    indices, distances = leak.nearest(queries, candidates)
    assert indices.tolist() == [0, 1]
    assert distances.tolist() == [5, 5]


def test_copying_scores_a_leaking_split_high_and_the_split_by_drive_low(kaggle):
    # Each drive has its own colour and its own class; within a drive frames hardly differ.
    for number, (drive, tag) in enumerate((('F1', 7), ('F10', 8), ('F3', 9), ('F2', 1))):
        for frame in range(10):
            add_frame(kaggle, f'{drive}-{frame}', 60 * number + frame, tag, f'data{"ABCDE"[frame // 2]}')
    inspection = inspect(kaggle.root, workers=1)
    assert inspection.problems == []
    leaks = leak.measure_leaks(inspection.valid, '0.8')
    ours = [one for one in leaks if one.split == 'ours (benchmark, by drive)']
    counts = [(one.part, len(one.frames), one.train_frames) for one in ours]
    assert counts == [('val', 10, 20), ('test', 10, 20)]
    assert [(one.miou, one.agreement, one.same_drive) for one in ours] == [(0, 0, 0), (0, 0, 0)]
    rest = [one for one in leaks if one.split in ('random', 'by folder')]
    assert [(one.miou, one.agreement, one.same_drive) for one in rest] == 4 * [(100, 100, 100)]
    # F3's colour is 120 to 129; F10's, 60 to 69, is nearest: its last frame.
    assert ours[0].frames[0].nearest == 'F10-9'
    assert ours[0].frames[0].distance == pytest.approx(51 * (40 * 30 * 3) ** 0.5)


def test_labels_are_never_consulted_for_the_nearest(kaggle):
    # The label that agrees belongs to the image that is far away.
    for stem, level, tag in (('F1-0', 10, 7), ('F1-1', 200, 8), ('F3-0', 190, 7)):
        add_frame(kaggle, stem, level, tag)
    found = leak.measure_leaks(inspect(kaggle.root, workers=1).valid, '0.8')[0]
    assert (found.frames[0].nearest, found.frames[0].agreement) == ('F1-1', 0)
