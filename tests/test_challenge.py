"""The challenge's score against an independent one, its JSON, the grading command, and repeated frames."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.structures import PixelData
from mmseg.registry import METRICS
from mmseg.structures import SegDataSample
from PIL import Image

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.cli import grade as grade_command
from mmseg_unet_lyft.datasets.labels import HOOD_PIXELS, get_scheme, hood_mask, hood_spans
from mmseg_unet_lyft.datasets.lyft_carla import find_pairs
from mmseg_unet_lyft.datasets.packing import pack
from mmseg_unet_lyft.datasets.scenes import draw_frame
from mmseg_unet_lyft.datasets.statistics import Stats, write_stats
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.evaluation.challenge import (
    average_f,
    challenge_ids,
    challenge_masks,
    count_pixels,
    final_score,
    hood_region,
    mask_scores,
    score_table,
)
from mmseg_unet_lyft.evaluation.grading import read_truth
from mmseg_unet_lyft.evaluation.repeats import find_repeats
from mmseg_unet_lyft.evaluation.submission import SubmissionWriter, encode_mask, read_submission

CARLA13 = get_scheme('carla13').classes


def official(answers, truths) -> tuple[float, float, float]:
    """Vehicle F2, road F0.5 and their mean, straight from the challenge's text: the independent scorer."""
    values = []
    for index, beta in ((0, 2), (1, 0.5)):
        tp = fp = fn = 0
        for student, truth in zip(answers, truths, strict=True):
            for said, is_true in zip(
                student[index].ravel().tolist(), truth[index].ravel().tolist(), strict=True
            ):
                tp += said == 1 and is_true == 1
                fp += said == 1 and is_true == 0
                fn += said == 0 and is_true == 1
        p, r = tp / (tp + fp), tp / (tp + fn)
        values.append((1 + beta**2) * ((p * r) / (beta**2 * p + r)))
    return values[0], values[1], (values[0] + values[1]) / 2


def random_masks(number: int, size: tuple[int, int] = (24, 32), seed: int = 3) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 2, (number, 2, *size), dtype=np.uint8))


def write_answer(path: Path, frames) -> Path:
    with SubmissionWriter(path) as writer:
        for masks in frames:
            writer.add(masks)
    return path


def graded(*arguments: str | Path) -> int:
    return grade_command.main([str(argument) for argument in arguments])


# --- masks -------------------------------------------------------------------------------------------------


def test_classes_are_found_by_name_in_every_scheme_that_has_them():
    assert challenge_ids(CARLA13) == ((10,), (6, 7))
    assert challenge_ids(get_scheme('challenge3').classes) == ((2,), (1,))
    with pytest.raises(InputError, match='no vehicle class among Background, Road; the challenge scores'):
        challenge_ids(get_scheme('road').classes)
    with pytest.raises(InputError, match='no road class among None, Vehicles'):
        challenge_ids(['None', 'Vehicles'])


def test_masks_are_vehicle_then_road_with_lane_lines():
    label = np.array([[10, 6, 7, 5, 255]])
    np.testing.assert_array_equal(
        challenge_masks(label, CARLA13, measured=np.zeros((1, 5), bool)),
        [[[1, 0, 0, 0, 0]], [[0, 1, 1, 0, 0]]],
    )


def test_the_hood_is_left_out_of_vehicles_alone_by_either_rule():
    label = np.full((600, 800), 10)
    exact = challenge_masks(label, CARLA13)
    assert exact.dtype == np.uint8
    assert exact[0].sum() == 600 * 800 - HOOD_PIXELS
    # Row 498 has the first hood pixels, at columns 383 to 416.
    assert exact[0, 498, [382, 383, 416, 417]].tolist() == [1, 0, 0, 1]
    rows = challenge_masks(label, CARLA13, 'rows')
    np.testing.assert_array_equal(np.flatnonzero(rows[0].all(axis=1)), np.arange(496))
    assert rows[0].sum() == 496 * 800
    for rule in ('exact', 'rows'):
        assert challenge_masks(np.full((600, 800), 7), CARLA13, rule)[1].all()


def test_hood_rows_follow_the_height():
    # Of 300 rows, row 248 shows row 496 of 600; of 64, row 53 shows 496.9.
    for height, first in ((300, 248), (64, 53)):
        assert np.flatnonzero(hood_region('rows', height, 5).all(axis=1))[0] == first
        assert not hood_region('rows', height, 5)[:first].any()
    measured = np.eye(4, dtype=bool)
    np.testing.assert_array_equal(hood_region('exact', 4, 4, measured), measured)
    with pytest.raises(InputError, match="hood rule 'row' is not known; choose one of: exact, rows"):
        hood_region('row', 4, 4)


