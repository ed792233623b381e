"""Labelling folders: which images, what is skipped, what is refused, and what is written."""

import json
import os
import re
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.folder import Outputs, find_images, predict_images, read_frame, start_folder


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_images_of_a_folder_keep_their_places_below_it(tmp_path):
    touch(*(tmp_path / name for name in ('b/c/2.JPG', 'b/1.png', '3.webp', 'notes.txt', 'b/4.npy')))
    (tmp_path / 'folder.png').mkdir()
    assert find_images([str(tmp_path)]) == [
        (tmp_path / '3.webp', Path('3.png')),
        (tmp_path / 'b/1.png', Path('b/1.png')),
        (tmp_path / 'b/c/2.JPG', Path('b/c/2.png')),
    ]


def test_files_given_by_themselves_take_their_names_whatever_their_suffix(tmp_path):
    touch(tmp_path / 'a/1.png', tmp_path / 'b/2.raw')
    assert find_images([f'{tmp_path}/b/2.raw', f'{tmp_path}/a']) == [
        (tmp_path / 'a/1.png', Path('1.png')),
        (tmp_path / 'b/2.raw', Path('2.png')),
    ]


def test_inputs_that_give_nothing_to_predict_are_named(tmp_path):
    with pytest.raises(InputError, match=re.escape(f'{tmp_path}/no: no such file or folder')):
        find_images([str(tmp_path / 'no')])
    touch(tmp_path / 'notes.txt')
    with pytest.raises(InputError, match=re.escape(f'{tmp_path}: holds no image (.bmp, .jpeg, .jpg, .png, ')):
        find_images([str(tmp_path)])


@pytest.mark.parametrize('names', [('a/1.png', 'a/1.jpg'), ('a/1.png', 'b/1.png')])
def test_two_images_with_one_result_are_refused(tmp_path, names):
    paths = [tmp_path / name for name in names]
    touch(*paths)
    inputs = sorted({str(path.parent) for path in paths})
    message = re.escape(f'would both become {Path("1.png")}; predict them one by one')
    with pytest.raises(InputError, match=message) as caught:
        find_images(inputs)
    assert all(str(path) in str(caught.value) for path in paths)


def test_a_pattern_places_results_below_its_fixed_part(tmp_path):
    touch(*(tmp_path / name for name in ('a/1/x.png', 'a/2/x.png', 'a/2/y.txt', 'b/x.png')))
    found = find_images([f'{tmp_path}/a/*/*.png'])
    assert [place for _, place in found] == [Path('1/x.png'), Path('2/x.png')]
    assert len(find_images([f'{tmp_path}/**/*.png'])) == 3
    with pytest.raises(InputError, match=re.escape(f'{tmp_path}/c*/*.png: no file matches')):
        find_images([f'{tmp_path}/c*/*.png'])


# --- reading ------------------------------------------------------------------------------------------------

RANDOM = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
FORMATS = ['.png', '.jpg', '.webp', '.bmp', '.tif']


@pytest.mark.parametrize('suffix', FORMATS)
def test_a_sound_image_is_read_as_opencv_reads_it(tmp_path, suffix):
    path = tmp_path / f'x{suffix}'
    cv2.imwrite(str(path), RANDOM)
    np.testing.assert_array_equal(read_frame(path), cv2.imread(str(path)))


@pytest.mark.parametrize('suffix', FORMATS)
def test_an_image_cut_short_is_refused(tmp_path, suffix):
    path = tmp_path / f'x{suffix}'
    cv2.imwrite(str(path), RANDOM)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(InputError, match=re.escape(f'{path}: cannot be read as an image (')):
        read_frame(path)


@pytest.mark.parametrize('content', [b'', b'no image'])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    path = tmp_path / 'x.png'
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f'{path}: cannot be read as an image (no image can be')):
        read_frame(path)


def test_an_image_over_the_limit_is_refused_by_its_header(tmp_path):
    path = tmp_path / 'x.png'
    cv2.imwrite(str(path), RANDOM)
    # The header of a giant and too little behind it: decoding would say something else.
    content = bytearray(path.read_bytes())
    content[16:24] = (9000).to_bytes(4, 'big') + (8000).to_bytes(4, 'big')
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, 'big')
    path.write_bytes(content)
    message = f'{path}: 9000x8000 is 72 MP, more than the 64 MP that are read; raise the limit with --max-meg'
    with pytest.raises(InputError, match=re.escape(message)):
        read_frame(path)
    with pytest.raises(InputError, match=re.escape(f'{path}: 9000x8000 is 72 MP, more than the 1.5 MP')):
        read_frame(path, 1_500_000)


