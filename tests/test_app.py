"""The demo's pictures, limits and messages; end_to_end/test_demo.py drives its page in a browser."""

import json
import os
import re
import urllib.error
import urllib.request
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.cli import demo
from mmseg_unet_lyft.demo import app, server
from mmseg_unet_lyft.demo.app import (
    IMAGE,
    VIDEO,
    Model,
    entropy_picture,
    fit,
    kind_of,
    label_clip,
    label_image,
    shares_table,
    toggled_overlay,
    without_folders,
)
from mmseg_unet_lyft.demo.server import free_port, names_address
from mmseg_unet_lyft.errors import InputError, short_names
from mmseg_unet_lyft.inference.export import export_onnx
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.report.pictures import overlay, save_rgb
from mmseg_unet_lyft.synthetic.scenes import draw_frame

from .conftest import tree
from .test_segmenter import save_small
from .test_video import decode, difference, encode, shown_as


def named(name, classes, palette):
    """A model that has only names and colours."""
    return Model(name, '', SimpleNamespace(classes=classes, palette=palette))


def frames_of_drive(count, step=1):
    """BGR, 96x128."""
    drawn = (draw_frame('F1', step * number, height=96, width=128)[0] for number in range(count))
    return [np.ascontiguousarray(frame[..., ::-1]) for frame in drawn]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    path = save_small(tmp_path_factory.mktemp('demo') / 'random.pth')
    return Model('random.pth', path, Segmenter(path))


@pytest.fixture
def frame_file(tmp_path):
    save_rgb(tmp_path / 'frame.png', draw_frame('F1', 3, height=96, width=128)[0])
    return tmp_path / 'frame.png'


# --- pictures ----------------------------------------------------------------------------------------------


def test_only_the_classes_that_are_shown_are_coloured():
    image, label = np.full((1, 3, 3), 50, np.uint8), np.array([[0, 1, 255]], np.uint8)
    model = named('m', ['road', 'car'], [[100, 0, 0], [0, 0, 200]])
    painted = toggled_overlay(image, label, model, ['car'], 0.4)
    # 0.4 * (0, 0, 200) + 0.6 * 50; road is not shown, and 255 is not a class.
    np.testing.assert_array_equal(painted, [[[50, 50, 50], [30, 30, 110], [50, 50, 50]]])
    np.testing.assert_array_equal(toggled_overlay(image, label, model, [], 1.0), image)
    both = toggled_overlay(image[:, :2], label[:, :2], model, ['road', 'car'], 0.5)
    np.testing.assert_array_equal(both, overlay(image[:, :2], label[:, :2], model.segmenter.palette))


def test_the_table_lists_what_occurs_by_share_and_escapes_names():
    model = named('<m>.onnx', ['a', '<b>', 'c'], [[0, 0, 0]] * 3)
    table = shares_table([(model, np.array([0.25, 0.75, 0.0]))])
    places = [
        table.index(text) for text in ('&lt;m&gt;.onnx', '&lt;b&gt;', '75.0 %', '</span>a</td>', '25.0 %')
    ]
    assert places == sorted(places)
    assert '<b>' not in table
    assert '>c</td>' not in table


def test_large_pictures_are_shown_smaller_and_labels_keep_their_ids(monkeypatch):
    label = np.repeat(np.array([[3, 9]], np.uint8), 50, axis=1).repeat(40, axis=0)
    assert fit(label, is_label=True) is label
    monkeypatch.setattr(app, 'MOST_SHOWN_PIXELS', 1000)
    small = fit(label, is_label=True)
    assert small.shape == (20, 50)
    assert set(np.unique(small)) == {3, 9}


# --- labelling ---------------------------------------------------------------------------------------------


def test_an_image_is_answered_as_the_segmenter_answers(model, frame_file, tmp_path):
    frame = cv2.imread(str(frame_file))
    seen = label_image([model], frame_file, tmp_path / 'out')
    (answer,) = seen.answers
    expected = model.segmenter(frame, colours='BGR')
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(answer.label, expected)
    np.testing.assert_array_equal(np.asarray(Image.open(answer.file)), expected)
    np.testing.assert_array_equal(seen.image, frame[..., ::-1])
    assert answer.shares == pytest.approx([(expected == index).mean() for index in range(13)])
    # The plain softmax's entropy, by hand.
    shares = model.segmenter.probabilities(frame, colours='BGR')
    nats = -(shares * np.log(np.maximum(shares, 1e-30))).sum(axis=0)
    assert difference(answer.uncertainty, entropy_picture(nats, 13)) < 0.1


