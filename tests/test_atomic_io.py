"""Files that are complete or absent, and JSON from untrusted sources, whichever module reads it."""

import hashlib
import json
import re

import pytest

from mmseg_unet_lyft.datasets.atomic_io import sha256_of_file, whole_file, write_json, write_whole
from mmseg_unet_lyft.datasets.dataset_stats import load_stats
from mmseg_unet_lyft.datasets.layout import read_manifest
from mmseg_unet_lyft.datasets.packed import PackedFrames
from mmseg_unet_lyft.errors import InputError, printable
from mmseg_unet_lyft.evaluation.challenge import read_submission
from mmseg_unet_lyft.evaluation.thresholds import load_thresholds
from mmseg_unet_lyft.synthetic.scenes import read_marker

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
        with whole_file(path) as part:
            part.write_bytes(b'half')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert json.loads(path.read_text()) == dict(a=[1.5, None, [None]])
    assert [one.name for one in path.parent.iterdir()] == ['a.json']
    with pytest.raises(InputError, match=re.escape(f'{path / "b"}: cannot be written')):
        write_whole(path / 'b', b'')


def test_control_characters_of_names_are_spelt_out():
    assert printable('a\x1b[2J\x07\x9b\u202e\udcff.png') == r'a\x1b[2J\x07\x9b\u202e\udcff.png'
    assert printable('Straße 東京 "x"\n') == 'Straße 東京 "x"\\n'
    assert printable('one\ntwo\x1b', keep='\n') == 'one\ntwo\\x1b'
