"""What an inspection writes and prints: the same bytes each time, and no name that acts as HTML or markup."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.cli.inspect_data import main

from .conftest import ROOT
from .test_run_page import HOSTILE, Elements


@pytest.fixture
def frames(kaggle):
    for stem in ('F1-0', 'F1-1', 'F2-0', 'F3-0'):
        kaggle.add(stem)
    return kaggle


def run(frames, out, *options):
    return main([str(frames.root), '--out', str(out), '--workers', '1', *options])


def page_in(out):
    return Elements((out / 'report.html').read_text(encoding='utf-8'))


def test_intact_data_exit_with_0_and_leave_lines_json_page_and_manifest(frames, tmp_path, capsys):
    out = tmp_path / 'out'
    assert run(frames, out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[-1]) == ('4 frames, 4 valid', f'wrote {out}')
    report = json.loads((out / 'inspection.json').read_text())
    assert (report['sound'], report['frames'], report['problems']) == (True, 4, [])
    assert [(one['part'], one['frames']) for one in report['leaks'][:2]] == [('val', 1), ('test', 1)]
    assert len(json.loads((out / 'manifest.json').read_text())['files']) == 8
    text = page_in(out).text
    for heading in ('For training', 'Classes by drive and split', 'Frames with the rarest classes', 'Leaks'):
        assert heading in text


def test_a_pipe_in_the_place_of_a_frame_is_in_the_page_and_not_waited_for(frames, tmp_path):
    for path in frames.add('F1-7'):
        path.unlink()
        os.mkfifo(path)
    assert run(frames, tmp_path / 'out') == 2
    assert 'CameraRGB/F1-7.png' in page_in(tmp_path / 'out').text


def test_problems_exit_with_2_and_are_in_lines_json_and_page(frames, tmp_path, capsys):
    frames.add('F1-7', tags=40)
    out, path = tmp_path / 'out', 'dataA/dataA/CameraSeg/F1-7.png'
    assert run(frames, out) == 2
    printed = capsys.readouterr()
    assert '     1  class id out of range (bad_id)' in printed.out
    assert f'        {path}: class id 40' in printed.out
    assert f'error: {frames.root}: 1 problems; see {out / "report.html"}' in printed.err
    report = json.loads((out / 'inspection.json').read_text())
    assert (report['sound'], report['counts'], report['sound_frames']) == (False, {'bad_id': 1}, 4)
    assert report['problems'][0]['path'] == path
    page = page_in(out)
    assert path in page.text
    # The frame with the problem is shown.
    shown = next(attrs['src'] for tag, attrs in page.found if tag == 'img')
    assert shown.startswith('data:image/jpeg;base64,')


def test_black_frames_and_mirrored_labels_are_noticed_and_frames_are_shown(kaggle, tmp_path, capsys):
    tags = np.zeros((24, 32), np.uint8)
    tags[:, :10], tags[:8, 10:] = 7, 9
    for number in range(4):
        image, _ = kaggle.add(f'F1-{number}', tags=tags[:, ::-1] if number == 2 else tags)
        # Light follows the tags, except for a little noise.
        light = 25 * tags if number != 3 else 0 * tags
        noise = np.random.default_rng(number).integers(0, 9, tags.shape) * (number != 3)
        Image.fromarray((light + noise).astype(np.uint8)).convert('RGB').save(image)
    assert run(kaggle, tmp_path) == 0
    printed = capsys.readouterr().out
    assert '1  all black: F1-3\n' in printed
    assert '10  classes without a pixel: Buildings, Fences, ' in printed
    assert '1  label looks mirrored or upside down: F1-2\n' in printed
    assert json.loads((tmp_path / 'inspection.json').read_text())['odd']['all black'] == ['F1-3']
    page = (tmp_path / 'report.html').read_text()
    grid = page[page.index('Example frames') :].partition('<h2>')[0]
    assert [grid.count(f'<figcaption>F1-{number}<') for number in range(4)] == [1, 1, 1, 1]


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
    assert '(replaced)' in capsys.readouterr().out
    assert (tmp_path / 'manifest.json').read_bytes() == before
    assert run(frames, tmp_path, '--new-manifest') == 0
    assert (tmp_path / 'manifest.json').read_bytes() != before
    assert run(frames, tmp_path) == 0


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows allows no such names')
def test_names_are_text_in_the_page_and_in_the_terminal(frames, tmp_path, capsys):
    folder = frames.root / 'dataA/dataA/CameraRGB'
    (folder / f'{HOSTILE}.png').write_bytes(b'')
    (folder / '[red]\x1b[2J"\'>.txt').write_bytes(b'')
    (folder / b'\xff\xfe.txt'.decode('utf-8', 'surrogateescape')).write_bytes(b'')
    frames.root = frames.root.rename(frames.root.with_name(HOSTILE))
    assert run(frames, tmp_path / 'out') == 2
    page = page_in(tmp_path / 'out')
    page.assert_harmless()
    assert f'{HOSTILE}.png' in page.text
    assert f'Inspection of {HOSTILE}' in page.text
    assert '\x1b' not in capsys.readouterr().out


def test_the_command_needs_neither_torch_nor_an_mm_stack(frames, tmp_path):
    code = (
        'import sys, mmseg_unet_lyft\n'
        "sys.modules |= dict.fromkeys('torch mmengine mmcv mmseg matplotlib jinja2'.split())\n"
        'from mmseg_unet_lyft.cli.inspect_data import main\n'
        'sys.exit(main(sys.argv[1:]))\n'
    )
    command = [sys.executable, '-c', code, str(frames.root), '--out', str(tmp_path / 'out'), '--workers', '1']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('4 frames, 4 valid')