@pytest.mark.parametrize('probabilities', [False, True])
def test_an_exported_file_has_uncertainty_if_it_gives_probabilities(
    model, frame_file, tmp_path, probabilities
):
    path = export_onnx(model.segmenter.network, tmp_path / 'unet.onnx', probabilities=probabilities)
    models = [Model('a', model.path, model.segmenter), Model('b', str(path), Segmenter(path))]
    seen = label_image(models, frame_file, tmp_path)
    pictures = [one.uncertainty for one in seen.answers]
    assert [one is not None for one in pictures] == [True, probabilities]
    assert not probabilities or difference(*pictures) < 0.1
    # Both write, and neither over the other.
    assert len({one.file for one in seen.answers}) == 2


def test_an_image_waits_for_its_turn_only_so_long(model, frame_file, tmp_path, monkeypatch):
    monkeypatch.setattr(app, 'MOST_SECONDS', 0.05)
    with app._turn, pytest.raises(InputError, match='not labelled within'):
        label_image([model], frame_file, tmp_path)
    assert label_image([model], frame_file, tmp_path).answers


def test_a_clip_is_bounded_and_shows_what_the_segmenter_says(model, tmp_path, monkeypatch):
    monkeypatch.setattr(app, 'MOST_FRAMES', 4)
    source, steps = encode(tmp_path / 'drive.mp4', frames_of_drive(6, step=9)), []
    clip = label_clip(model, source, tmp_path / 'out', 0.8, progress=lambda *step: steps.append(step))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert 'first 4 frames' in clip.notes[0]
    written, read = decode(clip.path), decode(source)
    assert len(written) == clip.frames == 4
    for one, frame in zip(written, read, strict=False):
        expected = shown_as(frame, model.segmenter(frame, colours='BGR'), model.segmenter, 0.8)
        assert difference(one, expected) < 4


def test_a_clip_that_takes_too_long_is_shown_so_far(model, tmp_path, monkeypatch):
    monkeypatch.setattr(app, 'MOST_SECONDS', 0)
    source = encode(tmp_path / 'drive.mp4', frames_of_drive(6))
    clip = label_clip(model, source, tmp_path / 'out', 0.8)
    assert 'first 0 frames' in clip.notes[0]


def test_a_clip_that_breaks_off_is_kept_and_says_so(model, tmp_path):
    source = encode(tmp_path / 'cut.mp4', frames_of_drive(12), movflags='faststart')
    content = source.read_bytes()
    source.write_bytes(content[: len(content) * 2 // 3])
    clip = label_clip(model, source, tmp_path / 'out', 0.5)
    assert 0 < clip.frames < 12
    (note,) = clip.notes
    assert note.startswith('cut.mp4: ')


@pytest.mark.parametrize(
    ('start', 'kind'),
    [
        (b'\x89PNG\r\n\x1a\n', IMAGE),
        (b'RIFF\0\0\0\0WEBPVP8 ', IMAGE),
        (b'\0\0\0\x20ftypisom', VIDEO),
        (b'RIFF\0\0\0\0AVI LIST', VIDEO),
    ],
)
def test_a_file_is_what_it_begins_with(tmp_path, start, kind):
    (tmp_path / 'x').write_bytes(start + bytes(16))
    assert kind_of(tmp_path / 'x') == kind


@pytest.mark.parametrize('start', [b'', b'#EXTM3U\n', b'ffconcat version 1.0', b'%!PS-Adobe', b'<svg>'])
def test_playlists_and_programs_are_refused_whatever_their_name(tmp_path, start):
    (tmp_path / 'x.mp4').write_bytes(start)
    with pytest.raises(InputError, match=r'x\.mp4'):
        kind_of(tmp_path / 'x.mp4')


def test_names_are_as_short_as_tells_paths_apart():
    assert short_names(['/w/a/best.pth']) == ['best.pth']
    assert short_names(['/w/a/best.pth', '/w/a/unet.onnx']) == ['best.pth', 'unet.onnx']
    assert short_names(['/w/a/best.pth', '/w/b/best.pth']) == ['a/best.pth', 'b/best.pth']
    assert short_names(['/w/a/best.pth', '/w/a/best.pth']) == ['best.pth (1)', 'best.pth (2)']


def test_messages_name_files_without_folders():
    paths = Path('/srv/a/x.png'), Path('/srv/m/unet.onnx')
    error = InputError(f'{paths[0]}: does not fit {paths[1]}')
    assert without_folders(error, *paths) == 'x.png: does not fit unet.onnx'


# --- the server --------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize('body', [b'{', b'[' * 100_000, b'[' * 9000 + b']' * 9000])
def test_requests_that_are_not_plain_json_are_refused(body):
    assert names_address(body)


def test_a_taken_port_is_named_and_the_next_one_taken():
    port = free_port('127.0.0.1', None)
    with server.socket.create_server(('127.0.0.1', port)):
        with pytest.raises(InputError, match=rf'127\.0\.0\.1 --port {port}: '):
            free_port('127.0.0.1', port)
        assert free_port('127.0.0.1', None) != port


@pytest.mark.parametrize(
    ('host', 'port'),
    [('192.0.2.1', 7870), ('a' * 70, None), ('127.0.0.1', 70000), ('127.0.0.1', 0), ('127.0.0.1', -1)],
)
def test_an_address_that_cannot_be_listened_on_is_named(host, port):
    with pytest.raises(InputError, match=rf'--port {7860 if port is None else port}: '):
        free_port(host, port)


def test_the_oldest_files_make_room_and_examples_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(server, 'MOST_KEPT', 100)
    for age, name in enumerate(['examples/a.png', 'new/a.png', 'older/b.png', 'oldest/c.png']):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_bytes(bytes(40))
        os.utime(path, (1000 - age, 1000 - age))
    server.make_room(tmp_path, 50)
    assert sorted(tree(tmp_path)) == ['examples/a.png', 'new/a.png']


def ask(url, content=None, **headers):
    """Status, headers and body of an answer."""
    headers = {name.replace('_', '-'): value for name, value in headers.items()}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, content, headers))
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.headers, answer.read()


