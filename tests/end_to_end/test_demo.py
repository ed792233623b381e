"""The demo in a real browser: what it shows is what `Segmenter` says, and it calls no other address."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from http.client import IncompleteRead
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from mmseg_unet_lyft.demo.app import Model, demo, entropy_picture
from mmseg_unet_lyft.inference.export import export_onnx
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.report.pictures import overlay, save_rgb
from mmseg_unet_lyft.synthetic.scenes import draw_frame

from ..test_app import frames_of_drive
from ..test_segmenter import save_small
from ..test_video import decode, difference, encode, shown_as

pytestmark = [pytest.mark.slow, pytest.mark.browser]
SECONDS = 60
NEWS = 'img:not([src=""])'


class CountingSegmenter(Segmenter):
    """One that knows how often it labelled."""

    calls = 0

    def __call__(self, frames: np.ndarray, *, colours: str) -> np.ndarray:
        self.calls += 1
        return super().__call__(frames, colours=colours)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp('demo') / 'unet.pth')


@pytest.fixture(scope='module')
def onnx_file(checkpoint, tmp_path_factory):
    return export_onnx(Segmenter(checkpoint).network, tmp_path_factory.mktemp('demo_onnx') / 'unet.onnx')


@pytest.fixture(scope='module')
def served(checkpoint, onnx_file):
    """The segmenter of a checkpoint, and the address where it is shown next to its exported file."""
    segmenter = CountingSegmenter(checkpoint)
    models = [
        Model('unet.pth', checkpoint, segmenter),
        Model('unet.onnx', str(onnx_file), Segmenter(onnx_file)),
    ]
    with demo(models) as url:
        yield segmenter, url


@pytest.fixture
def frame_file(tmp_path):
    save_rgb(tmp_path / 'frame.png', draw_frame('F2', 7, height=96, width=128)[0])
    return tmp_path / 'frame.png'


class Visit:
    """A visit to the page, by what a person does."""

    def __init__(self, browser, url: str) -> None:
        self.browser, self.url = browser, url
        browser.get_log('browser')
        browser.get(url)

    def wait(self, see: Callable[[], object]) -> object:
        """What ``see`` gives, as soon as it gives something."""
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        gone = (NoSuchElementException, StaleElementReferenceException)
        return WebDriverWait(self.browser, SECONDS, 0.2, gone).until(lambda _: see())

    def find(self, selector: str):
        """The first element there is."""
        return self.wait(lambda: self.browser.find_element('css selector', selector))

    def upload(self, path: Path) -> None:
        """Choose a file, in place of an earlier one."""
        for button in self.browser.find_elements('css selector', '#upload button[aria-label="Clear"]'):
            button.click()
        self.find('#upload input[type=file]').send_keys(str(path))

    def tab(self, name: str) -> None:
        """Open a tab."""
        tabs = self.browser.find_elements('css selector', 'button[role=tab]')
        next(tab for tab in tabs if tab.text == name).click()

    def source(self, selector: str, earlier: str | None = None) -> str:
        """Address of a picture or a video, once there is one that is not the earlier one."""

        def new() -> str | None:
            found = self.browser.find_element('css selector', selector).get_attribute('src')
            return found if found and found != earlier else None

        return self.wait(new)

    def said(self, text: str) -> str:
        """What stands below the picture, once it holds a text."""

        def said() -> str | None:
            found = ' '.join(self.browser.find_element('id', 'said').get_attribute('textContent').split())
            return found if text in found else None

        return self.wait(said)

    def errors(self) -> list[str]:
        """What went wrong in the page so far."""
        return [entry['message'] for entry in self.browser.get_log('browser') if entry['level'] == 'SEVERE']

    def strangers(self) -> list[str]:
        """Addresses the page asked for that are not the demo's."""
        asked = self.browser.execute_script(
            "return performance.getEntriesByType('resource').map(entry => entry.name)"
        )
        assert len(asked) > 10
        return [one for one in asked if not one.startswith((self.url, 'data:', 'blob:'))]


