"""The torture by mutated inputs: what is done to files, and an oracle that can fail."""

import base64
import io
import itertools
import json
import os
import re
import signal
import sys
import time
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.torture import meaning, mutations
from mmseg_unet_lyft.torture.inputs import Case, Oracle, make_case, torture_inputs
from mmseg_unet_lyft.torture.kind import Consumer, Kind, Other
from mmseg_unet_lyft.torture.kinds import KINDS
from mmseg_unet_lyft.torture.oracle import judge_end, judge_result
from mmseg_unet_lyft.torture.sample import Sample
from mmseg_unet_lyft.torture.session import Ran, run_forked


def rng(seed=0):
    return np.random.default_rng(seed)


def png(pixels):
    return cv2.imencode('.png', pixels)[1].tobytes()


IMAGE = rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
TAGS = rng(2).integers(0, 13, (20, 30), dtype=np.uint8)
LABEL = np.dstack([np.zeros_like(TAGS), np.zeros_like(TAGS), TAGS])
ANSWER = {'1': [base64.b64encode(png(TAGS % 2)).decode()] * 2}


# --- mutations ---------------------------------------------------------------------------------------------


def test_as_many_bits_are_flipped_as_are_said_and_the_same_ones_again():
    content = bytes(1000)
    counts = set()
    for seed in range(100):
        flipped = mutations.flip_bits(content, rng(seed))
        assert flipped == mutations.flip_bits(content, rng(seed))
        counts.add(int(np.unpackbits(np.frombuffer(flipped, np.uint8)).sum()))
    assert counts == set(range(1, 9))
    assert not any(mutations.flip_early_bits(content, rng())[256:])


def test_cut_files_are_a_beginning_and_an_emptied_one_is_none():
    content = bytes(range(256))
    lengths = {len(mutations.truncate(content, rng(seed))) for seed in range(300)}
    assert min(lengths) < 10
    assert max(lengths) < 256
    assert content.startswith(mutations.truncate(content, rng()))
    assert mutations.empty(content, rng()) == b''


@pytest.mark.parametrize('name', ['recompress', 'add_alpha', 'code_in_16_bits'])
def test_lossless_codings_of_an_image_have_its_pixels(name):
    content = getattr(mutations, name)(png(IMAGE), rng())
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decoded, IMAGE)
    assert meaning.of_image(content, png(IMAGE), '.png') is True


