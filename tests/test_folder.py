"""Labelling folders: which images, what is skipped, what is refused, and what is written."""

import json
import os
import re
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.folder import Outputs, find_images, predict_images, start_folder


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ('inputs', 'expected'),
    [
        # Next to a PNG of its name, an image keeps its suffix.
        (
            ['.'],
            {'3.png': '3.webp', 'b/1.png': 'b/1.png', 'b/1.jpg.png': 'b/1.jpg', 'b/c/2.png': 'b/c/2.JPG'},
        ),
        # A file by itself takes its name, whatever its suffix.
        (['raw/5.raw', 'b/c', 'b/1.jpg'], {'5.png': 'raw/5.raw', '2.png': 'b/c/2.JPG', '1.png': 'b/1.jpg'}),
        # Below the part of a pattern without wildcards.
        (['b/*/*.JPG'], {'c/2.png': 'b/c/2.JPG'}),
        (['**/*.png'], {'b/1.png': 'b/1.png'}),
    ],
)
def test_images_keep_their_places_below_the_input(tmp_path, monkeypatch, inputs, expected):
    monkeypatch.chdir(tmp_path)
    touch(*map(Path, ('b/c/2.JPG', 'b/1.png', 'b/1.jpg', '3.webp', 'notes.txt', 'b/4.npy', 'raw/5.raw')))
    Path('folder.png').mkdir()
    assert {str(place): str(path) for path, place in find_images(inputs).images} == expected


def test_links_are_followed_and_what_is_left_out_is_counted_by_reason(tmp_path):
    touch(*(tmp_path / name for name in ('in/1.png', 'in/2.HEIC', 'in/3.heic', 'in/4.avif', 'in/Makefile')))
    touch(tmp_path / 'far/deep/5.png')
    for link, target in (('in/far', '../far'), ('far/deep/back', '../../in'), ('in/loop', '.')):
        (tmp_path / link).symlink_to(target)
    for name in ('6', '7.png', '8'):
        (tmp_path / 'in' / name).symlink_to('unplugged')
    found = find_images([str(tmp_path / 'in')])
    # A dead link that should be an image is one that cannot be read.
    assert [str(place) for _, place in found.images] == ['1.png', '7.png', 'far/deep/5.png']
    assert found.left_out == {'.heic': 2, '.avif': 1, 'no suffix': 1, 'dead links': 2}


def test_inputs_that_give_nothing_to_predict_are_named(tmp_path):
    touch(tmp_path / 'notes.txt')
    for name in (tmp_path / 'no', tmp_path, f'{tmp_path}/c*/*.png'):
        with pytest.raises(InputError, match=re.escape(f'{name}: ')):
            find_images([str(name)])


def test_two_images_with_one_result_are_refused(tmp_path):
    paths = [tmp_path / name for name in ('a/1.png', 'b/1.png')]
    touch(*paths)
    with pytest.raises(InputError, match=re.escape('1.png')) as caught:
        find_images([str(path.parent) for path in paths])
    assert all(str(path) in str(caught.value) for path in paths)


RANDOM = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


class Stripes:
    """A segmenter that labels by column, and counts how often it was asked."""

    classes = ('left', 'right')
    palette = ((255, 0, 0), (0, 255, 0))

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, frame: np.ndarray, *, colours: str) -> np.ndarray:
        assert colours == 'BGR'
        if min(frame.shape[:2]) < 16:
            raise InputError('frames of 8x8')
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
    return predict_images(segmenter, find_images([str(folder / 'in')]).images, Outputs(folder / 'out', kinds))


def test_what_is_there_is_not_made_again(folder):
    stripes = Stripes()
    done = label(stripes, folder)
    assert (done.written, done.present, done.problems) == (2, 0, [])
    done = label(stripes, folder)
    assert (done.written, done.present, stripes.calls) == (0, 2, 2)
    # One kind more, of one image: that kind is wanted of both, but of the other it is there.
    (folder / 'out/ids/a/2.png').unlink()
    done = label(stripes, folder)
    assert (done.written, done.present, stripes.calls) == (1, 1, 3)


def test_a_changed_image_is_labelled_again(folder):
    label(Stripes(), folder, ('palette', 'overlay'))
    path = folder / 'in/a/1.png'
    # Of the same size, and older than the first.
    before = path.stat().st_mtime_ns
    cv2.imwrite(str(path), np.full_like(RANDOM, 255))
    os.utime(path, ns=(before - 10**10,) * 2)
    done = label(Stripes(), folder, ('palette',))
    assert (done.written, done.present) == (1, 1)
    # The overlay is still of the image as it was: that the palette PNG is new does not make it so.
    done = label(Stripes(), folder, ('palette', 'overlay'))
    assert (done.written, done.present) == (1, 1)
    # Half of red and half of white.
    shown = np.asarray(Image.open(folder / 'out/overlay/a/1.png'))
    np.testing.assert_allclose(shown[0, 0].astype(int), (255, 127, 127), atol=1)