# --- what a second run does ---------------------------------------------------------------------------------


class Stripes:
    """A segmenter that labels by column, and counts how often it was asked."""

    classes = ('left', 'right')
    palette = ((255, 0, 0), (0, 255, 0))

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, frame: np.ndarray, *, colours: str) -> np.ndarray:
        assert colours == 'BGR'
        self.calls += 1
        label = np.zeros(frame.shape[:2], np.uint8)
        label[:, frame.shape[1] // 2 :] = 1
        return label

    def uncertainty(self, frame: np.ndarray, *, colours: str, passes: int) -> tuple[np.ndarray, np.ndarray]:
        return self(frame, colours=colours), np.full(frame.shape[:2], np.log(2) / passes, np.float32)


@pytest.fixture
def folder(tmp_path):
    for name in ('a/1.png', 'a/2.jpg'):
        (tmp_path / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / 'in' / name), RANDOM)
    return tmp_path


def label(segmenter, folder, kinds=('palette', 'ids')):
    return predict_images(segmenter, find_images([str(folder / 'in')]), Outputs(folder / 'out', kinds))


def test_what_is_there_is_not_made_again(folder):
    stripes = Stripes()
    done = label(stripes, folder)
    assert (done.written, done.present, done.problems) == (2, 0, [])
    done = label(stripes, folder)
    assert (done.written, done.present, stripes.calls) == (0, 2, 2)
    (folder / 'out/ids/a/2.png').unlink()
    newer = folder / 'in/a/1.png'
    os.utime(newer, ns=(newer.stat().st_mtime_ns + 10**10,) * 2)
    done = label(stripes, folder)
    assert (done.written, done.present) == (2, 0)


def test_every_kind_is_written_as_it_says(folder):
    kinds = ('palette', 'overlay', 'ids', 'uncertainty')
    label(Stripes(), folder, kinds)
    expected = np.zeros((48, 64), np.uint8)
    expected[:, 32:] = 1
    shown = {kind: Image.open(folder / 'out' / kind / 'a/1.png') for kind in kinds}
    assert [shown[kind].mode for kind in kinds] == ['P', 'RGB', 'L', 'L']
    np.testing.assert_array_equal(np.asarray(shown['palette']), expected)
    np.testing.assert_array_equal(np.asarray(shown['ids']), expected)
    assert shown['palette'].convert('RGB').getpixel((63, 0)) == (0, 255, 0)
    # ln 2 / 10 of ln 2, in 255 steps.
    np.testing.assert_array_equal(np.asarray(shown['uncertainty']), np.full((48, 64), 26))


def test_what_cannot_be_read_is_listed_and_the_rest_is_labelled(folder):
    (folder / 'in/a/0.png').write_bytes(b'no image')
    done = label(Stripes(), folder)
    assert done.written == 2
    (problem,) = done.problems
    assert problem.startswith(f'{folder}/in/a/0.png: cannot be read as an image')
    assert (folder / 'out/not_labelled.txt').read_text() == f'{problem}\n'
    (folder / 'in/a/0.png').unlink()
    label(Stripes(), folder)
    assert not (folder / 'out/not_labelled.txt').exists()


def test_a_folder_that_cannot_be_written_to_ends_it(folder):
    (folder / 'out').write_text('a file')
    with pytest.raises(InputError, match=re.escape(f'{folder}/out/palette/a/1.png: cannot be written (')):
        label(Stripes(), folder)


def test_results_of_two_models_do_not_mix(folder):
    for name in ('one.pth', 'two.pth'):
        (folder / name).write_text(name)
    one, two = [None, str(folder / 'one.pth')], [None, str(folder / 'two.pth')]
    outputs = Outputs(folder / 'out', ('ids',))
    start_folder(outputs, one)
    label(Stripes(), folder)
    start_folder(outputs, one)
    message = f'{folder}/out: holds predictions made with one.pth or other options; name another --out, or'
    for files, options in ((two, []), (one, ['a=1'])):
        with pytest.raises(InputError, match=re.escape(message)):
            start_folder(outputs, files, options)
    assert (folder / 'out/ids/a/1.png').exists()
    start_folder(outputs, two, overwrite=True)
    assert not (folder / 'out/ids/a/1.png').exists()
    assert list(json.loads((folder / 'out/predictions.json').read_text())['files']) == ['two.pth']