# --- formulas ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('seed', range(20))
def test_scores_equal_an_independent_scorers_to_the_last_digit(seed):
    answers, truths = random_masks(3, (5, 7), seed), random_masks(3, (5, 7), seed + 100)
    counts = sum(count_pixels(*pair) for pair in zip(answers, truths, strict=True))
    vehicle, road = mask_scores(counts)
    assert (vehicle.f, road.f, average_f((vehicle, road))) == official(answers, truths)


def test_one_frame_counted_by_hand():
    truth = np.array([[[1, 1, 1, 1], [0, 0, 0, 0]], [[1, 1, 0, 0], [0, 0, 0, 0]]], np.uint8)
    answer = np.array([[[1, 1, 1, 0], [1, 0, 0, 0]], [[1, 0, 1, 1], [1, 0, 0, 0]]], np.uint8)
    counts = count_pixels(answer, truth)
    np.testing.assert_array_equal(counts, [[3, 1, 1], [1, 3, 1]])
    vehicle, road = mask_scores(counts)
    assert (vehicle.precision, vehicle.recall, vehicle.f) == (0.75, 0.75, pytest.approx(0.75))
    # P = 1/4, R = 1/2: 1.25 / 8 / (1/16 + 1/2) = 5/18.
    assert (road.precision, road.recall, road.f) == (0.25, 0.5, pytest.approx(5 / 18))
    table = score_table(counts, 'exact', 7.5)
    assert 'vehicle F2    0.750000   0.750000  0.750000             3             1             1' in table
    assert 'road F0.5     0.277778   0.250000  0.500000             1             3             1' in table
    assert f'average F     {(0.75 + 5 / 18) / 2:.6f}' in table
    assert f'final score     {100 * (0.75 + 5 / 18) / 2 - 2.5:.3f}' in table
    assert 'hood: exact' in table
    assert 'n/a' not in table


def test_only_values_0_and_1_count():
    truth = np.array([1, 1, 0, 0, 255, 255, 255], np.uint8)
    answer = np.array([1, 2, 1, 2, 1, 0, 2], np.uint8)
    counts = count_pixels(*(np.broadcast_to(one, (2, 1, 7)) for one in (answer, truth)))
    np.testing.assert_array_equal(counts, [[1, 1, 0], [1, 1, 0]])


def test_the_final_score_loses_a_point_for_each_frame_a_second_below_ten():
    assert final_score(0.9, 10.0) == final_score(0.9, 25.0) == 90.0
    assert final_score(0.9, 7.5) == 87.5


@pytest.mark.parametrize(
    ('row', 'values', 'message'),
    [
        (
            (0, 0, 0),
            (None, None),
            'vehicle: TP + FN = 0, the truth has no vehicle pixel, so recall and F are 0/0',
        ),
        ((0, 5, 0), (0.0, None), 'vehicle: TP + FN = 0, the truth has no vehicle pixel'),
        ((0, 0, 5), (None, 0.0), 'vehicle: TP + FP = 0, no pixel was answered, so precision and F are 0/0'),
        ((0, 5, 5), (0.0, 0.0), 'vehicle: TP = 0, precision and recall are 0, so F is 0/0'),
    ],
)
def test_0_by_0_is_n_a_with_the_count_that_is_zero(row, values, message):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        counts = np.array([row, (1, 0, 0)])
        vehicle, road = mask_scores(counts)
        assert (vehicle.precision, vehicle.recall) == values
        assert vehicle.f is None
        assert average_f((vehicle, road)) is None
        table = score_table(counts, 'exact', 5.0)
    assert f'n/a: {message}' in table
    for name in ('vehicle F2', 'average F', 'final score'):
        (line,) = [line for line in table.splitlines() if line.startswith(name)]
        assert line.removeprefix(name).split()[0] == 'n/a'
    assert road.f == 1.0


# --- the JSON ----------------------------------------------------------------------------------------------


def test_what_is_written_reads_back_and_as_the_official_scorer_decodes_it(tmp_path):
    frames = random_masks(3)
    path = write_answer(tmp_path / 'new' / 'answer.json', frames)
    answer = read_submission(path)
    assert len(answer) == 3
    content = json.loads(path.read_text())
    assert list(content) == ['1', '2', '3']
    for number, masks in enumerate(frames, start=1):
        np.testing.assert_array_equal(answer.masks(number), masks)
        for text, mask in zip(content[str(number)], masks, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))), mask)
    assert [file.name for file in path.parent.iterdir()] == ['answer.json']
    with pytest.raises(IndexError, match='frame 4; .* has 1 to 3'):
        answer.masks(4)


@pytest.mark.parametrize('number', [0, 1, 2])
def test_an_open_file_gets_the_json_alone_and_stays_open(number):
    target = io.StringIO()
    writer = SubmissionWriter(target)
    for masks in random_masks(number):
        writer.add(masks)
    assert writer.frames == number
    writer.close()
    writer.close()
    assert list(json.loads(target.getvalue())) == [str(frame) for frame in range(1, number + 1)]
    assert not target.closed


