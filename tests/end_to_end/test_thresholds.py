"""The command that tunes thresholds: no fixed ones score better, and test drives are never tuned on."""

import json
import shutil

import cv2
import numpy as np
import pytest

from mmseg_unet_lyft.cli import tune_thresholds
from mmseg_unet_lyft.datasets.carla import CARLA_CLASSES
from mmseg_unet_lyft.datasets.dataset_stats import STATS_NAME, Stats, write_stats
from mmseg_unet_lyft.datasets.image_io import read_label
from mmseg_unet_lyft.engine.checkpoint import best_checkpoint
from mmseg_unet_lyft.engine.config import load_config, parse_options
from mmseg_unet_lyft.evaluation.challenge import challenge_masks, count_pixels, hood_region, score_dict
from mmseg_unet_lyft.evaluation.thresholds import (
    Thresholds,
    Tuner,
    mask_probabilities,
    threshold_masks,
)
from mmseg_unet_lyft.inference.segmenter import Segmenter

from .conftest import TINY


def unseen(items, total, what):
    return items


def tune(trained, drawn_root, out, *options):
    checkpoint = str(best_checkpoint(str(trained)))
    places = ['--data-root', str(drawn_root), '--out', str(out), '--device', 'cpu']
    return tune_thresholds.main(['unet_lyft_bn.py', checkpoint, *places, '--cfg-options', *TINY, *options])


def tuner_of(trained, root):
    config = load_config('unet_lyft_bn.py', parse_options([*TINY, f'data_root={root}']))
    return Tuner(Segmenter(best_checkpoint(str(trained))), config, 'exact')


def test_tuned_masks_score_no_worse_than_any_fixed_threshold(trained, drawn_root, tmp_path, capsys):
    out = tmp_path / 't.json'
    assert tune(trained, drawn_root, out) == 0
    printed = capsys.readouterr().out
    fields = json.loads(out.read_text())
    assert fields['tuned_on'] == ['07_00', 'F3', 'F63']
    assert printed.endswith(f'wrote {out}\n')
    plain = Segmenter(best_checkpoint(str(trained)))
    tuned = Segmenter(best_checkpoint(str(trained)), thresholds=out)
    frames = [path for drive in ('07_00', 'F3-', 'F63-') for path in drawn_root.rglob(f'CameraRGB/{drive}*')]
    assert len(frames) == 6

    def score(masks_of):
        counts = 0
        for path in frames:
            tags = cv2.imread(str(path).replace('CameraRGB', 'CameraSeg'))[..., 2]
            counts += count_pixels(masks_of(cv2.imread(str(path))), challenge_masks(tags, CARLA_CLASSES))
        return [one['f'] or 0 for one in score_dict(counts, 'exact')['masks'].values()]

    def fixed(threshold):
        region = hood_region('exact', 96, 128)
        return lambda frame: threshold_masks(
            mask_probabilities(plain.probabilities(frame, colours='BGR'), CARLA_CLASSES),
            Thresholds((threshold,) * 2),
            region,
        )

    best = score(lambda frame: tuned.masks(frame, colours='BGR'))
    assert fields['F_avg']['masks_after'] == pytest.approx(sum(best) / 2)
    for threshold in (0.1, 0.2, 0.3, 0.5):
        assert all(one >= other for one, other in zip(best, score(fixed(threshold)), strict=True))
    labels = score(lambda frame: challenge_masks(tuned(frame, colours='BGR'), CARLA_CLASSES))
    # Of four training steps there may be nothing to score.
    assert (fields['F_avg']['label_maps_after'] or 0) == pytest.approx(sum(labels) / 2)


def test_the_hood_is_the_data_roots_own_throughout(trained, drawn_root, tmp_path):
    # The model was trained with the published hood.
    root, measured = tmp_path / 'prepared', np.zeros((96, 128), bool)
    measured[48:, :64] = True
    shutil.copytree(drawn_root, root)
    write_stats(root / STATS_NAME, Stats('0.8', measured.shape, {}, measured))
    tuner = tuner_of(trained, root)
    counts = 0
    for pair, (_, truth, region) in zip(tuner.pairs, tuner.frames(unseen, ''), strict=True):
        tags = cv2.imread(str(pair['seg_map_path']))[..., 2]
        expected = np.stack([(tags == 10) & ~measured, np.isin(tags, (6, 7))])
        np.testing.assert_array_equal(region, measured)
        np.testing.assert_array_equal(truth, expected)
        label = tuner.segmenter(cv2.imread(str(pair['img_path'])), colours='BGR')
        answer = np.stack([(label == 10) & ~measured, np.isin(label, (6, 7))])
        counts += count_pixels(answer, expected)
    score = score_dict(counts, 'exact')['average']
    assert tuner.tune(unseen)[1]['label_maps_before'] == pytest.approx(score)


def test_test_drives_are_never_tuned_on(trained, drawn_root, tmp_path, capsys):
    assert tune(trained, drawn_root, tmp_path / 't.json', 'val_drives=[F1,F2]') == 2
    assert 'drives F2 are validated and tested on' in capsys.readouterr().err
    assert not (tmp_path / 't.json').exists()


def test_a_plain_label_map_that_no_thresholds_beat_stays(trained, drawn_root):
    tuner = tuner_of(trained, drawn_root)
    truths = {pair['img_path']: read_label(pair['seg_map_path'], 'carla13') for pair in tuner.pairs}
    order = iter([truths[pair['img_path']] for pair in tuner.pairs] * 2)

    def sure(frame, *, colours):
        # A network that is never wrong.
        return np.eye(13, dtype=np.float32)[next(order)].transpose(2, 0, 1)

    tuner.segmenter.probabilities = sure
    thresholds, found = tuner.tune(unseen)
    assert thresholds.labels is None
    assert found == dict(masks_after=100, label_maps_before=100, label_maps_after=100)
