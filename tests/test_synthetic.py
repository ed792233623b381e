"""Synthetic scenes: deterministic, labelled like CARLA, hard for simple means; what the writer refuses."""

import json
import re
import subprocess
import sys
from functools import lru_cache
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmseg_unet_lyft.cli.draw_scenes import main
from mmseg_unet_lyft.datasets.carla import (
    CARLA_CLASSES,
    SPLITS,
    VEHICLES,
    hood_mask,
    parse_name,
)
from mmseg_unet_lyft.datasets.files import unfinished
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.synthetic.scenes import (
    GENERATOR_VERSION,
    SceneRecipe,
    draw_frame,
    frame_paths,
    read_marker,
    write_scenes,
)

from .conftest import tree

PROJECT = Path(__file__).parents[1]
SIZE = (150, 200)
SMALL = SceneRecipe(drives=('F3', '02_00'), frames_per_drive=3, height=64, width=96)


@lru_cache(maxsize=4)
def drawn(split, frames=(0, 4, 8)):
    """Images (N, H, W, 3) and labels (N, H, W) of a few frames of every drive of a split."""
    pairs = [draw_frame(drive, frame, 0, *SIZE) for drive in SPLITS[split] for frame in frames]
    images, labels = zip(*pairs, strict=True)
    return np.stack(images), np.stack(labels)


def shares(labels):
    return 100 * np.bincount(labels.ravel(), minlength=13) / labels.size


def mean_iou(pred, truth):
    pixels = np.bincount((truth.astype(np.int64) * 13 + pred).ravel(), minlength=169).reshape(13, 13)
    hits = np.diag(pixels)
    return np.mean(hits / (pixels.sum(0) + pixels.sum(1) - hits))


def test_frame_repeats_in_another_process_and_changes_with_seed_drive_and_frame():
    code = (
        'import sys; from mmseg_unet_lyft.synthetic.scenes import draw_frame; '
        "sys.stdout.buffer.write(b''.join(one.tobytes() for one in draw_frame('F61', 7, 3, 90, 120)))"
    )
    image, label = draw_frame('F61', 7, 3, 90, 120)
    for seed in '12':
        environ = {'PYTHONHASHSEED': seed, 'PYTHONPATH': str(PROJECT)}
        done = subprocess.run([sys.executable, '-c', code], env=environ, capture_output=True, check=True)
        assert done.stdout == image.tobytes() + label.tobytes()
    for other in (('F61', 7, 4), ('F63', 7, 3), ('F61', 8, 3)):
        other_image, other_label = draw_frame(*other, 90, 120)
        assert not np.array_equal(image, other_image)
        assert not np.array_equal(label, other_label)


@pytest.mark.parametrize('size', [(64, 64), (75, 133), (64, 256), (300, 400)])
def test_hood_is_exactly_the_hood_mask_and_dark(size):
    image, label = draw_frame('09_00', 3, 0, *size)
    assert image.shape == (*size, 3)
    assert image.dtype == label.dtype == np.uint8
    hood = hood_mask(*size)
    assert np.all(label[hood] == VEHICLES)
    assert image[hood].mean() < 0.5 * image[~hood].mean()


@pytest.mark.parametrize('split', ['val', 'test'])
def test_every_class_is_in_every_held_out_set(split):
    _, labels = drawn(split)
    assert labels.max() == 12
    percent = shares(labels)
    for name, share in zip(CARLA_CLASSES, percent, strict=True):
        assert share > 0.25, f'{name}: {share:.3f} % of {split}'
    # Each of the 13 classes is in at least a third of the frames.
    frames = np.mean([[np.any(label == tag) for tag in range(13)] for label in labels], axis=0)
    assert frames.min() > 1 / 3, dict(zip(CARLA_CLASSES, frames, strict=True))


def test_most_frequent_class_of_a_place_does_not_solve_the_val_drives():
    _, labels = drawn('train')
    _, truth = drawn('val')
    counts = np.stack([(labels == tag).sum(0) for tag in range(13)])
    score = mean_iou(np.broadcast_to(counts.argmax(0), truth.shape), truth)
    assert 0.1 < score <= 0.30


def test_colour_alone_does_not_solve_the_val_drives():
    images, labels = drawn('train')
    val_images, truth = drawn('val')

    def bins(image):
        return (image >> 3).astype(np.int64) @ (1024, 32, 1)

    counts = np.bincount((bins(images) * 13 + labels).ravel(), minlength=32768 * 13).reshape(-1, 13)
    best = np.where(counts.any(1), counts.argmax(1), counts.sum(0).argmax())
    assert 0.1 < mean_iou(best[bins(val_images)], truth) <= 0.40


