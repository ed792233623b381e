"""Files that are complete or absent, and JSON from untrusted sources, whichever module reads it."""

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys

import pytest

from mmseg_unet_lyft.datasets.dataset_stats import load_stats
from mmseg_unet_lyft.datasets.files import (
    LOCK_NAME,
    create,
    locked,
    sha256_of_file,
    whole_file,
    write_json,
    write_whole,
)
from mmseg_unet_lyft.datasets.layout import read_manifest
from mmseg_unet_lyft.datasets.packed import PackedFrames
from mmseg_unet_lyft.errors import InputError, printable
from mmseg_unet_lyft.evaluation.challenge import read_submission
from mmseg_unet_lyft.evaluation.thresholds import load_thresholds
from mmseg_unet_lyft.synthetic.scenes import read_marker

from .conftest import ROOT

DEEP = '[' * 100_000 + ']' * 100_000
HUGE = '1' + '0' * 400
READERS = {
    'manifest.json': read_manifest,
    'stats.json': lambda path: load_stats(path.parent),
    'DRAWN_SCENES.json': lambda path: read_marker(path.parent),
    'thresholds.json': lambda path: load_thresholds(path, ['a']),
    'answer.json': read_submission,
    'packed.json': lambda path: PackedFrames(path.parent),
}


@pytest.mark.parametrize('name', READERS)
@pytest.mark.parametrize('text', [DEEP, f'{{"version": {DEEP}}}', '3', 'NaN', '"x"', '', f'[{HUGE}]', '\0'])
def test_json_that_is_something_else_is_refused_with_its_path(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(f'{tmp_path / name}')):
        READERS[name](tmp_path / name)


def test_a_file_has_its_new_content_or_the_old_one_and_nothing_is_left(tmp_path):
    path = tmp_path / 'deep/a.json'
    write_json(path, dict(a=[1.5, float('nan'), (float('inf'),)]))
    assert json.loads(path.read_text()) == dict(a=[1.5, None, [None]])
    assert sha256_of_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()

    def fail():
        with whole_file(path) as file:
            file.write(b'half')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert json.loads(path.read_text()) == dict(a=[1.5, None, [None]])
    assert [one.name for one in path.parent.iterdir()] == ['a.json']
    with pytest.raises(InputError, match=re.escape(f'{path / "b"}: cannot be written')):
        write_whole(path / 'b', b'')


@pytest.mark.parametrize('link', [os.symlink, os.link])
def test_nothing_is_written_through_a_link_that_somebody_planted(tmp_path, link):
    theirs = tmp_path / 'theirs'
    theirs.write_bytes(b'theirs')
    for name in ('a.json', 'a.json.part'):
        link(theirs, tmp_path / name)
    write_whole(tmp_path / 'a.json', b'ours')
    with pytest.raises(FileExistsError):
        create(tmp_path / 'a.json.part')
    assert theirs.read_bytes() == (tmp_path / 'a.json.part').read_bytes() == b'theirs'
    assert (tmp_path / 'a.json').read_bytes() == b'ours'


def test_a_link_in_place_of_the_lock_is_refused_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / 'theirs').write_bytes(b'theirs')
    for name, link in (('hard', os.link), ('soft', os.symlink)):
        (tmp_path / name).mkdir()
        link(tmp_path / 'theirs', tmp_path / name / LOCK_NAME)
        with pytest.raises(InputError, match=f'{name}: cannot be written'), locked(tmp_path / name):
            pass
    assert (tmp_path / 'theirs').read_bytes() == b'theirs'


KILLED = """
import os, signal, sys
from pathlib import Path
from mmseg_unet_lyft.datasets.files import locked, whole_file
with locked(sys.argv[1]), whole_file(Path(sys.argv[1], 'deep/a.npy')) as file:
    print('there', flush=True)
    sys.stdin.read()
"""


def writer(folder):
    """A process that holds a folder's lock and has not finished a file in it."""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process = subprocess.Popen([sys.executable, '-c', KILLED, str(folder)], cwd=ROOT, **pipes)
    assert process.stdout.readline() == 'there\n'
    return process


def test_a_second_writer_is_refused_and_one_after_a_kill_removes_what_the_lock_lists_alone(tmp_path):
    out, foreign = tmp_path / 'out', f'{"0" * 16}.part'
    first = writer(out)
    with (
        pytest.raises(InputError, match=rf'{out}: process {first.pid} on '),
        locked(out),
    ):
        pass
    for path in (out / 'movie.mkv.part', out / f'b.{foreign}', tmp_path / f'c.{foreign}'):
        path.touch()
    with (out / LOCK_NAME).open('a') as lock:
        lock.write(f'"../c.{foreign}"\n"movie.mkv.part"\n3\nnot JSON\n')
    first.kill()
    first.wait()
    assert [one.name[:6] for one in (out / 'deep').iterdir()] == ['a.npy.']
    with locked(out):
        with pytest.raises(InputError, match=f'process {os.getpid()} on '), locked(out):
            pass
        write_whole(out / 'd', b'')
    assert sorted(one.name for one in out.iterdir()) == [f'b.{foreign}', 'd', 'deep', 'movie.mkv.part']
    assert not list((out / 'deep').iterdir())
    assert (tmp_path / f'c.{foreign}').exists()


@pytest.mark.parametrize('content', ['process 7 on away\n', '', '[3]\n'])
def test_a_lock_that_no_process_holds_is_taken_whatever_it_says(tmp_path, content):
    (tmp_path / LOCK_NAME).write_text(content)
    with locked(tmp_path), locked(tmp_path / 'new'):
        assert f'process {os.getpid()} on ' in (tmp_path / LOCK_NAME).read_text()
    assert not list(tmp_path.iterdir())


def test_an_error_is_one_line_whatever_the_names_in_it_are():
    error = InputError('a\nb\x1b[2J.png: wrong', '  second')
    assert str(error) == 'a\\nb\\x1b[2J.png: wrong\n  second'
    worker = f'Caught\nTraceback (most recent call last):\n  line\nx.InputError: {error}\n'
    assert str(InputError(worker)) == str(error) == str(pickle.loads(pickle.dumps(error)))


def test_control_characters_of_names_are_spelt_out():
    assert printable('a\x1b[2J\x07\x9b\u202e\udcff.png') == r'a\x1b[2J\x07\x9b\u202e\udcff.png'
    assert printable('Straße 東京 "x"\n') == 'Straße 東京 "x"\\n'
    assert printable('one\ntwo\x1b', keep='\n') == 'one\ntwo\\x1b'
