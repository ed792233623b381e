"""Labelling folders: which images, what is skipped, what is refused, and what is written."""

import json
import os
import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.folder import Outputs, find_images, predict_images, start_folder
from mmseg_unet_lyft.inference.images import read_frame


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


def test_a_name_that_the_system_refuses_is_told(tmp_path):
    name = str(tmp_path / ('x' * 300))
    with pytest.raises(InputError, match=f'{name}: cannot be read .File name too long.; check its permi'):
        find_images([name])


@pytest.mark.parametrize('names', [('a/1.png', 'a/1.jpg'), ('a/1.png', 'b/1.png')])
def test_two_images_with_one_result_are_refused(tmp_path, names):
    paths = [tmp_path / name for name in names]
    touch(*paths)
    inputs = sorted({str(path.parent) for path in paths})
    message = re.escape(f'would both become {Path("1.png")}; name another --out for one of')
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


def png_of(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A grey PNG of this size with sound checksums and these chunks behind its header."""
    header = (b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0))
    parts = [b'\x89PNG\r\n\x1a\n']
    for kind, content in (header, *chunks, (b'IEND', b'')):
        parts.append(struct.pack('>I', len(content)) + kind + content)
        parts.append(struct.pack('>I', zlib.crc32(kind + content)))
    return b''.join(parts)


def test_a_png_without_image_data_is_refused(tmp_path):
    path = tmp_path / 'x.png'
    path.write_bytes(png_of(8, 8))
    with pytest.raises(InputError, match=re.escape(f'{path}: cannot be read as an image (')):
        read_frame(path)


@pytest.mark.parametrize('suffix', FORMATS)
def test_our_limit_counts_and_not_pillows(tmp_path, suffix, monkeypatch):
    # Pillow refuses twice as many pixels, as images of 179 MP by default.
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', RANDOM[..., 0].size // 2 - 1)
    path = tmp_path / f'x{suffix}'
    cv2.imwrite(str(path), RANDOM)
    assert read_frame(path).shape == RANDOM.shape
    message = f'{path}: 64x48 is 0 MP, more than the 0.003 MP that are read; raise the limit with --max-meg'
    with pytest.raises(InputError, match=re.escape(message)):
        read_frame(path, 3000)
    # Others that use Pillow keep theirs.
    assert RANDOM[..., 0].size // 2 - 1 == Image.MAX_IMAGE_PIXELS


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


def brighter(path: Path) -> None:
    """Another image of the same size in a file that says it is older than it was."""
    before = path.stat().st_mtime_ns
    cv2.imwrite(str(path), np.full_like(RANDOM, 255))
    os.utime(path, ns=(before - 10**10,) * 2)


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
    brighter(folder / 'in/a/1.png')
    done = label(Stripes(), folder, ('palette',))
    assert (done.written, done.present) == (1, 1)
    # The overlay is still of the image as it was: that the palette PNG is new does not make it so.
    done = label(Stripes(), folder, ('palette', 'overlay'))
    assert (done.written, done.present) == (1, 1)
    # Half of red and half of white.
    shown = np.asarray(Image.open(folder / 'out/overlay/a/1.png'))
    np.testing.assert_allclose(shown[0, 0].astype(int), (255, 127, 127), atol=1)


def test_results_that_a_kill_left_without_a_record_are_made_again(folder):
    label(Stripes(), folder)
    sources = folder / 'out/sources.jsonl'
    lines = sources.read_text().splitlines(keepends=True)
    sources.write_text(lines[0] + lines[1][:30])
    done = label(Stripes(), folder)
    assert (done.written, done.present) == (1, 1)
    # What is added stands on a line of its own.
    assert label(Stripes(), folder).present == 2


def start(folder: Path, name: str, overwrite: bool = False) -> list[tuple[Path, Path]]:
    """The images of one of several inputs, in a folder of results that was started for them."""
    (folder / 'model.pth').write_text('weights')
    images = find_images([str(folder / name)])
    files = dict(model=folder / 'model.pth', thresholds=None)
    start_folder(Outputs(folder / 'out'), images, files, overwrite=overwrite)
    return images


def test_another_images_results_are_not_taken_for_ones_own(tmp_path):
    for number, name in enumerate(('a/F1.png', 'b/F1.png')):
        (tmp_path / name).parent.mkdir()
        cv2.imwrite(str(tmp_path / name), np.full((48, 64, 3), 255 * number, np.uint8))
    predict_images(Stripes(), start(tmp_path, 'a'), Outputs(tmp_path / 'out'))
    message = (
        f'{tmp_path}/out/palette/F1.png: was made from {tmp_path}/a/F1.png, not from {tmp_path}/b/F1.png; '
        'name another --out, or give --overwrite'
    )
    with pytest.raises(InputError, match=re.escape(message)):
        start(tmp_path, 'b')
    # Nor is another kind of result put beside those of the other image.
    with pytest.raises(InputError, match=re.escape(message)):
        start_folder(
            Outputs(tmp_path / 'out', ('ids',)),
            find_images([str(tmp_path / 'b')]),
            dict(model=tmp_path / 'model.pth'),
        )
    images = start(tmp_path, 'b', overwrite=True)
    assert not list((tmp_path / 'out').rglob('*.png'))
    assert predict_images(Stripes(), images, Outputs(tmp_path / 'out')).written == 1
    shown = np.asarray(Image.open(tmp_path / 'out/overlay/F1.png'))
    # Half of red and half of b's white; a is black.
    np.testing.assert_allclose(shown[0, 0].astype(int), (255, 127, 127), atol=1)
    assert predict_images(Stripes(), start(tmp_path, 'b'), Outputs(tmp_path / 'out')).present == 1


def test_results_are_no_inputs_of_the_next_run(folder):
    label(Stripes(), folder, ('palette', 'overlay'))
    frames = [folder / 'in/a/1.png', folder / 'in/a/2.jpg']
    out = folder / 'out'
    for entry in (folder, f'{folder}/**/*'):
        assert [path for path, _ in find_images([str(entry)], out)] == frames
    # An --out around the images keeps them.
    assert [path for path, _ in find_images([str(folder)], folder)] == sorted(
        [*frames, *out.rglob('*.png')], key=lambda path: path.relative_to(folder).with_suffix('.png')
    )
    message = f'{out}: holds no image (.bmp, .jpeg, .jpg, .png, .tif, .tiff, .webp) but results in --out'
    with pytest.raises(InputError, match=re.escape(message)):
        find_images([str(out)], out)
    result = out / 'overlay/a/1.png'
    with pytest.raises(InputError, match=re.escape(f'{result}: lies among the results in --out; name an')):
        find_images([str(result)], out)


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


def test_an_image_that_goes_away_meanwhile_is_listed(folder):
    images = find_images([str(folder / 'in')])
    images[0][0].unlink()
    done = predict_images(Stripes(), images, Outputs(folder / 'out'))
    assert done.written == 1
    assert done.problems == [f'{images[0][0]}: cannot be read (No such file or directory); was it removed?']


def test_results_of_two_models_do_not_mix(folder):
    for name in ('one.pth', 'two.pth'):
        (folder / name).write_text(name)
    one, two = (dict(model=str(folder / name), thresholds=None) for name in ('one.pth', 'two.pth'))
    outputs = Outputs(folder / 'out', ('ids',))
    start_folder(outputs, [], one, 'config')
    label(Stripes(), folder)
    start_folder(outputs, [], one, 'config')
    message = f'{folder}/out: holds predictions made with one.pth or other options; name another --out, or'
    for given in ((two, 'config'), (one, 'other bases'), (one, None), (one, 'config', ['a=1'])):
        with pytest.raises(InputError, match=re.escape(message)):
            start_folder(outputs, [], *given)
    assert (folder / 'out/ids/a/1.png').exists()
    start_folder(outputs, [], two, overwrite=True)
    assert not (folder / 'out/ids/a/1.png').exists()
    assert json.loads((folder / 'out/predictions.json').read_text())['files']['model']['name'] == 'two.pth'
    # What was known of removed results says nothing of new ones.
    assert not (folder / 'out/sources.jsonl').exists()
    assert label(Stripes(), folder, ('ids',)).written == 2


@pytest.mark.parametrize('names', ['unet.xml unet.bin', 'unet.onnx unet.onnx.data'])
def test_weights_beside_a_model_belong_to_it(tmp_path, names):
    model, weights = (tmp_path / name for name in names.split())
    model.write_text('network')
    weights.write_text('weights')
    outputs = Outputs(tmp_path / 'out')
    start_folder(outputs, [], dict(model=model))
    weights.write_text('other weights')
    with pytest.raises(InputError, match=f'made with {re.escape(model.name)} or other options'):
        start_folder(outputs, [], dict(model=model))


def test_files_of_one_name_are_told_apart(tmp_path):
    one, two = tmp_path / 'a/last.pth', tmp_path / 'b/last.pth'
    for path in (one, two):
        path.parent.mkdir()
        path.write_text(path.parent.name)
    outputs = Outputs(tmp_path / 'out')
    start_folder(outputs, [], dict(model=one, thresholds=two))
    with pytest.raises(InputError, match=re.escape('made with last.pth, last.pth or other')):
        start_folder(outputs, [], dict(model=two, thresholds=two))


@pytest.mark.parametrize('content', ['[{"image_id": 1}]', '{"files": []}', '{}', 'cut {', None])
@pytest.mark.parametrize('overwrite', [False, True])
def test_a_record_of_something_else_is_refused_and_kept(tmp_path, content, overwrite):
    record = tmp_path / 'predictions.json'
    if content is None:
        record.mkdir()
    else:
        record.write_text(content)
    touch(tmp_path / 'model.pth', tmp_path / 'ids/1.png')
    with pytest.raises(InputError, match=re.escape(f'{record}: is no record of predictions; name another')):
        start_folder(Outputs(tmp_path), [], dict(model=tmp_path / 'model.pth'), overwrite=overwrite)
    assert (tmp_path / 'ids/1.png').exists()


@pytest.mark.parametrize('overwrite', [False, True])
def test_results_without_a_record_are_refused_and_kept(tmp_path, overwrite):
    result = tmp_path / 'out/ids/town/1.png'
    touch(tmp_path / 'model.pth', result)
    message = f'{result}: is there, and no predictions.json says what it was made with; name another --out'
    with pytest.raises(InputError, match=re.escape(message)):
        start_folder(Outputs(tmp_path / 'out'), [], dict(model=tmp_path / 'model.pth'), overwrite=overwrite)
    assert result.exists()