def test_a_file_has_its_name_only_when_closed_also_without_frames_and_after_an_interrupt(tmp_path):
    path = tmp_path / 'answer.json'
    path.write_text('an older answer')

    def interrupted():
        yield random_masks(1)[0]
        assert path.read_text() == 'an older answer'
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_answer(path, interrupted())
    assert len(read_submission(path)) == 1
    SubmissionWriter(path).close()
    assert len(read_submission(path)) == 0


class FullDisk(io.FileIO):
    """A file on a disk with little room."""

    room = 500  # Bytes.

    def write(self, content) -> int:
        room = self.room - self.tell()
        if room <= 0:
            raise OSError(28, 'No space left on device')
        return super().write(content[:room])


def test_a_full_disk_is_said_and_leaves_the_frames_before_as_whole_json(tmp_path, monkeypatch):
    path = tmp_path / 'answer.json'
    monkeypatch.setattr(Path, 'open', lambda self, *_, **__: FullDisk(self, 'w'))
    masks = np.zeros((2, 4, 4), np.uint8)
    message = r'answer.json: cannot be written \(No space left on device\) after 2 frames; make room'
    with pytest.raises(InputError, match=message):
        write_answer(path, [masks] * 9)
    monkeypatch.undo()
    assert len(read_submission(path)) == 2


def test_a_disk_that_is_full_already_is_said_at_once_and_nothing_is_left(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(FullDisk, 'room', 0)
    monkeypatch.setattr(Path, 'open', lambda self, *_, **__: opened.append(FullDisk(self, 'w')) or opened[0])
    with pytest.raises(InputError, match=r'cannot be written \(No space left on device\) after 0 frames'):
        SubmissionWriter(tmp_path / 'answer.json')
    assert opened[0].closed
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said_before_the_first_frame(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match='answer.json: cannot be written .* name another file'):
        SubmissionWriter(tmp_path / 'file' / 'answer.json')
    with pytest.raises(InputError, match='cannot be written .it is a folder.'):
        SubmissionWriter(tmp_path)


@pytest.mark.parametrize(
    'masks', [np.zeros((3, 4, 4), np.uint8), np.ones((2, 4, 4)), np.full((2, 4, 4), 2, np.uint8)]
)
def test_masks_that_are_none_are_not_written(masks):
    with pytest.raises(ValueError, match=r'expected uint8 of 0 and 1, \(2, H, W\)'):
        SubmissionWriter(io.StringIO()).add(masks)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', r'is not JSON .*; expected \{"1": \[vehicle, road\], "2": ...\}'),
        ('{"1": ["a", ', 'is not JSON'),
        ('[' * 100_000, 'is not JSON'),
        ('{"1": ' * 100_000, 'is not JSON'),
        ('{"1": ' + '1' * 5000 + '}', 'is not JSON .*limit.*; expected'),
        (b'\xff\xfe\xfd', 'is not JSON'),
        ('[]', 'holds a JSON list and not an object'),
        ('{"frames": []}', "key 'frames' is no frame; frames are numbered"),
        ('{"0": ["", ""], "1": ["", ""]}', "key '0' is no frame"),
        ('{"01": ["", ""]}', "key '01' is no frame"),
        ('{"1": ["", ""], "1": ["", ""]}', "key '1' stands twice"),
        (
            '{"1": ["", ""], "4": ["", ""]}',
            r'frame 2 is missing \(2 in all: 2, 3\); it has 2 frames, up to 4',
        ),
        ('{"999999999": ["", ""]}', r'frame 1 is missing \(999999998 in all: 1, 2, 3, 4, 5, ...\)'),
        ('{"1": ["", ""], "2": [""]}', 'frame 2 is not two strings'),
        ('{"1": {"vehicle": ""}}', 'frame 1 is not two strings'),
        ('{"1": ["", 7]}', 'frame 1 is not two strings'),
    ],
)
def test_what_is_no_challenge_json_is_refused_with_its_fault(text, message, tmp_path):
    path = tmp_path / 'answer.json'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=f'answer.json: {message}'):
        read_submission(path)


def test_an_answer_that_is_not_there_is_said(tmp_path):
    with pytest.raises(InputError, match=r'none.json: cannot be read \(No such file'):
        read_submission(tmp_path / 'none.json')


def png(mask: np.ndarray, **options) -> bytes:
    content = io.BytesIO()
    Image.fromarray(mask).save(content, 'PNG', **options)
    return content.getvalue()


def three_wrong() -> np.ndarray:
    mask = np.zeros((4, 5), np.uint8)
    mask[2, 3:], mask[3, 0] = 255, 7
    return mask


