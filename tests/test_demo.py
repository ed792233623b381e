"""The demo's pictures, limits and messages, without a server; end_to_end/test_demo.py drives the page."""

from __future__ import annotations

import json
import struct
import zlib
from importlib import util
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.apps import server
from mmseg_unet_lyft.apps.labelling import (
    IMAGE,
    VIDEO,
    Model,
    kind_of,
    label_clip,
    label_image,
    model_names,
    without_folders,
)
from mmseg_unet_lyft.apps.pictures import class_shares, entropy_picture, fit, shares_table, toggled_overlay
from mmseg_unet_lyft.apps.server import free_port, names_address
from mmseg_unet_lyft.cli import demo
from mmseg_unet_lyft.datasets.scenes import draw_frame
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.export import export_onnx
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.report.figures import overlay, save_rgb

from .test_segmenter import OPTIONS, save_random
from .test_video import decode, difference, encode, shown_as

CLASSES, PALETTE = ['road', 'car'], [[100, 0, 0], [0, 0, 200]]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    path = save_random(
        load_config('configs/unet_lyft_bn.py', OPTIONS), tmp_path_factory.mktemp('demo') / 'random.pth'
    )
    return Model('random.pth', path, Segmenter(path))


@pytest.fixture
def frame_file(tmp_path):
    save_rgb(tmp_path / 'frame.png', draw_frame('F1', 3, height=96, width=128)[0])
    return tmp_path / 'frame.png'


def test_colours_are_laid_over_the_shown_classes_alone():
    image = np.full((1, 3, 3), 50, np.uint8)
    label = np.array([[0, 1, 255]], np.uint8)
    painted = toggled_overlay(image, label, CLASSES, PALETTE, ['car'], 0.4)
    # 0.4 * (0, 0, 200) + 0.6 * 50; road is not shown, and 255 is no class.
    np.testing.assert_array_equal(painted, [[[50, 50, 50], [30, 30, 110], [50, 50, 50]]])
    np.testing.assert_array_equal(toggled_overlay(image, label, CLASSES, PALETTE, [], 1.0), image)


def test_shares_are_of_all_pixels():
    label = np.array([[0, 1, 1, 1]], np.uint8)
    np.testing.assert_array_equal(class_shares(label, 3), [0.25, 0.75, 0.0])


def test_the_table_lists_what_occurs_by_share_and_escapes_names():
    table = shares_table([('<m>.onnx', ['a', '<b>', 'c'], [[0, 0, 0]] * 3, np.array([0.25, 0.75, 0.0]))])
    assert '&lt;m&gt;.onnx' in table
    assert (
        table.index('&lt;b&gt;')
        < table.index('75.0 %')
        < table.index('</span>a</td>')
        < table.index('25.0 %')
    )
    assert '<b>' not in table
    assert '>c</td>' not in table


def test_entropy_goes_from_dark_to_light():
    nats = np.array([[0.0, np.log(4) / 2, np.log(4)]])
    light = entropy_picture(nats, 4).astype(int).sum(axis=2)[0]
    assert light[0] < 10
    assert light[0] < light[1] < light[2]


def test_large_pictures_are_shown_smaller_and_labels_keep_their_ids():
    label = np.repeat(np.array([[3, 9]], np.uint8), 50, axis=1).repeat(40, axis=0)
    small = fit(label, is_label=True, most=1000)
    assert small.shape == (20, 50)
    assert set(np.unique(small)) == {3, 9}
    assert fit(label, is_label=True) is label


def test_an_image_is_answered_as_the_segmenter_answers(model, frame_file, tmp_path):
    frame = cv2.imread(str(frame_file))
    seen = label_image([model], frame_file, tmp_path / 'out')
    (answer,) = seen.answers
    expected = model.segmenter(frame, colours='BGR')
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(answer.label, expected)
    np.testing.assert_array_equal(np.asarray(Image.open(answer.file)), expected)
    np.testing.assert_array_equal(seen.image, frame[..., ::-1])
    # The plain softmax's entropy, by hand.
    shares = model.segmenter.probabilities(frame, colours='BGR')
    nats = -(shares * np.log(np.maximum(shares, 1e-30))).sum(axis=0)
    assert difference(answer.uncertainty, entropy_picture(nats, 13)) < 0.1