@pytest.fixture
def visit(browser, served):
    visit = Visit(browser, served[1])
    yield visit
    assert visit.errors() == []
    assert visit.strangers() == []


def browser_text(visit: Visit, selector: str) -> str:
    """What can be read in an element, in one line."""
    return ' '.join(visit.browser.find_element('css selector', selector).text.split())


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        return answer.read()


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(fetch(url))))


def test_what_is_shown_is_what_the_segmenter_says(served, visit, frame_file):
    segmenter, _ = served
    image = cv2.imread(str(frame_file))[..., ::-1]
    label = segmenter(np.ascontiguousarray(image), colours='RGB')
    largest = int(np.bincount(label.ravel()).argmax())
    visit.upload(frame_file)
    visit.said('frame.png, 128x96')
    shown = visit.source('#overlay img')
    np.testing.assert_array_equal(pixels(shown), overlay(image, label, segmenter.palette, 0.5))
    table = visit.find('#shares').text
    assert f'{segmenter.classes[largest]}\n{100 * (label == largest).mean():.1f} %' in table
    np.testing.assert_array_equal(pixels(visit.find('#files a').get_attribute('href')), label)
    calls = segmenter.calls

    visit.wait(lambda: visit.browser.find_elements('css selector', '#classes label')[largest:])
    boxes = {label.text: label for label in visit.browser.find_elements('css selector', '#classes label')}
    boxes[segmenter.classes[largest]].click()
    toggled = visit.source('#overlay img', earlier=shown)
    expected = overlay(image, label, segmenter.palette, 0.5)
    expected[label == largest] = image[label == largest]
    np.testing.assert_array_equal(pixels(toggled), expected)

    number = visit.find('#opacity input[type=number]')
    visit.browser.execute_script('arguments[0].select()', number)
    number.send_keys('0.8\t')
    painted = overlay(image, label, segmenter.palette, 0.8)
    others = label != largest

    def is_stronger() -> bool:
        # Each typed character paints again, and the page drops a picture that it has replaced.
        try:
            return np.array_equal(pixels(visit.source('#overlay img'))[others], painted[others])
        except (UnidentifiedImageError, urllib.error.HTTPError, IncompleteRead):
            return False

    visit.wait(is_stronger)
    assert segmenter.calls == calls


def test_two_models_lie_over_each_other_and_the_uncertainty_is_the_first_ones(served, visit, frame_file):
    segmenter, _ = served
    visit.upload(frame_file)
    visit.said('unet.onnx')
    visit.tab('Compare')
    visit.wait(lambda: len(visit.browser.find_elements('css selector', f'#compare {NEWS}')) >= 2)
    sides = [
        one.get_attribute('src') for one in visit.browser.find_elements('css selector', f'#compare {NEWS}')
    ]
    first, second = (pixels(one) for one in sides[:2])
    # The exported file labels as its checkpoint does.
    assert (first != second).any(axis=2).mean() < 1e-3
    visit.tab('Uncertainty')
    image = cv2.imread(str(frame_file))
    _, entropy = segmenter.uncertainty(image, colours='BGR', passes=1)
    expected = entropy_picture(entropy, len(segmenter.classes))
    assert len(np.unique(expected)) > 10
    np.testing.assert_array_equal(pixels(visit.source('#uncertainty img')), expected)
    visit.wait(lambda: 'unet.pth gives' in browser_text(visit, 'body'))


def test_an_example_is_labelled(visit):
    visit.wait(lambda: visit.browser.find_elements('css selector', '#examples button img'))
    visit.browser.find_elements('css selector', '#examples button')[0].click()
    visit.said('F1-3.png, 800x600')
    assert pixels(visit.source('#overlay img')).shape == (600, 800, 3)