GOOD = png(np.zeros((4, 5), np.uint8))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('no base64!', 'is not base64'),
        ('abc', 'is not base64'),
        ('ä', 'is not base64'),
        ('', 'is base64, but of no PNG'),
        (b'GIF89a', 'is base64, but of no PNG'),
        (
            png(np.zeros((4, 6), np.uint8)),
            r'4x6 \(height x width\), expected 4x5; the official scorer does not resize',
        ),
        (png(three_wrong()), r'value 255 at \(row 2, col 3\), 3 such pixels; masks hold 0 and 1'),
        (png(np.zeros((4, 5, 3), np.uint8)), r'a PNG of uint8 \(4, 5, 3\); expected 8-bit grey'),
        (png(np.zeros((4, 5), np.uint16)), r'a PNG of uint16 \(4, 5\); expected 8-bit grey'),
        (GOOD[:-20], r'a damaged PNG \((?!no pixels)'),
        (GOOD[:45] + bytes([GOOD[45] ^ 1]) + GOOD[46:], r'a damaged PNG \((?!no pixels)'),
        # 10^10 pixels by the header alone.
        (
            GOOD[:16] + (100_000).to_bytes(4, 'big') * 2 + GOOD[24:],
            '100000x100000 is more than 64000000 pixels',
        ),
    ],
)
def test_an_unsound_mask_is_named_by_file_frame_and_mask(content, message, tmp_path):
    text = content if isinstance(content, str) else base64.b64encode(content).decode()
    good = base64.b64encode(GOOD).decode()
    path = tmp_path / 'answer.json'
    path.write_text(json.dumps({'1': [good, good], '2': [good, text]}))
    answer = read_submission(path)
    np.testing.assert_array_equal(answer.masks(1, (4, 5)), np.zeros((2, 4, 5)))
    with pytest.raises(InputError, match=f'answer.json: frame 2, road mask: {message}'):
        answer.masks(2)


def test_the_pixel_limit_can_be_set_and_the_size_asked_for(tmp_path):
    path = write_answer(tmp_path / 'answer.json', random_masks(1))
    with pytest.raises(InputError, match='frame 1, vehicle mask: 24x32 is more than 767 pixels'):
        read_submission(path, max_pixels=767).masks(1)
    assert read_submission(path, max_pixels=768).masks(1, (24, 32)).shape == (2, 24, 32)
    with pytest.raises(InputError, match='frame 1, vehicle mask: 24x32 .* expected 32x24'):
        read_submission(path).masks(1, (32, 24))


# --- the command -------------------------------------------------------------------------------------------


def test_the_command_prints_the_official_scores_and_writes_them(tmp_path, capsys):
    answers, truths = random_masks(2), random_masks(2, seed=4)
    answer, truth = write_answer(tmp_path / 'a.json', answers), write_answer(tmp_path / 't.json', truths)
    out = tmp_path / 'scores.json'
    assert graded(answer, truth, '--fps', '8', '--json', out) == 0
    vehicle, road, average = official(answers, truths)
    scores = json.loads(out.read_text())
    assert (scores['masks']['vehicle']['f'], scores['masks']['road']['f']) == (vehicle, road)
    assert (scores['average'], scores['final_score']) == (average, 100 * average - 2)
    assert (scores['hood'], scores['frames'], scores['notes']) == ('as in TRUTH', 2, [])
    printed = capsys.readouterr().out
    assert f'average F     {average:.6f}' in printed
    assert 'hood: as in TRUTH' in printed
    assert printed.endswith(f'graded 2 frames of {answer} against {truth}; wrote {out}\n')