def test_written_files_have_the_kaggle_layout_and_hold_the_drawn_frame(tmp_path):
    recipe = SceneRecipe(drives=('F61', '02_00'), frames_per_drive=11, height=64, width=80)
    assert write_scenes(tmp_path / 'set', recipe, workers=1) == 22
    names = set(tree(tmp_path / 'set'))
    assert {'dataA/dataA/CameraSeg/F61-10.png', 'dataB/dataB/CameraRGB/02_00_003.png'} < names
    assert len(names) == 2 * 22 + 1
    for name in names - {'DRAWN_SCENES.json'}:
        folder, again, kind, file = name.split('/')
        drive, frame = parse_name(Path(file).stem)
        assert folder == again == f'data{"AABBCCDDEE"[frame % 10]}'
        picture = cv2.cvtColor(
            cv2.imread(str(tmp_path / 'set' / name), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGR2RGB
        )
        image, label = draw_frame(drive, frame, 0, 64, 80)
        if kind == 'CameraRGB':
            assert np.array_equal(picture, image)
        else:
            assert np.array_equal(picture[..., 0], label)
            assert not picture[..., 1:].any()


def test_number_of_workers_changes_no_byte_and_a_second_run_writes_nothing(tmp_path):
    recipe = SceneRecipe(drives=('F3', '02_00'), frames_per_drive=9, height=64, width=64)
    write_scenes(tmp_path / 'one', recipe, workers=1)
    write_scenes(tmp_path / 'two', recipe, workers=2)
    assert tree(tmp_path / 'one') == tree(tmp_path / 'two')
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.png')}
    assert write_scenes(tmp_path / 'one', recipe, workers=1) == 0
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.png')}


def test_an_interrupted_run_is_completed_and_intact_pictures_are_kept(tmp_path):
    write_scenes(tmp_path / 'whole', SMALL, workers=1)

    def stop_early(frames, total, what):
        yield from islice(frames, 5)
        raise KeyboardInterrupt

    root = tmp_path / 'cut'
    with pytest.raises(KeyboardInterrupt):
        write_scenes(root, SMALL, workers=1, show=stop_early)
    assert read_marker(root)['complete'] is False
    unfinished(frame_paths(root, '02_00', 2)[1]).write_bytes(b'half')
    kept = frame_paths(root, 'F3', 0)[0]
    kept_at = kept.stat().st_mtime_ns
    assert write_scenes(root, SMALL, workers=1) == 1
    assert kept.stat().st_mtime_ns == kept_at
    assert tree(root) == tree(tmp_path / 'whole')


@pytest.mark.parametrize('earlier', [False, True])
def test_a_foreign_file_is_named_and_never_deleted(tmp_path, earlier):
    if earlier:
        write_scenes(tmp_path, SMALL, workers=1)
        frame_paths(tmp_path, 'F3', 0)[0].unlink()
    foreign = frame_paths(tmp_path, 'F1', 0)[0]
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.write_bytes(b'a real frame')
    before = tree(tmp_path)
    with pytest.raises(InputError, match=re.escape(str(foreign.relative_to(tmp_path)))):
        write_scenes(tmp_path, SMALL)
    assert tree(tmp_path) == before


def test_scenes_of_another_recipe_are_refused_and_stay(tmp_path):
    write_scenes(tmp_path, SMALL, workers=1)
    before = tree(tmp_path)
    other = SceneRecipe(('F3',), 2, 9, 64, 96)
    with pytest.raises(InputError, match=r'drive 3 \(asked: 2\), seed 0 \(asked: 9\); '):
        write_scenes(tmp_path, other)
    assert tree(tmp_path) == before
    # By another version of the generator.
    marker = read_marker(tmp_path) | {'generator_version': 0}
    (tmp_path / 'DRAWN_SCENES.json').write_text(json.dumps(marker))
    with pytest.raises(InputError, match=rf'generator_version 0 \(asked: {GENERATOR_VERSION}\)'):
        write_scenes(tmp_path, SMALL)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        (dict(frames_per_drive=0), '^0 frames'),
        (dict(height=63), '63x800 .* 64x64'),
        (dict(seed=-1), 'seed -1'),
        (dict(drives=('F3', 'F99')), "'F99'.*: 02_00, "),
        (dict(drives=('F3', 'F3')), "'F3'.*twice"),
        (dict(drives=()), ': 02_00, '),
    ],
)
def test_a_bad_recipe_is_refused_with_value_and_remedy(values, message):
    with pytest.raises(InputError, match=message):
        SceneRecipe(**values)


def test_command_draws_and_says_where(tmp_path, capsys):
    out = tmp_path / 'scenes'
    options = f'{out} --frames 2 --height 64 --width 64 --seed 4 --drives val F2'.split()
    assert main(options) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f'wrote 14 of 14 frames (7 drives) in {out}'
    recipe = dict(drives=[*SPLITS['val'], 'F2'], frames_per_drive=2, seed=4, height=64, width=64)
    assert read_marker(out) == recipe | dict(generator_version=GENERATOR_VERSION, complete=True)
    assert set(SceneRecipe().drives) == {drive for drives in SPLITS.values() for drive in drives}
    assert main(options) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f'already there: all 14 frames (7 drives) in {out}'
    assert main([*options[:-2], 'F2']) == 2
    assert 'drives 07_00 .. F2 (asked: F2 .. F2)' in capsys.readouterr().err
    file = tmp_path / 'notes.txt'
    file.write_text('keep')
    for impossible in (file, file / 'inner'):
        assert main([str(impossible), '--frames', '1']) == 2
        assert f'error: {impossible}' in capsys.readouterr().err
    assert file.read_text() == 'keep'
