"""What an inspection writes and prints: the same bytes each time, and no name that acts as HTML or markup."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.cli.inspect_data import main

ROOT = Path(__file__).resolve().parents[1]
EVIL = '<img src=x onerror=alert(1)>'


class Page(HTMLParser):
    """Tags with their attributes, and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ''
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def frames(kaggle):
    for stem in ('F1-0', 'F1-1', 'F2-0', 'F3-0'):
        kaggle.add(stem)
    return kaggle


def run(frames, out: Path, *options: str) -> int:
    return main([str(frames.root), '--out', str(out), '--workers', '1', *options])


def test_sound_data_exit_with_0_and_leave_table_json_page_and_manifest(frames, tmp_path, capsys):
    out = tmp_path / 'out'
    assert run(frames, out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '4 frames, 4 sound'
    assert lines[-1] == f'wrote {out}'
    report = json.loads((out / 'inspection.json').read_text())
    assert (report['sound'], report['frames'], report['problems']) == (True, 4, [])
    assert [(one['split'], one['part'], one['frames']) for one in report['leaks'][:2]] == [
        ('ours (benchmark, by drive)', 'val', 1),
        ('ours (benchmark, by drive)', 'test', 1),
    ]
    assert len(json.loads((out / 'manifest.json').read_text())['files']) == 8
    page = Page(out / 'report.html')
    assert 'Sound: no problem found.' in page.text
    for heading in ('For training', 'Classes by drive and split', 'Frames with the rarest classes', 'Leaks'):
        assert heading in page.text


def test_problems_exit_with_2_and_are_in_table_json_and_page(frames, tmp_path, capsys):
    frames.add('F1-7', tags=40)
    out = tmp_path / 'out'
    assert run(frames, out) == 2
    printed = capsys.readouterr()
    message = (
        'dataA/dataA/CameraSeg/F1-7.png: 768 pixels with class ids outside 0 to 12 (40), first 40 at (row 0'
    )
    assert '     1  class id out of range (bad_id)' in printed.out
    assert message in printed.out
    assert printed.err.endswith(f'error: {frames.root}: 1 problems; see {out / "report.html"}\n')
    report = json.loads((out / 'inspection.json').read_text())
    assert (report['sound'], report['counts'], report['sound_frames']) == (False, {'bad_id': 1}, 4)
    assert report['problems'][0]['path'] == 'dataA/dataA/CameraSeg/F1-7.png'
    page = Page(out / 'report.html')
    assert 'Worst offenders' in page.text
    # The offender is shown.
    offender = next(attrs['src'] for tag, attrs in page.tags if tag == 'img' and attrs['src'])
    assert offender.startswith('data:image/jpeg;base64,')


def test_histograms_show_the_shares_of_each_drive(frames, tmp_path):
    tags = np.full((24, 32), 7, np.uint8)
    tags[:6] = 9
    frames.add('02_00_000', tags=tags)
    run(frames, tmp_path)
    page = (tmp_path / 'report.html').read_text()
    row = page[page.index('drive 02_00') :].partition('</tr>')[0]
    assert 'title="Roads 75.000 %" style="width:75.000%;background:rgb(128, 64, 128)"' in row
    assert 'title="Vegetation 25.000 %"' in row


def test_the_same_data_give_the_same_bytes(frames, tmp_path):
    frames.add('F1-8')[0].write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(100))
    for out in ('one', 'two'):
        run(frames, tmp_path / out)
    for name in ('inspection.json', 'manifest.json', 'report.html'):
        assert (tmp_path / 'one' / name).read_bytes() == (tmp_path / 'two' / name).read_bytes(), name


def test_an_earlier_manifest_is_compared_with_and_kept(frames, tmp_path, capsys):
    assert run(frames, tmp_path) == 0
    before = (tmp_path / 'manifest.json').read_bytes()
    path = frames.root / 'dataA/dataA/CameraRGB/F1-0.png'
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(path)
    assert run(frames, tmp_path) == 2
    assert 'replaced since the manifest (replaced)' in capsys.readouterr().out
    assert (tmp_path / 'manifest.json').read_bytes() == before
    assert run(frames, tmp_path, '--new-manifest') == 0
    assert (tmp_path / 'manifest.json').read_bytes() != before
    assert run(frames, tmp_path) == 0


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows allows no such names')
def test_names_are_text_in_the_page_and_in_the_terminal(frames, tmp_path, capsys):
    folder = frames.root / 'dataA/dataA/CameraRGB'
    (folder / f'{EVIL}.png').write_bytes(b'')
    (folder / '[red]\x1b[2J"\'>.txt').write_bytes(b'')
    (folder / b'\xff\xfe.txt'.decode('utf-8', 'surrogateescape')).write_bytes(b'')
    evil_root = frames.root.rename(frames.root.with_name(EVIL))
    frames.root = evil_root
    assert run(frames, tmp_path / 'out') == 2
    page = Page(tmp_path / 'out/report.html')
    assert {tag for tag, _ in page.tags} & {'script', 'iframe', 'link', 'a', 'svg', 'object'} == set()
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith('on')], (tag, attrs)
        assert tag != 'img' or attrs['src'].startswith('data:')
    assert f'{EVIL}.png' in page.text
    assert f'Inspection of {EVIL}' in page.text
    assert '\x1b' not in capsys.readouterr().out
    # Nothing is loaded from elsewhere.
    assert not [attrs for _, attrs in page.tags if 'href' in attrs]


def test_the_command_needs_neither_torch_nor_an_mm_stack(frames, tmp_path):
    code = (
        'import sys, mmseg_unet_lyft\n'
        "for name in ('torch', 'mmengine', 'mmcv', 'mmseg', 'matplotlib'): sys.modules[name] = None\n"
        'from mmseg_unet_lyft.cli.inspect_data import main\n'
        'sys.exit(main(sys.argv[1:]))\n'
    )
    command = [sys.executable, '-c', code, str(frames.root), '--out', str(tmp_path / 'out'), '--workers', '1']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('4 frames, 4 sound')
