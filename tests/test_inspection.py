"""Every kind of broken data, made for real, is found, named and told apart; sound data pass."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.cli.inspect_data import main
from mmseg_unet_lyft.datasets.inspection import ACCEPTABLE, KINDS, inspect
from mmseg_unet_lyft.datasets.judging import channel_sums, count_tags
from mmseg_unet_lyft.datasets.listing import list_frames
from mmseg_unet_lyft.datasets.workers import map_in_order
from mmseg_unet_lyft.errors import InputError
from tests.conftest import KaggleFolder

ROOT = Path(__file__).resolve().parents[1]
FOLDER = 'dataA/dataA'


@pytest.fixture
def frames(kaggle):
    """Five sound frames of four drives."""
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


def test_sound_frames_have_no_problem(frames):
    inspection = inspect(frames.root, workers=1)
    assert inspection.problems == []
    assert [one.files.name for one in inspection.sound] == ['02_00_000', 'F1-0', 'F1-1', 'F2-0', 'F3-0']
    assert inspection.size == (24, 32)


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
    assert [kind for kind, _, _ in found(frames.root)] == ['missing_image', 'empty', 'bad_id']


# --- names -------------------------------------------------------------------------------------------------


def test_an_image_without_label_and_a_label_without_image_are_named(frames):
    frames.add('F1-8')[1].unlink()
    frames.add('F1-9')[0].unlink()
    assert found(frames.root) == [
        ('missing_label', 'F1-8.png', 'has no label of this name in CameraSeg'),
        ('missing_image', 'F1-9.png', 'has no image of this name in CameraRGB'),
    ]


def test_extra_files_are_named_and_junk_of_the_system_is_not(frames):
    folder = frames.root / FOLDER / 'CameraRGB'
    (folder / 'notes.txt').write_text('x')
    (folder / 'old').mkdir()
    (folder / '.DS_Store').write_bytes(b'\0')
    (folder / '._F1-0.png').write_bytes(b'\0')
    assert found(frames.root) == [
        ('extra_file', 'notes.txt', 'not a PNG file, and no frame of the data; move it away'),
        ('extra_file', 'old', 'a folder, and no frame of the data; move it away'),
    ]


def test_a_name_that_fits_no_drive_is_named(frames):
    frames.add('holiday')
    kind, name, message = only(frames.root)
    assert (kind, name) == ('unknown_name', 'holiday.png')
    assert message.startswith("'holiday' fits no drive; frames are named WW_EE_FFF")


def test_one_name_in_two_folders_names_both(frames):
    frames.add('F1-0', 'dataB/dataB', tags=3)
    kind, _, message = only(frames.root)
    assert kind == 'same_name'
    assert message == f'{FOLDER}/CameraRGB/F1-0.png has the same name; remove one of the two frames'


def test_a_lower_case_duplicate_folder_is_one_problem_and_its_frames_are_left_out(frames):
    shutil.copytree(frames.root / 'dataA', frames.root / 'dataa')
    if len(list(frames.root.iterdir())) == 1:
        pytest.skip('this file system takes dataA and dataa for the same folder')
    assert only(frames.root) == (
        'duplicate_folder',
        'dataa',
        'dataA is there too; remove one of the two folders',
    )
    assert len(list_frames(frames.root).frames) == 5


def test_a_drive_in_both_train_and_test_folders_is_a_leak(tmp_path):
    folder = KaggleFolder(tmp_path / 'own')
    for stem, part in (('F1-0', 'train'), ('F1-1', 'train'), ('F1-2', 'test'), ('F2-0', 'test')):
        folder.add(stem, f'{part}/dataA')
    assert only(folder.root) == (
        'split_drive',
        'F1',
        'drive F1 lies in test (1 frames), train (2 frames); neighbouring frames leak, keep a drive whole',
    )


def test_a_drive_that_a_split_file_divides_is_a_leak(frames, tmp_path, capsys):
    split = tmp_path / 'split.json'
    split.write_text(json.dumps(dict(train=['F1-0', 'F2'], test=['F1-1', 'F3'])))
    out = tmp_path / 'out'
    assert main([str(frames.root), '--out', str(out), '--split-file', str(split), '--workers', '1']) == 2
    assert 'drive F1 lies in test (1 frames), train (1 frames)' in capsys.readouterr().out
    for train, test, counts in (
        (['F1'], ['F1', 'F2'], 'test (2 frames), train (2 frames)'),
        (['F1'], ['F1-1'], 'test (1 frames), train (2 frames)'),
    ):
        split.write_text(json.dumps(dict(train=train, test=test)))
        assert main([str(frames.root), '--out', str(out), '--split-file', str(split), '--workers', '1']) == 2
        assert f'drive F1 lies in {counts}' in capsys.readouterr().out
    split.write_text(json.dumps(dict(train='F1')))
    assert main([str(frames.root), '--out', str(out), '--split-file', str(split)]) == 2
    assert f'{split}: expected {{"train": ["F1", "F2-17"]' in capsys.readouterr().err


def test_a_split_of_names_that_are_not_there_is_refused(frames):
    (frames.root / FOLDER / 'CameraSeg/F3-0.png').unlink()
    message = 'the split names F9, F1-7, which is no drive or frame there; the drives are: 02_00, F1, F2'
    with pytest.raises(InputError, match=re.escape(f'{frames.root}: {message}')):
        inspect(frames.root, workers=1, split=dict(train=['F1', 'F9'], test=['F1-7', 'F2-0']))
    # Its label is missing, but it is there.
    assert only(frames.root, split=dict(train=['F1', 'F3']))[0] == 'missing_label'


# --- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('which', [0, 1], ids=['image', 'label'])
@pytest.mark.parametrize(
    ('damage', 'kind', 'message'),
    [
        (lambda content: b'', 'empty', 'has zero bytes'),
        (lambda content: content[: len(content) // 2], 'damaged', 'damaged or cut short ('),
        (lambda content: content[:20], 'damaged', 'cut short; restore'),
        (lambda content: b'GIF89a' + content, 'not_png', 'is no PNG file'),
        (
            lambda content: content[:60] + bytes([content[60] ^ 4]) + content[61:],
            'damaged',
            'damaged or cut short (',
        ),
    ],
    ids=['empty', 'truncated', 'header cut', 'no png', 'flipped bit'],
)
def test_a_damaged_file_is_named(frames, which, damage, kind, message):
    path = frames.add('F1-7')[which]
    path.write_bytes(damage(path.read_bytes()))
    assert only(frames.root)[:2] == (kind, 'F1-7.png')
    assert message in only(frames.root)[2]


def test_a_header_that_declares_a_gigantic_image_is_not_decoded(frames):
    path = frames.add('F1-7')[0]
    content = bytearray(path.read_bytes())
    content[16:24] = b'\0\1\0\0\0\1\0\0'
    path.write_bytes(content)
    assert only(frames.root)[2] == 'declares 65536x65536 (height x width) pixels; restore it'


def test_a_jpeg_label_is_named_and_its_smeared_ids_are_counted(frames):
    _, label = frames.add('F1-7', tags=12 * np.random.default_rng(0).integers(0, 2, (24, 32)))
    Image.open(label).getchannel(0).save(label, format='JPEG', quality=90)
    problems = {kind: message for kind, _, message in found(frames.root)}
    assert list(problems) == ['jpeg', 'bad_id']
    assert problems['jpeg'].startswith('a JPEG named .png: its class ids are smeared; restore the PNG')
    smeared = np.asarray(Image.open(label))
    assert (smeared > 12).any()
    assert problems['bad_id'].startswith(f'{(smeared > 12).sum()} pixels with class ids outside 0 to 12 (')


def test_a_label_with_a_jpeg_suffix_is_named(frames):
    image, label = frames.add('F1-7')
    Image.open(label).save(label.with_suffix('.jpg'))
    label.unlink()
    assert [problem[:2] for problem in found(frames.root)] == [
        ('missing_label', image.name),
        ('jpeg', 'F1-7.jpg'),
    ]


def test_ids_out_of_range_are_counted_with_the_first_position(frames):
    tags = np.zeros((24, 32), np.uint8)
    tags[5, 7], tags[5, 9], tags[20, 1] = 13, 255, 13
    frames.add('F1-7', tags=tags)
    kind, _, message = only(frames.root)
    assert kind == 'bad_id'
    assert message.startswith('3 pixels with class ids outside 0 to 12 (13, 255), first 13 at (row 5, col 7)')
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
    assert message.startswith('green or blue is not 0 in 2 pixels, first at (row 3, col 4)')


@pytest.mark.parametrize(
    ('change', 'kind', 'what'),
    [
        (lambda pixels: pixels[..., 0].astype(np.uint16), 'depth16', '16 bits a channel'),
        (lambda pixels: pixels[..., 0], 'greyscale', 'a greyscale PNG'),
    ],
    ids=['16-bit', 'greyscale'],
)
def test_a_label_of_another_kind_is_named(frames, change, kind, what):
    rewrite_label(frames.add('F1-7')[1], change)
    problems = {one: message for one, _, message in found(frames.root)}
    assert problems[kind] == f'{what}; expected 8-bit RGB with the tag in red'


def test_a_palette_label_is_named_and_may_be_accepted(frames):
    tags = np.full((24, 32), 7, np.uint8)
    picture = Image.fromarray(tags)
    picture.putpalette([value for tag in range(13) for value in (255 - tag, 1, 2)])
    picture.save(frames.add('F2-7')[1])
    assert only(frames.root)[0] == 'palette'
    inspection = inspect(frames.root, accept=['palette'], workers=1)
    assert inspection.problems == []
    # Its indices, not its colours, are the tags.
    assert inspection.stats.drives['F2'].tag_pixels[7] >= 24 * 32
    assert 'F2-7' in [one.files.name for one in inspection.sound]


@pytest.mark.parametrize('mode', ['L', 'P', 'I;16'])
def test_an_image_of_another_kind_is_named(frames, mode):
    image, _ = frames.add('F1-7')
    picture = Image.open(image).convert('L')
    picture = (
        Image.fromarray(np.asarray(picture).astype(np.uint16)) if mode == 'I;16' else picture.convert(mode)
    )
    picture.save(image)
    expected = {'L': ['greyscale'], 'P': ['palette'], 'I;16': ['depth16', 'greyscale']}[mode]
    assert [(kind, name) for kind, name, _ in found(frames.root)] == [(one, 'F1-7.png') for one in expected]


def test_mixed_sizes_and_a_label_of_another_size_are_named(frames):
    frames.add('F1-7', size=(12, 32))
    _, label = frames.add('F1-8')
    rewrite_label(label, lambda pixels: pixels[:20])
    problems = {kind: message for kind, _, message in found(frames.root)}
    assert problems['wrong_size'].startswith('12x32 (height x width), but most frames are 24x32')
    assert problems['size_mismatch'] == (
        'label of 20x32, but its image dataA/dataA/CameraRGB/F1-8.png is 24x32 (height x width); they are '
        'not of the same frame'
    )
    assert len(problems) == 2


def test_the_same_image_under_two_names_is_found_however_it_was_compressed(frames):
    image, _ = frames.add('F3-7')
    Image.open(frames.root / FOLDER / 'CameraRGB/F1-0.png').save(image, compress_level=0)
    kind, name, message = only(frames.root)
    assert (kind, name) == ('duplicate_image', 'F3-7.png')
    assert (
        message == f'same pixels as {FOLDER}/CameraRGB/F1-0.png, with another label; one of the two is wrong'
    )


@pytest.mark.skipif(os.name == 'nt', reason='Windows knows no such permissions')
def test_a_file_and_a_folder_without_permission_are_named(tmp_path):
    # Below tmp_path only its owner may look, and the owner may be root, whom no permission stops.
    with tempfile.TemporaryDirectory() as folder:
        kaggle = KaggleFolder(Path(folder) / 'data')
        Path(folder).chmod(0o755)
        locked, _ = kaggle.add('F1-0')
        kaggle.add('F2-0', 'dataB')
        kaggle.add('F3-0', 'dataC')
        locked.chmod(0)
        (kaggle.root / 'dataB').chmod(0)
        code = (
            'import os, sys\n'
            'from pathlib import Path\n'
            'from mmseg_unet_lyft.datasets.inspection import inspect\n'
            'from PIL import Image\n'
            'Image.init()\n'
            'if os.geteuid() == 0: os.seteuid(65534)\n'
            'for one in inspect(Path(sys.argv[1]), workers=1).problems:\n'
            '    print(one.kind, one.path, one.message, sep="|")\n'
        )
        done = subprocess.run(
            [sys.executable, '-c', code, kaggle.root], cwd=ROOT, capture_output=True, text=True
        )
        (kaggle.root / 'dataB').chmod(0o755)
    assert done.stdout.splitlines() == [
        'unreadable|dataA/dataA/CameraRGB/F1-0.png|cannot be read (Permission denied); check its permissions',
        'unreadable|dataB|folder cannot be read (Permission denied); check its permissions',
    ], done.stderr


def test_a_dead_worker_is_explained():
    with pytest.raises(InputError, match='a worker process was killed, most likely because memory ran out'):
        list(map_in_order(os._exit, [1, 1, 1], workers=2))


def test_a_root_without_frames_or_options_that_are_not_known_are_refused(frames, tmp_path, capsys):
    with pytest.raises(InputError, match=re.escape(f'{tmp_path / "no"}: no such folder; name one in the')):
        inspect(tmp_path / 'no')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match='no CameraRGB or CameraSeg folder in it; expected dataA/dataA'):
        inspect(tmp_path / 'empty')
    assert main([str(frames.root), '--simulator', '1.0']) == 2
    assert 'choose the newest not newer than yours of: 0.8, 0.9.10, 0.9.14' in capsys.readouterr().err
    assert main([str(frames.root), '--accept', 'bad_id']) == 2
    assert '--accept bad_id: choose from: extra_file' in capsys.readouterr().err


def test_every_kind_that_may_be_accepted_exists():
    assert set(ACCEPTABLE) < set(KINDS)


# --- what is measured --------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [(5, 7), (24, 32)], ids=['odd', 'even'])
def test_tags_are_counted_exactly(size):
    tags = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    np.testing.assert_array_equal(count_tags(tags), [(tags == tag).sum() for tag in range(256)])


def test_sums_of_channels_are_exact_and_in_the_order_r_g_b():
    image = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    rgb = image[..., ::-1].astype(np.int64)
    expected = [rgb.sum(axis=(0, 1)), (rgb**2).sum(axis=(0, 1))]
    np.testing.assert_array_equal(channel_sums(image), expected)