def test_an_exported_file_has_no_uncertainty(model, frame_file, tmp_path):
    path = export_onnx(model.segmenter.network, tmp_path / 'unet.onnx')
    seen = label_image(
        [Model('a', model.path, model.segmenter), Model('b', str(path), Segmenter(path))],
        frame_file,
        tmp_path,
    )
    assert [one.uncertainty is None for one in seen.answers] == [False, True]
    # Both write, and neither over the other.
    assert len({one.file for one in seen.answers}) == 2


def test_a_clip_is_bounded_and_shows_what_the_segmenter_says(model, tmp_path):
    frames = [draw_frame('F1', 9 * number, height=96, width=128)[0][..., ::-1] for number in range(6)]
    source = encode(tmp_path / 'drive.mp4', [np.ascontiguousarray(frame) for frame in frames])
    steps = []
    clip = label_clip(
        model, source, tmp_path / 'out', 0.8, most_frames=4, progress=lambda *step: steps.append(step)
    )
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert clip.notes == ['the first 4 frames; the command video labels whole videos']
    written, read = decode(clip.path), decode(source)
    assert len(written) == clip.frames == 4
    for one, frame in zip(written, read, strict=False):
        expected = shown_as(frame, model.segmenter(frame, colours='BGR'), model.segmenter, 0.8)
        assert difference(one, expected) < 4