def test_results_that_a_kill_left_behind_are_made_again(folder, monkeypatch):
    # Killed after the first file, whose time is set last.
    with monkeypatch.context() as patch:
        patch.setattr('os.utime', Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            label(Stripes(), folder)
    assert (folder / 'out/ids/a/1.png').exists()
    assert (label(Stripes(), folder).written, label(Stripes(), folder).present) == (2, 2)


def test_results_are_not_inputs_of_the_next_run(folder):
    label(Stripes(), folder, ('palette', 'overlay'))
    frames = [folder / 'in/a/1.png', folder / 'in/a/2.jpg']
    out = folder / 'out'
    for entry in (folder, f'{folder}/**/*'):
        assert [path for path, _ in find_images([str(entry)], out).images] == frames
    for entry, results in ((out, out), (out / 'overlay/a/1.png', out), (folder / 'in', folder / 'in')):
        with pytest.raises(InputError, match=re.escape(f'{entry}: ') + '.*--out'):
            find_images([str(entry)], results)


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
    os.mkfifo(folder / 'in/a/0.png')
    # A name that is not UTF-8, with a line's end.
    (folder / 'in/a' / os.fsdecode(b'3\xe9\n.png')).write_bytes(b'not an image')
    cv2.imwrite(str(folder / 'in/a/9.png'), RANDOM[:8, :8])
    done = label(Stripes(), folder)
    assert done.written == 2
    pipe, unreadable, refused = done.problems
    assert pipe.startswith(f'{folder}/in/a/0.png: ')
    assert unreadable.startswith(rf'{folder}/in/a/3\udce9\n.png: ')
    assert refused == f'{folder}/in/a/9.png: frames of 8x8'
    assert (folder / 'out/not_labelled.txt').read_text() == ''.join(f'{one}\n' for one in done.problems)
    for path in (folder / 'in/a').glob('[039]*'):
        path.unlink()
    label(Stripes(), folder)
    assert not (folder / 'out/not_labelled.txt').exists()


def test_results_of_two_models_do_not_mix(folder):
    for name in ('one.pth', 'two.pth', 'x.xml', 'x.bin'):
        (folder / name).write_text(name)
    one, two, pair = (
        dict(model=str(folder / name), thresholds=None) for name in ('one.pth', 'two.pth', 'x.xml')
    )
    outputs = Outputs(folder / 'out', ('ids',))
    places = [place for _, place in find_images([str(folder / 'in')]).images]
    start_folder(outputs, one, 'config', places=places)
    label(Stripes(), folder, ('ids',))
    start_folder(outputs, one, 'config')
    both = dict(one, thresholds=folder / 'two.pth')
    for given in ((two, 'config'), (both, 'config'), (one, 'other bases'), (one, 'config', ['a=1'])):
        with pytest.raises(InputError, match=re.escape(f'{folder}/out: ') + '.* one.pth'):
            start_folder(outputs, *given)
    assert (folder / 'out/ids/a/1.png').exists()
    # What the record does not list is a stranger's: in the folder, or through a link.
    touch(folder / 'out/ids/mine.png')
    with pytest.raises(InputError, match=re.escape(f'{folder}/out/ids/mine.png: ')):
        start_folder(outputs, two, overwrite=True)
    (folder / 'out/ids/mine.png').unlink()
    (folder / 'out/ids').rename(folder / 'elsewhere')
    (folder / 'out/ids').symlink_to(folder / 'elsewhere')
    with pytest.raises(InputError, match=re.escape(f'{folder}/out/ids/a/')):
        start_folder(outputs, two, overwrite=True)
    (folder / 'out/ids').unlink()
    (folder / 'elsewhere').rename(folder / 'out/ids')
    start_folder(outputs, two, overwrite=True, places=places)
    assert not list((folder / 'out').rglob('*.png'))
    assert json.loads((folder / 'out/predictions.json').read_text())['files']['model']['name'] == 'two.pth'
    assert label(Stripes(), folder, ('ids',)).written == 2
    # A model that was changed, in its own file or in the one of its weights, is another.
    start_folder(outputs, pair, overwrite=True)
    for name, given in (('x.bin', pair), ('two.pth', two)):
        start_folder(outputs, given, overwrite=True)
        (folder / name).write_text('other weights')
        with pytest.raises(InputError, match=re.escape(Path(given['model']).name)):
            start_folder(outputs, given)


@pytest.mark.parametrize('content', ['[{"image_id": 1}]', '{"files": []}', 'cut {', None])
@pytest.mark.parametrize('overwrite', [False, True])
def test_a_folder_of_something_else_is_refused_and_kept(tmp_path, content, overwrite):
    record, result = tmp_path / 'predictions.json', tmp_path / 'ids/town/1.png'
    if content is not None:
        record.write_text(content)
    touch(tmp_path / 'model.pth', result)
    with pytest.raises(InputError, match=re.escape(f'{result if content is None else record}: ')):
        start_folder(Outputs(tmp_path), dict(model=tmp_path / 'model.pth'), overwrite=overwrite)
    assert result.exists()