@pytest.mark.parametrize('name', ['resize_png', 'code_as_jpeg', 'code_as_grey', 'code_in_palette'])
def test_other_codings_of_an_image_are_other_images(name):
    content = getattr(mutations, name)(png(IMAGE), rng())
    means = meaning.of_image(content, png(IMAGE), '.png')
    decoded = cv2.imdecode(np.frombuffer(means.clean, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(
        decoded, np.asarray(Image.open(io.BytesIO(content)).convert('RGB'))[..., ::-1]
    )
    assert decoded.shape != IMAGE.shape if name == 'resize_png' else (decoded != IMAGE).any()


@pytest.mark.parametrize('name', ['tags_as_grey', 'tags_in_palette', 'recompress'])
def test_a_labels_tags_are_kept_in_grey_and_in_a_palette(name):
    content = getattr(mutations, name)(png(LABEL), rng())
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(pixels if pixels.ndim == 2 else pixels[..., 0], TAGS)
    assert meaning.of_label(content, png(LABEL), '.png') is True
    assert meaning.of_label(mutations.code_as_jpeg(png(LABEL), rng()), png(LABEL), '.png') is None


def test_zip_members_are_lost_cut_or_only_packed_otherwise():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for name in 'ab':
            archive.writestr(name, name * 100)
    content = buffer.getvalue()
    assert meaning.of_checkpoint(mutations.repack_zip(content, rng()), content, '.pth') is True
    for mutation in (mutations.drop_member, mutations.cut_member):
        mutated = mutation(content, rng())
        assert zipfile.ZipFile(io.BytesIO(mutated)).testzip() is None
        assert meaning.of_checkpoint(mutated, content, '.pth') is None
    assert meaning.of_checkpoint(b'abc  iter_3.pth', b'abc  iter_3.pth\n', '.sha256') is True
    # What stands beside a checkpoint must not change what is resumed.
    assert meaning.of_checkpoint(b'abd  iter_3.pth', b'abc  iter_3.pth\n', '.sha256') is None


def test_an_answer_is_the_same_however_it_is_written_and_another_with_a_mask_less():
    content = json.dumps(ANSWER).encode()
    for seed in range(8):
        assert meaning.of_answer(mutations.indent_json(content, rng(seed)), content, '.json') is True
    assert (
        meaning.of_answer(mutations.change_mask(mutations.recompress)(content, rng()), content, '.json')
        is True
    )
    assert (
        meaning.of_answer(mutations.change_mask(mutations.truncate)(content, rng()), content, '.json') is None
    )
    assert isinstance(meaning.of_answer(mutations.drop_frame(content, rng()), content, '.json'), Other)


def test_a_text_is_the_same_program_in_other_lines_and_none_in_utf_16():
    content = b"_base_ = ['a.py']\nx = 100\ny = 'abc'\n"
    assert meaning.of_config(mutations.reformat_text(content, rng()), content, '.py') is True
    assert meaning.of_config(mutations.recode_text(content, rng()), content, '.py') is None
    changed = [mutations.change_word(content, rng(seed)) for seed in range(50)]
    assert {sum(a != b for a, b in zip(content, one, strict=True)) for one in changed} == {0, 1}
    assert len(mutations.drop_line(content, rng()).splitlines()) == 2


# --- the oracle --------------------------------------------------------------------------------------------


ERROR = 'reading 50%\nerror: /data/F1-0.png: damaged; restore it\n'


@pytest.mark.parametrize(
    ('ran', 'kind', 'why'),
    [
        (Ran(2, ERROR), 'refused', '/data/F1-0.png: damaged'),
        (Ran(None, ''), 'failed', 'hangs'),
        (Ran(-signal.SIGSEGV, 'libpng'), 'failed', 'ended by SIGSEGV'),
        (Ran(1, 'Traceback (most recent call last):\nKeyError'), 'failed', 'traceback: .*KeyError'),
        (Ran(2, f'Traceback (most recent call last):\n{ERROR}'), 'failed', 'traceback'),
        (Ran(1, ''), 'failed', 'exit code 1'),
        (Ran(2, 'usage: predict'), 'failed', '0 errors, not one'),
        (Ran(2, ERROR + ERROR), 'failed', '2 errors, not one'),
        (Ran(2, 'at /data/F1-0.png\nerror: damaged'), 'failed', 'names another file'),
    ],
)
def test_a_refusal_is_one_error_that_names_the_file_and_all_else_fails(ran, kind, why):
    verdict = judge_end(ran, ['/data/F1-0.png'])
    assert verdict.kind == kind
    assert re.search(why, verdict.why)


def test_an_accepted_file_must_give_the_result_of_what_it_says():
    assert judge_end(Ran(0, ''), ['x']) is None
    assert judge_result('a', 'a', None).kind == 'right'
    assert judge_result('a', 'a', None, proves=True).kind == 'failed'
    assert judge_result('b', 'a', None).kind == 'failed'
    assert judge_result('b', 'a', True).kind == 'failed'
    assert judge_result('b', 'a', Other(b''), 'b').kind == 'other'
    assert judge_result('b', 'a', Other(b''), 'c').kind == 'failed'
    assert judge_result('b', 'a', Other()).kind == 'other'


def compute_slowly():
    """A tenth of a second of computing, spread over a second."""
    for _ in range(10):
        start = time.process_time()
        while time.process_time() - start < 0.01:
            pass
        time.sleep(0.1)
    return 5


def test_a_forked_call_ends_with_its_code_its_words_or_at_the_limit(tmp_path):
    def speak():
        os.write(2, b'from C\n')
        sys.stdout.write('from Python\n')
        return 3

    assert run_forked(speak, tmp_path / 'log') == Ran(3, 'from C\nfrom Python\n')
    assert run_forked(lambda: {}['x'], tmp_path / 'log').code == 1
    assert "KeyError: 'x'" in (tmp_path / 'log').read_text()
    assert run_forked(lambda: os.kill(os.getpid(), signal.SIGKILL), tmp_path / 'log').code == -signal.SIGKILL
    start = time.monotonic()
    assert run_forked(lambda: time.sleep(60), tmp_path / 'log', 0.3).code is None
    assert run_forked(lambda: max(itertools.count()), tmp_path / 'log', 0.3).code is None
    assert time.monotonic() - start < 20
    # It computes, and not for long: it is not its fault that it takes its time.
    assert run_forked(compute_slowly, tmp_path / 'log', 0.3).code == 5


def accept(place):
    (place.out / 'label').write_bytes(place.file.read_bytes())
    return 0


def hang(place):
    time.sleep(60)


def crash(place):
    raise KeyError(place.file)


def say_nothing(place):
    return 2


def be_right(place):
    (place.out / 'label').write_text('right')
    return 0


def refuse(place):
    sys.stderr.write(f'error: {place.file}: damaged\n')
    # The untouched file is taken.
    return 0 if place.file.read_bytes() == png(LABEL) else 2


@pytest.mark.parametrize(
    ('feed', 'kind', 'why'),
    [
        (accept, 'failed', 'accepted silently'),
        (hang, 'failed', 'hangs'),
        (crash, 'failed', 'traceback: .*KeyError'),
        (say_nothing, 'failed', '0 errors, not one'),
        (be_right, 'right', ''),
        (refuse, 'refused', 'F1-0.png: damaged'),
    ],
)
def test_a_consumer_that_breaks_the_promise_fails(tmp_path, feed, kind, why):
    (tmp_path / 'sample/frames').mkdir(parents=True)
    (tmp_path / 'sample/frames/F1-0.png').write_bytes(png(LABEL))
    consumer = Consumer('it', feed, lambda place: (place.out / 'label').read_bytes(), ('*.png',))
    cut = {'.png': dict(cut=mutations.truncate)}
    case = make_case(
        Sample(tmp_path / 'sample'), Kind('labels', 'frames', cut, (consumer,), meaning.of_label), 0, 7
    )
    assert (case.number, case.file, case.mutation) == (7, 'F1-0.png', 'cut')
    assert png(LABEL).startswith(case.content)
    verdict = Oracle(Sample(tmp_path / 'sample'), tmp_path, 1.0).try_case(case)
    assert verdict.kind == kind
    assert re.search(why, verdict.why)
    assert (tmp_path / 'case_7').exists() == (kind == 'failed')


def test_what_is_moved_and_not_found_fails(tmp_path):
    (tmp_path / 'sample/frames').mkdir(parents=True)
    for name in 'ab':
        (tmp_path / f'sample/frames/{name}.png').write_text(name)
    seen = Consumer(
        'it', lambda place: int((place.tree / 'a.png').read_text() != 'b'), lambda place: 0, ('*.png',)
    )
    kind = Kind('labels', 'frames', {}, (seen,), meaning.of_label, manifest=seen)
    case = Case(kind, 1, seen, 'a.png', 'swapped', moved=(('a.png', 'b.png'), ('b.png', 'a.png')))
    verdict = Oracle(Sample(tmp_path / 'sample'), tmp_path, 5.0).try_case(case)
    assert verdict.why == 'accepted silently, though the manifest says otherwise'
    assert (tmp_path / 'sample/frames/a.png').read_text() == 'a'


# --- all of it ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_short_torture_holds_and_is_the_same_again(tmp_path):
    asked = []

    def show(numbers, total, what):
        asked.append((total, what))
        return numbers

    outcomes = torture_inputs(tmp_path, 35, 0, show)
    assert [outcome.failures for outcome in outcomes] == [[]] * len(KINDS)
    assert [(outcome.tried, outcome.held) for outcome in outcomes] == [(5, 5)] * len(KINDS)
    assert asked == [(35, 'mutated inputs')]
    assert outcomes[0].what.startswith('images: 5: ')
    # Nothing but the sample is left, and cases follow from it and the seed.
    assert [path.name for path in tmp_path.iterdir()] == ['sample']
    sample = Sample(tmp_path / 'sample')
    for kind in KINDS:
        one, again = (make_case(sample, kind, 0, 5) for _ in range(2))
        assert one == again
        assert any(make_case(sample, kind, seed, 5) != one for seed in range(1, 5))