def test_a_clip_that_breaks_off_is_kept_and_says_so(model, tmp_path):
    frames = [np.ascontiguousarray(draw_frame('F1', number, height=96, width=128)[0]) for number in range(12)]
    source = encode(tmp_path / 'cut.mp4', frames, movflags='faststart')
    content = source.read_bytes()
    source.write_bytes(content[: len(content) * 2 // 3])
    clip = label_clip(model, source, tmp_path / 'out', 0.5)
    assert 0 < clip.frames < 12
    (note,) = clip.notes
    assert note.startswith('cut.mp4: broken or cut behind frame')


@pytest.mark.parametrize(
    ('start', 'kind'),
    [
        (b'\x89PNG\r\n\x1a\n', IMAGE),
        (b'\xff\xd8\xff\xe0', IMAGE),
        (b'RIFF\0\0\0\0WEBPVP8 ', IMAGE),
        (b'\0\0\0\x20ftypisom', VIDEO),
        (b'\x1a\x45\xdf\xa3', VIDEO),
        (b'RIFF\0\0\0\0AVI LIST', VIDEO),
    ],
)
def test_a_file_is_what_it_begins_with(tmp_path, start, kind):
    (tmp_path / 'x').write_bytes(start + bytes(16))
    assert kind_of(tmp_path / 'x') == kind


@pytest.mark.parametrize('start', [b'', b'#EXTM3U\n', b'ffconcat version 1.0', b'%!PS-Adobe', b'<svg>'])
def test_playlists_and_programs_are_refused_whatever_their_name(tmp_path, start):
    (tmp_path / 'x.mp4').write_bytes(start)
    with pytest.raises(InputError, match=r'x\.mp4: is neither an image .* nor a video .* by its content'):
        kind_of(tmp_path / 'x.mp4')


def test_a_gigantic_image_is_refused_by_its_header(model, tmp_path):
    header = struct.pack('>IIBBBBB', 9000, 9000, 8, 2, 0, 0, 0)
    chunk = b'IHDR' + header
    content = b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + chunk + struct.pack('>I', zlib.crc32(chunk))
    (tmp_path / 'x.png').write_bytes(content)
    with pytest.raises(InputError, match=r'x\.png: 9000x9000 is 81 MP, more than the 64 MP that are read'):
        label_image([model], tmp_path / 'x.png', tmp_path)


def test_models_of_one_name_are_told_apart_by_their_folders():
    assert model_names(['/w/a/best.pth']) == ['best.pth']
    assert model_names(['/w/a/best.pth', '/w/a/unet.onnx']) == ['best.pth', 'unet.onnx']
    assert model_names(['/w/a/best.pth', '/w/b/best.pth']) == ['a/best.pth', 'b/best.pth']
    assert model_names(['/w/a/best.pth', '/w/a/best.pth']) == ['best.pth', 'best.pth']


def test_messages_name_files_without_folders():
    error = InputError('/srv/a/x.png: does not fit /srv/m/unet.onnx')
    assert (
        without_folders(error, Path('/srv/a/x.png'), Path('/srv/m/unet.onnx'))
        == 'x.png: does not fit unet.onnx'
    )


@pytest.mark.parametrize(
    ('value', 'refused'),
    [
        (dict(data=[dict(path='/tmp/a.png', url='http://127.0.0.1:7860/file=/tmp/a.png'), 0.5]), False),
        (dict(data=[dict(path='https://example.com/a.png')]), True),
        (dict(data=[[dict(x=dict(path=' http://10.0.0.1/'))]]), True),
        (None, False),
    ],
)
def test_addresses_in_a_files_place_are_found(value, refused):
    assert names_address(json.dumps(value).encode()) is refused


@pytest.mark.parametrize('body', [b'{', b'[' * 100_000, b'[' * 60 + b']' * 60])
def test_requests_that_are_no_plain_json_are_refused(body):
    assert names_address(body)


def test_a_taken_port_and_a_foreign_address_are_named():
    port = free_port('127.0.0.1', None)
    with server.socket.create_server(('127.0.0.1', port)):
        with pytest.raises(InputError, match=rf'--host 127\.0\.0\.1 --port {port}: cannot be listened on \('):
            free_port('127.0.0.1', port)
        assert free_port('127.0.0.1', None) != port
    with pytest.raises(InputError, match=r'--host 192\.0\.2\.1 .*cannot be listened on \('):
        free_port('192.0.2.1', port)


@pytest.mark.parametrize('port', [70000, 0, -1])
def test_a_port_that_is_none_is_named(port):
    with pytest.raises(InputError, match=rf'--port {port}: give 1 to 65535'):
        free_port('127.0.0.1', port)


def test_a_host_of_more_letters_than_a_name_has_is_named():
    host = 70 * 'a'
    with pytest.raises(InputError, match=rf'--host {host} --port 7860: cannot be listened on \('):
        free_port(host, None)


def test_the_environments_model_goes_with_a_config_and_alone(monkeypatch):
    monkeypatch.setenv('LYFT_MODEL', 'a.pth')
    assert demo._models([]) == [(None, 'a.pth')]
    assert demo._models(['c.py']) == [('c.py', 'a.pth')]
    assert demo._models(['c.py', 'b.pth', 'd.onnx']) == [('c.py', 'b.pth'), (None, 'd.onnx')]


def test_a_missing_gradio_is_named_before_a_model_is_read(monkeypatch, capsys):
    found = util.find_spec
    monkeypatch.setattr(server, 'find_spec', lambda name: None if name == 'gradio' else found(name))
    assert demo.main(['no.pth']) == 2
    error = capsys.readouterr().err
    assert 'error: the demo needs gradio; install with: pip install' in error
    assert '[demo]' in error


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['a.pth', 'b.onnx', 'c.pth'], 'a.pth b.onnx c.pth: name one model, or two to compare them'),
        (['frame.png'], 'frame.png: is no model'),
        (['x.py', 'y.py', 'a.pth'], 'y.py: is no model'),
        (['a.pth', 'x.py'], 'a.pth x.py: name one model, or two to compare them'),
        ([], 'no model is named: name one model, or two to compare them'),
        (['a.pth', '--max-megapixels', '0'], '--max-megapixels 0.0: give a number above 0'),
    ],
)
def test_command_lines_that_make_no_sense_are_refused(monkeypatch, capsys, words, message):
    monkeypatch.delenv('LYFT_MODEL', raising=False)
    assert demo.main(words) == 2
    assert f'error: {message}' in capsys.readouterr().err


def test_without_toggles_it_is_the_overlay_of_the_other_commands(model, frame_file):
    image = cv2.imread(str(frame_file))[..., ::-1]
    label = model.segmenter(np.ascontiguousarray(image), colours='RGB')
    classes, palette = model.segmenter.classes, model.segmenter.palette
    painted = toggled_overlay(image, label, classes, palette, classes, 0.5)
    np.testing.assert_array_equal(painted, overlay(image, label, palette))