def upload(url, name, content, **headers):
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    form = head.encode() + content + b'\r\n--x--\r\n'
    return ask(f'{url}gradio_api/upload', form, Content_Type='multipart/form-data; boundary=x', **headers)


@pytest.fixture(scope='module')
def served(model):
    pytest.importorskip('gradio')
    with app.demo([model]) as url:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize('name', ['x.html', 'x.svg', 'x.xhtml', 'x.mjs', 'x.png'])
def test_an_upload_is_not_given_back(served, name):
    status, _, body = upload(served, name, b'<script>alert(1)</script>')
    (path,) = json.loads(body)
    assert status == 200
    for route in ('file=', 'file/'):
        status, headers, body = ask(f'{served}gradio_api/{route}{path}')
        assert status >= 400
        assert b'alert' not in body


@pytest.mark.slow
def test_only_pictures_of_the_demo_are_shown_and_pages_run_no_other_script(served):
    _, headers, page = ask(served)
    assert "default-src 'self'" in headers['Content-Security-Policy']
    assert headers['X-Content-Type-Options'] == 'nosniff'
    (name, *_) = re.findall(r'[^"]*/examples/F1-3\.png', page.decode())
    _, headers, _ = ask(f'{served}gradio_api/file={name}')
    assert (headers['Content-Type'], headers['Content-Disposition']) == ('image/png', 'inline')
    (Path(name).parent / 'planted.html').write_text('<script>alert(1)</script>')
    _, headers, _ = ask(f'{served}gradio_api/file={Path(name).parent}/planted.html')
    assert (headers['Content-Type'], headers['Content-Disposition']) == (
        'application/octet-stream',
        'attachment',
    )


@pytest.mark.slow
def test_pages_of_others_and_their_headers_change_nothing(served):
    for origin in ('http://evil.example', 'null', 'http://['):
        assert upload(served, 'x.png', b'x', Origin=origin)[0] == 403
        assert ask(f'{served}gradio_api/queue/join', b'{}', Origin=origin)[0] == 403
    assert upload(served, 'x.png', b'x', Origin=served.rstrip('/'))[0] == 200
    forwarded = dict(
        X_Forwarded_Host='evil.example', X_Forwarded_Proto='https', X_Gradio_Server='http://evil'
    )
    page = ask(served, **forwarded)[2]
    assert b'evil' not in page
    assert served.replace('http', 'https').encode() not in page


@pytest.mark.slow
def test_an_upload_that_is_too_large_is_refused(served, monkeypatch):
    monkeypatch.setattr(server, 'MOST_UPLOADED', 1000)
    assert upload(served, 'x.png', bytes(100_000))[0] == 413


# --- the command -------------------------------------------------------------------------------------------


def test_a_missing_gradio_is_named_before_a_model_is_read(monkeypatch, capsys):
    found = util.find_spec
    monkeypatch.setattr(server, 'find_spec', lambda name: None if name == 'gradio' else found(name))
    assert demo.main(['no.pth']) == 2
    error = capsys.readouterr().err
    assert 'gradio' in error
    assert '[demo]' in error


@pytest.mark.parametrize(
    ('words', 'named'),
    [
        (['a.pth', 'b.onnx', 'c.pth'], 'a.pth b.onnx c.pth'),
        (['frame.png'], 'frame.png'),
        (['a.pth', 'x.py'], 'a.pth x.py'),
        ([], ''),
    ],
)
def test_command_lines_that_make_no_sense_are_refused(monkeypatch, capsys, words, named):
    monkeypatch.delenv('LYFT_MODEL', raising=False)
    assert demo.main(words) == 2
    assert f'error: {named}' in capsys.readouterr().err
