"""Every kind of broken data, made for real, is found, named and told apart; valid data pass."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.cli.inspect_data import main
from mmseg_unet_lyft.datasets.carla import CARLA_CLASSES, CARLA_PALETTE
from mmseg_unet_lyft.datasets.checks import ACCEPTABLE, KINDS, channel_sums, inspect

FOLDER = 'dataA/dataA'


@pytest.fixture
def frames(kaggle):
    """Five valid frames of four drives."""
    for stem in ('F1-0', 'F1-1', 'F2-0', 'F3-0', '02_00_000'):
        kaggle.add(stem)
    return kaggle


def found(root: Path, **options) -> list[tuple[str, str, str]]:
    """Kind, file name and message of every problem."""
    inspection = inspect(root, workers=1, **options)
    return [(one.kind, Path(one.path).name, one.message) for one in inspection.problems]


def only(root: Path, **options) -> tuple[str, str, str]:
    problems = found(root, **options)
    assert len(problems) == 1, problems
    return problems[0]


def rewrite_label(path: Path, change) -> None:
    pixels = np.array(Image.open(path))
    Image.fromarray(change(pixels)).save(path)


def test_valid_frames_have_no_problem(frames):
    inspection = inspect(frames.root, workers=1)
    assert inspection.problems == []
    assert [one.files.name for one in inspection.valid] == ['02_00_000', 'F1-0', 'F1-1', 'F2-0', 'F3-0']
    assert inspection.size == (24, 32)
    assert set(ACCEPTABLE) < set(KINDS)


def test_two_workers_find_what_one_finds(frames):
    for number in range(40):
        frames.add(f'F5-{number}')
    frames.add('F6-0', tags=200)
    one, two = (inspect(frames.root, workers=workers) for workers in (1, 2))
    assert one.problems == two.problems
    assert one.files == two.files
    assert [kind.kind for kind in two.problems] == ['bad_id']
    assert [judged.files for judged in one.judged] == [judged.files for judged in two.judged]


def test_all_problems_come_at_once(frames):
    frames.add('F1-2')[1].write_bytes(b'')
    frames.add('F1-3')[0].unlink()
    frames.add('F1-4', tags=13)
    frames.add('F1-5')[1].unlink()
    frames.add('F1-0', 'dataB/dataB', tags=3)
    frames.add('holiday')
    image, label = frames.add('F1-9')
    Image.open(label).save(label.with_suffix('.jpg'))
    label.unlink()
    assert [problem[:2] for problem in found(frames.root)] == [
        ('missing_label', 'F1-5.png'),
        ('missing_label', 'F1-9.png'),
        ('missing_image', 'F1-3.png'),
        ('unknown_name', 'holiday.png'),
        ('same_name', 'F1-0.png'),
        ('empty', 'F1-2.png'),
        ('jpeg', 'F1-9.jpg'),
        ('bad_id', 'F1-4.png'),
    ]


@pytest.mark.parametrize('which', [0, 1], ids=['image', 'label'])
@pytest.mark.parametrize(
    ('damage', 'kind'),
    [
        (lambda content: b'', 'empty'),
        (lambda content: content[: len(content) // 2], 'damaged'),
        (lambda content: b'GIF89a' + content, 'not_png'),
        (lambda content: content[:16] + b'\0\1\0\0\0\1\0\0' + content[24:], 'wrong_size'),
        (None, 'unreadable'),
    ],
    ids=['empty', 'truncated', 'no png', 'gigantic', 'unreadable'],
)
def test_a_damaged_file_is_named(frames, which, damage, kind):
    path = frames.add('F1-7')[which]
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
        path.mkdir()
    assert only(frames.root)[:2] == (kind, 'F1-7.png')


def test_a_jpeg_label_is_named_and_its_smeared_ids_are_counted(frames):
    _, label = frames.add('F1-7', tags=12 * np.random.default_rng(0).integers(0, 2, (24, 32)))
    Image.open(label).getchannel(0).save(label, format='JPEG', quality=90)
    problems = {kind: message for kind, _, message in found(frames.root)}
    assert list(problems) == ['jpeg', 'bad_id']
    smeared = np.asarray(Image.open(label))
    assert (smeared > 12).any()
    assert f' {(smeared > 12).sum()} pixels ' in problems['bad_id']


def test_ids_out_of_range_are_counted_with_the_first_position(frames):
    tags = np.zeros((24, 32), np.uint8)
    tags[5, 7], tags[5, 9], tags[20, 1] = 13, 255, 13
    frames.add('F1-7', tags=tags)
    kind, _, message = only(frames.root)
    assert kind == 'bad_id'
    assert re.match(r'class id 13 at \(row 5, col 7\); .*0 to 12, .* 3 pixels .*\(13, 255\)', message)
    assert '255 is not an ignore value' in message
    assert [problem[0] for problem in found(frames.root, simulator='0.9.10')] == ['bad_id']
    tags[5, 9] = 22
    frames.add('F1-7', tags=tags)
    assert found(frames.root, simulator='0.9.10') == []


def test_green_and_blue_are_counted_with_the_first_position(frames):
    def colour(pixels):
        pixels[3, 4, 1] = 9
        pixels[8, 0, 2] = 1
        return pixels

    rewrite_label(frames.add('F1-7')[1], colour)
    kind, _, message = only(frames.root)
    assert kind == 'green_blue'
    assert '2 pixels, first at (row 3, col 4)' in message


@pytest.mark.parametrize('which', [0, 1], ids=['image', 'label'])
@pytest.mark.parametrize(
    ('mode', 'kinds'), [('L', ['greyscale']), ('P', ['palette']), ('I;16', ['depth16', 'greyscale'])]
)
def test_a_file_of_another_kind_is_named(frames, which, mode, kinds):
    path = frames.add('F1-7')[which]
    red = Image.open(path).getchannel(0)
    picture = Image.fromarray(np.asarray(red).astype(np.uint16)) if mode == 'I;16' else red.convert(mode)
    picture.save(path)
    # A label of 16 bits cannot be read at all, nor one whose palette is of greys.
    expected = (['colours'] if mode == 'P' else kinds[:1]) if which else kinds
    assert [problem[:2] for problem in found(frames.root)] == [(kind, 'F1-7.png') for kind in expected]


@pytest.mark.parametrize('channel', [1, 2], ids=['green', 'blue'])
def test_tags_in_another_channel_are_named_with_it(frames, channel):
    rewrite_label(frames.add('F1-7')[1], lambda pixels: np.roll(pixels, channel, axis=2))
    kind, name, message = only(frames.root)
    assert (kind, name) == ('other_channel', 'F1-7.png')
    assert f'{("red", "green", "blue")[channel]} holds values up to 12' in message


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'P'])
@pytest.mark.parametrize('vehicle', [(0, 0, 255), (0, 0, 142)], ids=['0.8', '0.9'])
def test_the_cityscapes_palette_is_recognised(frames, mode, vehicle):
    tags = np.random.default_rng(0).integers(0, 13, (24, 32))
    colours = np.array([*CARLA_PALETTE[:10], vehicle, *CARLA_PALETTE[11:]], np.uint8)[tags]
    picture = Image.fromarray(colours)
    (picture.quantize(13) if mode == 'P' else picture.convert(mode)).save(frames.add('F1-7')[1])
    kind, _, message = only(frames.root)
    assert (kind, 'CityScapes' in message) == ('cityscapes', True)
    inspection = inspect(frames.root, accept=['cityscapes'], workers=1)
    assert not inspection.problems
    (judged,) = (one for one in inspection.judged if one.files.name == 'F1-7')
    assert judged.tag_pixels[:13].tolist() == np.bincount(tags.ravel(), minlength=13).tolist()


def test_a_label_with_a_colour_beyond_the_palette_is_refused(frames):
    tags = np.random.default_rng(0).integers(0, 13, (24, 32))
    colours = np.array(CARLA_PALETTE, np.uint8)[tags]
    colours[5, 6] = (1, 2, 3)
    Image.fromarray(colours).save(frames.add('F1-7')[1])
    (problem,) = inspect(frames.root, accept=['cityscapes'], workers=1).problems
    assert problem.kind == 'colours'
    assert '#010203 at (row 5, col 6)' in problem.message


@pytest.mark.parametrize('tag', [0, 7])
def test_labels_of_one_tag_alone_are_a_problem_of_all_frames(kaggle, tag):
    for number in range(3):
        kaggle.add(f'F1-{number}', tags=tag)
    kind, name, message = only(kaggle.root)
    assert (kind, name) == ('one_tag', 'F1-0.png')
    assert f'all 3 labels has the tag {CARLA_CLASSES[tag]}' in message
    kaggle.add('F1-3')
    assert found(kaggle.root) == []


def test_a_fifo_among_the_frames_is_named_at_once(frames):
    image, label = frames.add('F1-7')
    image.unlink()
    os.mkfifo(image)
    assert only(frames.root)[:2] == ('unreadable', 'F1-7.png')
    label.unlink()
    assert only(frames.root)[:2] == ('missing_label', 'F1-7.png')


def test_mixed_sizes_and_a_label_of_another_size_are_named(frames):
    frames.add('F1-7', size=(12, 32))
    _, label = frames.add('F1-8')
    rewrite_label(label, lambda pixels: pixels[:20])
    problems = {kind: message for kind, _, message in found(frames.root)}
    assert re.match(r'12x32 .*24x32', problems['wrong_size'])
    assert re.match(r'label of 20x32 .*CameraRGB/F1-8.png is 24x32', problems['size_mismatch'])
    assert len(problems) == 2


def test_the_same_image_under_two_names_is_found_however_it_was_compressed(frames):
    image, _ = frames.add('F3-7')
    Image.open(frames.root / FOLDER / 'CameraRGB/F1-0.png').save(image, compress_level=0)
    kind, name, message = only(frames.root)
    assert (kind, name) == ('duplicate_image', 'F3-7.png')
    assert f'{FOLDER}/CameraRGB/F1-0.png, with another label' in message


def test_options_that_are_not_known_are_refused(frames, capsys):
    assert main([str(frames.root), '--simulator', '1.0']) == 2
    assert '0.8, 0.9.10, 0.9.14' in capsys.readouterr().err
    assert main([str(frames.root), '--accept', 'bad_id']) == 2
    assert '--accept bad_id: choose from: extra_file' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(frames.root), '--workers', '0'])
    assert '--workers: 0: ' in capsys.readouterr().err


def test_sums_of_channels_are_exact_and_in_the_order_r_g_b():
    image = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    rgb = image[..., ::-1].astype(np.int64)
    expected = [rgb.sum(axis=(0, 1)), (rgb**2).sum(axis=(0, 1))]
    np.testing.assert_array_equal(channel_sums(image), expected)