def test_a_video_becomes_an_overlay(served, visit, tmp_path):
    segmenter, _ = served
    source = encode(tmp_path / 'drive.mp4', frames_of_drive(6, step=9))
    visit.upload(source)
    visit.said('drive.mp4: 6 frames')
    (tmp_path / 'overlay.mp4').write_bytes(fetch(visit.source('#video video')))
    written = decode(tmp_path / 'overlay.mp4')
    assert len(written) == 6
    for one, frame in zip(written, decode(source), strict=True):
        assert difference(one, shown_as(frame, segmenter(frame, colours='BGR'), segmenter)) < 4


def test_a_broken_file_gives_a_message_and_the_page_goes_on(visit, frame_file, tmp_path, capfd):
    (tmp_path / 'broken.png').write_bytes(frame_file.read_bytes()[:3000])
    visit.upload(tmp_path / 'broken.png')
    message = visit.wait(lambda: browser_text(visit, '.toast-body'))
    assert 'broken.png: ' in message
    assert '/' not in message
    (tmp_path / 'list.mp4').write_text('#EXTM3U\nhttp://127.0.0.1:1/a.ts\n')
    visit.upload(tmp_path / 'list.mp4')
    visit.wait(lambda: 'list.mp4: is neither' in browser_text(visit, 'body'))
    visit.upload(frame_file)
    visit.said('frame.png, 128x96')
    assert 'Traceback' not in visit.browser.page_source
    assert 'Traceback' not in ''.join(capfd.readouterr())


@pytest.mark.parametrize('width', [400, 1400])
def test_the_page_fits_its_window(visit, frame_file, width):
    sizes = dict(width=width, height=1000, deviceScaleFactor=1, mobile=False)
    visit.browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', sizes)
    try:
        visit.upload(frame_file)
        visit.said('frame.png, 128x96')
        visit.source('#overlay img')
        assert visit.browser.execute_script('return document.documentElement.scrollWidth') <= width
    finally:
        visit.browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


def status(url: str, data: object = None, **headers: str) -> int:
    content = None if data is None else json.dumps(data).encode()
    headers |= {'Content-Type': 'application/json'}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, content, headers)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_no_address_is_fetched_and_no_other_file_is_served(served, checkpoint):
    _, url = served
    for path in ('http://127.0.0.1:1/x.png', checkpoint, str(Path('README.md').resolve()), '/etc/hostname'):
        assert status(f'{url}gradio_api/file={path}') == 403
    assert status(url, Host='attacker.example') == 400
    file = dict(path='http://127.0.0.1:1/x.png', meta=dict(_type='gradio.FileData'))
    event = dict(data=[file, 0.5, []], fn_index=0, session_hash='raw')
    assert status(f'{url}gradio_api/queue/join', event) == 403
    # A path passes, and is found not to be an upload; the answer does not say why.
    file['path'] = checkpoint
    assert status(f'{url}gradio_api/queue/join', event) == 200
    answer = fetch(f'{url}gradio_api/queue/data?session_hash=raw').decode()
    assert '"output":{"error":null}' in answer
    assert checkpoint not in answer


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_where_it_runs_and_ends_cleanly(onnx_file, tmp_path, number):
    with ExitStack() as stack:
        process = subprocess.Popen(
            [sys.executable, 'tools/demo.py', str(onnx_file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, 'TMPDIR': str(tmp_path), 'HTTP_PROXY': 'http://127.0.0.1:1'},
        )
        stack.callback(process.kill)
        first, last = process.stdout.readline(), process.stdout.readline().strip()
        assert first == 'Ctrl-C ends it; open to this machine:\n'
        assert last.startswith('http://127.0.0.1:')
        assert b'U-Net on driving scenes' in fetch(last)
        assert list(tmp_path.glob('lyft_demo_*'))
        process.send_signal(number)
        out, err = process.communicate(timeout=SECONDS)
        assert (process.returncode, out) == (128 + number, '')
        assert 'Traceback' not in err
        assert not list(tmp_path.glob('lyft_demo_*'))