def label_folder(kaggle, folder='dataA/dataA'):
    """Labels with road, lines and vehicles on a hood: tags in stripes, frames 2 and 10 unlike."""
    for number in (10, 2):
        tags = np.repeat(np.roll([7, 6, 10, 0], number // 10), 6)[:, None] * np.ones((1, 32), int)
        tags[:, :4] = 10
        kaggle.add(f'F1-{number}', folder=folder, tags=tags)
    return kaggle.root


def tags_of(root: Path, name: str) -> np.ndarray:
    (path,) = root.rglob(f'CameraSeg/{name}')
    return cv2.imread(str(path))[..., 2]


@pytest.mark.parametrize('rule', ['exact', 'rows'])
@pytest.mark.parametrize('place', ['.', 'dataA/dataA/CameraSeg', 'packed'])
def test_label_pngs_are_taken_in_natural_order_by_either_hood_rule(kaggle, tmp_path, capsys, rule, place):
    root = label_folder(kaggle)
    if place == 'packed':
        pack(find_pairs(root, ['F1']), root / place)
    (root / place / 'note.txt').write_text('no frame')
    hood = hood_mask(24, 32) if rule == 'exact' else np.arange(24)[:, None] * 25 >= 496
    frames = [tags_of(root, name) for name in ('F1-2.png', 'F1-10.png')]
    masks = [np.stack([(tags == 10) & ~hood, (tags == 6) | (tags == 7)]).astype(np.uint8) for tags in frames]
    answer = write_answer(tmp_path / 'answer.json', masks)
    out = tmp_path / 'scores.json'
    assert graded(answer, root / place, '--hood', rule, '--json', out) == 0
    scores = json.loads(out.read_text())
    assert scores['average'] == 1.0
    assert scores['masks']['vehicle']['tp'] == sum(int(one[0].sum()) for one in masks)
    assert f'hood: {rule}\n' in capsys.readouterr().out
    # The other rule has other vehicle pixels here.
    assert graded(answer, root / place, '--hood', 'rows' if rule == 'exact' else 'exact', '--json', out) == 0
    assert json.loads(out.read_text())['masks']['vehicle']['f'] < 1.0


def test_a_prepared_root_brings_its_own_hood(kaggle, tmp_path, capsys):
    root = label_folder(kaggle)
    hood = np.zeros((24, 32), bool)
    hood[:, :4] = True
    write_stats(root / 'stats.json', Stats(size=(24, 32), hood=hood))
    masks = []
    for name in ('F1-2.png', 'F1-10.png'):
        tags = tags_of(root, name)
        masks.append(np.stack([(tags == 10) & ~hood, np.isin(tags, (6, 7))]).astype(np.uint8))
    answer = write_answer(tmp_path / 'answer.json', masks)
    out = tmp_path / 'scores.json'
    assert graded(answer, root, '--json', out) == 0
    assert json.loads(out.read_text())['average'] == 1.0
    assert f'hood: exact, as measured in {root}' in capsys.readouterr().out


def test_an_absent_vehicle_is_n_a_and_said(tmp_path, capsys):
    masks = random_masks(1)[0]
    masks[0] = 0
    path = write_answer(tmp_path / 'same.json', [masks])
    assert graded(path, path, '--fps', '12') == 0
    printed = capsys.readouterr().out
    assert 'n/a: vehicle: TP + FN = 0, the truth has no vehicle pixel' in printed
    assert 'road F0.5     1.000000' in printed
    assert 'nan' not in printed


def test_frames_beyond_the_truth_are_ignored_and_noted(tmp_path, capsys):
    frames = random_masks(3)
    answer, truth = write_answer(tmp_path / 'a.json', frames), write_answer(tmp_path / 't.json', frames[:2])
    assert graded(answer, truth, '--hood', 'rows') == 0
    printed = capsys.readouterr().out
    assert 'average F     1.000000' in printed
    assert (
        'note: beyond the 2 frames of the truth the answer has 1 more, ignored as by the official scorer;'
        in printed
    )
    assert '--drop-repeated VIDEO' in printed
    assert 'note: --hood rows has no effect on a challenge JSON' in printed


def test_what_cannot_be_graded_is_one_message(kaggle, tmp_path, capsys):
    frames = random_masks(3)
    answer, truth = write_answer(tmp_path / 'a.json', frames[:1]), write_answer(tmp_path / 't.json', frames)
    small = write_answer(tmp_path / 's.json', [masks[:, :20] for masks in frames])
    none = write_answer(tmp_path / 'none.json', [])
    empty = tmp_path / 'empty'
    empty.mkdir()
    root = label_folder(kaggle)
    for arguments, message in (
        ((answer, truth), f'{answer}: frames 2 to 3 are missing; it has 1 frames, {truth} has 3'),
        (
            (small, truth),
            f'{small}: frame 1, vehicle mask: 20x32 (height x width), expected 24x32 as frame 1 of {truth};',
        ),
        ((answer, none), f'{none}: holds no frame'),
        ((answer, empty), f'{empty}: no label PNG in it, and no CameraSeg folder below'),
        ((answer, truth, '--fps', '0'), '--fps 0.0: give frames a second, more than 0'),
        ((answer, truth, '--fps', 'nan'), '--fps nan: give frames a second'),
        ((answer, truth, '--json', truth), f'--json {truth}: would be written over what is read'),
        ((answer, truth, '--drop-repeated', '7'), '7: no such video'),
    ):
        assert graded(*arguments) == 2
        assert f'error: {message}' in capsys.readouterr().err
    labels = root / 'dataA/dataA/CameraSeg'
    assert graded(small, labels) == 2
    assert f'expected 24x32 as {labels / "F1-2.png"}; the official scorer' in capsys.readouterr().err
    (labels / 'F1-3.jpg').touch()
    assert graded(answer, root) == graded(answer, labels) == 2
    assert 'F1-3.jpg: a label saved as JPEG' in capsys.readouterr().err
    (labels / 'F1-3.jpg').unlink()
    label = next(labels.glob('F1-2.png'))
    sound = label.read_bytes()
    Image.fromarray(np.full((24, 32), 77, np.uint8)).save(label)
    assert graded(truth, labels) == 2
    assert f'error: {label}: class id 77 at (row 0, col 0)' in capsys.readouterr().err
    label.write_bytes(sound)
    kaggle.add('F1-2', folder='dataB/dataB')
    assert graded(answer, root) == 2
    assert 'F1-2.png has the same name; remove one of the two' in capsys.readouterr().err


def test_labels_have_a_pixel_limit_by_their_header(kaggle, tmp_path, capsys):
    label = kaggle.add('F1-0', tags=7)[1]
    assert read_truth(kaggle.root, max_pixels=24 * 32).masks(1)[1].all()
    with pytest.raises(InputError, match=f'{label}: 24x32 is more than 767 pixels, so it is not decoded'):
        read_truth(kaggle.root, max_pixels=24 * 32 - 1).masks(1)
    # 10^10 pixels by the header alone.
    content = label.read_bytes()
    label.write_bytes(content[:16] + (100_000).to_bytes(4, 'big') * 2 + content[24:])
    assert graded(write_answer(tmp_path / 'a.json', random_masks(1)), kaggle.root) == 2
    assert f'error: {label}: 100000x100000 is more than 64000000 pixels' in capsys.readouterr().err


@pytest.mark.parametrize('graded_over', ['answer', 'truth', 'video'])
@pytest.mark.parametrize('way', ['another path', 'symlink', 'hard link'])
def test_scores_are_never_written_over_what_is_read(drive, tmp_path, monkeypatch, capsys, graded_over, way):
    folder = tmp_path / 'copy'
    shutil.copytree(drive[0], folder)
    (folder / 'video.mp4').rename(folder / 'video.json')
    monkeypatch.chdir(tmp_path)
    target, out = folder / f'{graded_over}.json', tmp_path / 'out.json'
    content = target.read_bytes()
    if way == 'symlink':
        out.symlink_to(target)
    elif way == 'hard link':
        out.hardlink_to(target)
    else:
        out = f'copy/../copy/{graded_over}.json'
    inputs = folder / 'answer.json', folder / 'truth.json', '--drop-repeated', folder / 'video.json'
    assert graded(*inputs, '--json', out) == 2
    assert f'--json {out}: would be written over what is read; name another' in capsys.readouterr().err
    assert target.read_bytes() == content


def test_grading_imports_neither_torch_nor_an_mm_stack(tmp_path):
    path = write_answer(tmp_path / 'same.json', random_masks(1))
    code = (
        'import sys; from mmseg_unet_lyft.cli import grade; code = grade.main(sys.argv[1:]);'
        'print([name for name in ("torch", "mmengine", "mmcv", "mmseg") if name in sys.modules], code)'
    )
    command = [sys.executable, '-c', code, str(path), str(path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.stdout.endswith('[] 0\n'), done.stdout + done.stderr


# --- repeated frames ---------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def drive(tmp_path_factory):
    """A drawn drive of 30 frames: its truth, a video with frame 14 (from 0) twice, that one's masks."""
    folder = tmp_path_factory.mktemp('drive')
    images, masks = [], []
    for frame in range(30):
        image, tags = draw_frame('F3', frame, height=64, width=96)
        images.append(image)
        masks.append(challenge_masks(tags, CARLA13))
    shown = [*range(15), *range(14, 30)]
    assert shown[15] == shown[14] == 14
    write_video(folder / 'video.mp4', [images[frame] for frame in shown])
    write_video(folder / 'exact.mp4', images)
    write_answer(folder / 'truth.json', masks)
    write_answer(folder / 'answer.json', [masks[frame] for frame in shown])
    return folder, masks, [masks[frame] for frame in shown]


def write_video(path: Path, images: list[np.ndarray]) -> None:
    """RGB frames as H.264."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=10)
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], 'yuv420p'
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
        container.mux(stream.encode())


def test_a_perfect_answer_shifted_by_a_repeated_frame_scores_badly(drive, tmp_path, capsys):
    folder, truths, answers = drive
    out = tmp_path / 'scores.json'
    assert graded(folder / 'answer.json', folder / 'truth.json', '--json', out) == 0
    scores = json.loads(out.read_text())
    vehicle, road, average = official(answers[:30], truths)
    assert (scores['masks']['vehicle']['f'], scores['masks']['road']['f']) == (vehicle, road)
    assert scores['average'] == average
    assert vehicle < 0.9
    assert 'note: beyond the 30 frames of the truth the answer has 1 more, ignored' in capsys.readouterr().out


def test_without_the_repeated_frame_it_scores_exactly_one(drive, tmp_path, capsys):
    folder = drive[0]
    out = tmp_path / 'scores.json'
    video = ['--drop-repeated', folder / 'video.mp4']
    assert graded(folder / 'answer.json', folder / 'truth.json', *video, '--fps', '10', '--json', out) == 0
    scores = json.loads(out.read_text())
    assert [scores['masks'][name]['f'] for name in ('vehicle', 'road')] == [1.0, 1.0]
    assert (scores['average'], scores['final_score']) == (1.0, 100.0)
    assert 'note: dropped: frame 16 of the answer, which repeats frame 15' in capsys.readouterr().out


def test_without_surplus_nothing_is_dropped_and_that_is_said(drive, capsys):
    folder = drive[0]
    truth = folder / 'truth.json'
    assert graded(truth, truth, '--drop-repeated', folder / 'exact.mp4') == 0
    printed = capsys.readouterr().out
    assert 'average F     1.000000' in printed
    assert 'note: nothing dropped: the video has 30 frames, the truth 30' in printed


def test_a_video_without_enough_repeats_or_of_another_answer_is_refused(drive, tmp_path, capsys):
    folder, masks, answers = drive
    video = ['--drop-repeated', folder / 'video.mp4']
    truth = write_answer(tmp_path / 'truth.json', masks[:29])
    assert graded(folder / 'answer.json', truth, *video) == 2
    said = capsys.readouterr().err
    assert f'{folder / "video.mp4"}: 31 frames, 2 more than the 29 of the truth, but 1 that repeat' in said
    assert graded(folder / 'truth.json', folder / 'truth.json', *video) == 2
    assert f'truth.json: 30 frames, but {folder / "video.mp4"} has 31' in capsys.readouterr().err


def test_a_broken_video_is_named_once(drive, tmp_path, capsys):
    folder, path = drive[0], tmp_path / 'broken.mp4'
    content = bytearray((folder / 'video.mp4').read_bytes())
    middle = len(content) // 2
    content[middle : middle + 600] = bytes(600)
    path.write_bytes(content)
    assert graded(folder / 'answer.json', folder / 'truth.json', '--drop-repeated', path) == 2
    assert f'error: {path}: broken or cut behind frame ' in capsys.readouterr().err


def test_the_frames_nearest_to_the_one_before_are_the_repeats():
    levels = [0, 40, 41, 80, 80, 120, 121, 160]
    frames = (np.full((4, 4, 3), level, np.uint8) for level in levels)
    found = find_repeats(frames, 6)
    # Frame 5 is the same as frame 4; frames 3 and 7 are 1 from theirs, and the first of them is taken.
    assert (found.num_frames, found.frames, found.differences, found.further) == (8, (3, 5), (1.0, 0.0), 1)
    assert find_repeats(iter([]), 3).frames == ()
    assert find_repeats((np.full((4, 4, 3), level, np.uint8) for level in levels), 7).frames == (5,)
    far = [np.full((4, 4, 3), level, np.uint8) for level in (0, 2, 4)]
    with pytest.raises(InputError, match='3 frames, 1 more than the 2 of the truth, but 0 that repeat'):
        find_repeats(far, 2)


def test_finding_repeats_keeps_two_frames_at_most():
    alive = most = 0

    def forget() -> None:
        nonlocal alive
        alive -= 1

    def frames():
        nonlocal alive, most
        for _ in range(20):
            frame = np.zeros((4, 4, 3), np.uint8)
            weakref.finalize(frame, forget)
            alive += 1
            most = max(most, alive)
            yield frame

    assert len(find_repeats(frames(), 1).frames) == 19
    # This one's own, the one at hand and the one before.
    assert most <= 3


# --- the metric --------------------------------------------------------------------------------------------


def evaluate(pairs, scheme='carla13', batch_size=100, meta=None, **arguments) -> tuple[dict, Evaluator]:
    judge = Evaluator([METRICS.build(dict(type='LyftScoreMetric', **arguments))])
    judge.dataset_meta = get_scheme(scheme).metainfo | (meta or {})
    samples = [
        SegDataSample(
            gt_sem_seg=PixelData(data=torch.tensor(label, dtype=torch.int64)[None]),
            pred_sem_seg=PixelData(data=torch.tensor(pred, dtype=torch.uint8)[None]),
        )
        for label, pred in pairs
    ]
    for start in range(0, len(samples), batch_size):
        judge.process(samples[start : start + batch_size])
    return judge.evaluate(len(samples)), judge


def random_pairs(number: int, classes: int = 13) -> list:
    return list(np.random.default_rng(8).integers(0, classes, (number, 2, 24, 32)))


@pytest.mark.parametrize('rule', ['exact', 'rows'])
@pytest.mark.parametrize(('scheme', 'vehicle', 'road'), [('carla13', [10], [6, 7]), ('challenge3', [2], [1])])
def test_the_metrics_scalars_are_the_official_scores_in_percent(rule, scheme, vehicle, road):
    pairs = random_pairs(3, len(get_scheme(scheme).classes))
    hood = hood_mask(24, 32) if rule == 'exact' else np.arange(24)[:, None] * 25 >= 496
    truths, answers = (
        [np.stack([np.isin(pair[index], vehicle) & ~hood, np.isin(pair[index], road)]) for pair in pairs]
        for index in (0, 1)
    )
    scores, judge = evaluate(pairs, scheme, hood=rule)
    expected = official(answers, truths)
    names = ('challenge/F2_vehicle', 'challenge/F0.5_road', 'challenge/F_avg')
    assert [scores[name] for name in names] == [round(100 * value, 4) for value in expected]
    counts = judge.metrics[0].counts
    assert scores['challenge/precision_road'] == round(100 * counts[1, 0] / counts[1, :2].sum(), 4)
    assert scores['challenge/recall_vehicle'] == round(100 * counts[0, 0] / counts[0, ::2].sum(), 4)
    assert len(scores) == 7
    assert f'hood: {rule}' in judge.metrics[0].table()
    # Whatever the batches; and a second evaluation starts from nothing.
    assert evaluate(pairs, scheme, 1, hood=rule)[0] == scores
    judge.metrics[0].process({}, [])
    assert not np.any(judge.metrics[0]._counts.numpy())


def test_pixels_without_a_label_do_not_count():
    label, pred = np.full((24, 32), 255), np.full((24, 32), 10)
    label[0, :4], label[1, :4], pred[1, :4] = 10, 7, 7
    scores, judge = evaluate([(label, pred)])
    np.testing.assert_array_equal(judge.metrics[0].counts, [[4, 0, 0], [4, 0, 0]])
    assert scores['challenge/F_avg'] == 100


def test_a_measured_hood_takes_the_place_of_the_published_one():
    label = np.full((24, 32), 10)
    label[0] = 7
    hood = np.zeros((24, 32), bool)
    hood[:, :4] = True
    meta = dict(hood=dict(size=[24, 32], spans=hood_spans(hood)))
    _, judge = evaluate([(label, label)], meta=meta)
    assert judge.metrics[0].counts[0].tolist() == [23 * 28, 0, 0]


def test_a_mask_that_was_never_answered_scores_zero_and_one_not_in_the_truth_is_said(monkeypatch):
    label, other = np.full((24, 32), 7), np.full((24, 32), 0)
    label[0] = 10
    scores, judge = evaluate([(label, other)])
    assert (scores['challenge/F_avg'], scores['challenge/F2_vehicle'], scores['challenge/F0.5_road']) == (
        0,
        0,
        0,
    )
    assert scores['challenge/recall_road'] == 0
    assert 'challenge/precision_road' not in scores
    assert 'n/a: road: TP + FP = 0, no pixel was answered' in judge.metrics[0].table()
    only_road = np.full((24, 32), 7)
    warned = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, text, *values: warned.append(text % values))
    scores, judge = evaluate([(only_road, only_road)])
    reason = 'vehicle: TP + FN = 0, the truth has no vehicle pixel, so recall and F are 0/0'
    assert warned == [f'challenge/F_avg is nan: {reason}']
    assert np.isnan(scores['challenge/F_avg'])
    assert scores['challenge/F0.5_road'] == 100
    assert 'challenge/F2_vehicle' not in scores
    assert 'n/a: vehicle: TP + FN = 0, the truth has no vehicle pixel' in judge.metrics[0].table()


def test_a_scheme_without_vehicles_and_an_unknown_rule_are_refused_when_built():
    metric = METRICS.build(dict(type='LyftScoreMetric'))
    with pytest.raises(InputError, match='no vehicle class among Background, Road'):
        metric.dataset_meta = get_scheme('road').metainfo
    with pytest.raises(InputError, match="LyftScoreMetric: hood 'mask'; choose one of: exact, rows"):
        METRICS.build(dict(type='LyftScoreMetric', hood='mask'))


def test_a_root_that_lost_a_label_is_not_graded(kaggle):
    for number in range(3):
        kaggle.add(f'F1-{number}')
    label = kaggle.root / 'dataA/dataA/CameraSeg/F1-1.png'
    label.unlink()
    image = kaggle.root / 'dataA/dataA/CameraRGB/F1-1.png'
    message = f'{image}: has no label in {label.parent} (1 such images); without it, the frames behind would'
    with pytest.raises(InputError, match=re.escape(message)):
        read_truth(kaggle.root)


def test_base64_in_lines_is_read(tmp_path):
    mask = np.random.default_rng(0).integers(0, 2, (40, 60), dtype=np.uint8)
    png = base64.b64decode(encode_mask(mask))
    wrapped = base64.encodebytes(png).decode()
    assert '\n' in wrapped.strip()
    (tmp_path / 'answer.json').write_text(json.dumps({'1': [wrapped, wrapped]}))
    np.testing.assert_array_equal(read_submission(tmp_path / 'answer.json').masks(1), [mask, mask])
