"""The challenge's masks and score against an independent one, its JSON, and the grading command."""

import base64
import io
import json
import os
import re
import shutil
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.cli import grade as grade_command
from mmseg_unet_lyft.datasets.carla import HOOD_PIXELS, get_scheme, hood_mask
from mmseg_unet_lyft.datasets.dataset_stats import Stats, write_stats
from mmseg_unet_lyft.datasets.layout import find_pairs
from mmseg_unet_lyft.datasets.prepare import Packing
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.evaluation.challenge import (
    SubmissionWriter,
    challenge_ids,
    challenge_masks,
    count_pixels,
    find_repeats,
    hood_region,
    read_submission,
    read_truth,
    score_dict,
    score_table,
)
from mmseg_unet_lyft.synthetic.scenes import draw_frame

from .test_video import encode

CARLA13 = get_scheme('carla13').classes


def official(answers, truths) -> tuple[float, float, float]:
    """Vehicle F2, road F0.5 and their mean, straight from the challenge's text: the independent scorer."""
    values = []
    for index, beta in ((0, 2), (1, 0.5)):
        said, is_true = (np.array([masks[index] for masks in side]) == 1 for side in (answers, truths))
        tp = (said & is_true).sum()
        p, r = tp / said.sum(), tp / is_true.sum()
        values.append((1 + beta**2) * ((p * r) / (beta**2 * p + r)))
    return values[0], values[1], (values[0] + values[1]) / 2


def random_masks(number: int, size: tuple[int, int] = (24, 32), seed: int = 3) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 2, (number, 2, *size), dtype=np.uint8))


def write_answer(path: Path | io.StringIO, frames) -> Path:
    with SubmissionWriter(path) as writer:
        for masks in frames:
            writer.add(masks)
    return path


def graded(*arguments: str | Path) -> int:
    return grade_command.main([str(argument) for argument in arguments])


def scores_of(path: Path, *arguments: str | Path) -> dict:
    """What the command writes as JSON."""
    assert graded(*arguments, '--json', path) == 0
    return json.loads(path.read_text())


def shares(counts: np.ndarray) -> list[tuple[float | None, ...]]:
    """Precision, recall and F of vehicle and of road, in [0, 1]."""
    masks = score_dict(counts, 'exact')['masks'].values()
    scores = [(one['precision'], one['recall'], one['f']) for one in masks]
    return [tuple(None if value is None else value / 100 for value in one) for one in scores]


def test_classes_are_found_by_name_in_every_scheme_that_has_them():
    assert challenge_ids(CARLA13) == ((10,), (6, 7))
    assert challenge_ids(get_scheme('challenge3').classes) == ((2,), (1,))
    with pytest.raises(InputError, match='vehicle class .*Background, Road'):
        challenge_ids(get_scheme('road').classes)
    with pytest.raises(InputError, match='road class .*None, Vehicles'):
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
    with pytest.raises(InputError, match="'row' .*exact, rows"):
        hood_region('row', 4, 4)


@pytest.mark.parametrize('seed', range(20))
def test_scores_equal_an_independent_scorers_to_the_last_digit(seed):
    answers, truths = random_masks(3, (5, 7), seed), random_masks(3, (5, 7), seed + 100)
    counts = sum(count_pixels(*pair) for pair in zip(answers, truths, strict=True))
    scores = score_dict(counts, 'exact')
    found = (scores['masks']['vehicle']['f'], scores['masks']['road']['f'], scores['average'])
    assert found == tuple(100 * score for score in official(answers, truths))


def test_one_frame_counted_by_hand():
    truth = np.array([[[1, 1, 1, 1], [0, 0, 0, 0]], [[1, 1, 0, 0], [0, 0, 0, 0]]], np.uint8)
    answer = np.array([[[1, 1, 1, 0], [1, 0, 0, 0]], [[1, 0, 1, 1], [1, 0, 0, 0]]], np.uint8)
    counts = count_pixels(answer, truth)
    np.testing.assert_array_equal(counts, [[3, 1, 1], [1, 3, 1]])
    vehicle, road = shares(counts)
    assert vehicle == (0.75, 0.75, pytest.approx(0.75))
    # P = 1/4, R = 1/2: 1.25 / 8 / (1/16 + 1/2) = 5/18.
    assert road == (0.25, 0.5, pytest.approx(5 / 18))
    table = ' '.join(score_table(counts, 'exact', 7.5).split())
    assert 'vehicle F2 75.0000 75.0000 75.0000 3 1 1' in table
    assert 'road F0.5 27.7778 25.0000 50.0000 1 3 1' in table
    assert f'final score {100 * (0.75 + 5 / 18) / 2 - 2.5:.4f}' in table


def test_only_values_0_and_1_count():
    truth = np.array([1, 1, 0, 0, 255, 255, 255], np.uint8)
    answer = np.array([1, 2, 1, 2, 1, 0, 2], np.uint8)
    counts = count_pixels(*(np.broadcast_to(one, (2, 1, 7)) for one in (answer, truth)))
    np.testing.assert_array_equal(counts, [[1, 1, 0], [1, 1, 0]])


@pytest.mark.parametrize(
    ('row', 'values', 'final'),
    [
        ((0, 0, 0), (None, None, None), None),
        ((0, 5, 0), (0.0, None, None), None),
        # Of road all is right: (0 + 1) / 2, less 5 frames a second.
        ((0, 0, 5), (None, 0.0, 0.0), 45.0),
        ((0, 5, 5), (0.0, 0.0, 0.0), 45.0),
    ],
)
def test_where_the_official_formula_is_0_by_0_f_is_0_and_n_a_only_without_true_pixels(row, values, final):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        counts = np.array([row, (1, 0, 0)])
        vehicle, road = shares(counts)
        assert vehicle == values
        assert score_dict(counts, 'exact')['average'] == (None if final is None else 50.0)
        table = score_table(counts, 'exact', 5.0)
    assert 'note: vehicle: ' in table
    assert score_dict(counts, 'exact', 5.0)['final_score'] == final
    assert road[2] == 1.0


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
    # Base64 in lines, as some libraries write it.
    wrapped = base64.encodebytes(base64.b64decode(content['1'][0])).decode()
    path.write_text(json.dumps({'1': [wrapped, wrapped]}))
    np.testing.assert_array_equal(read_submission(path).masks(1), [frames[0][0]] * 2)


@pytest.mark.parametrize('number', [0, 2])
def test_an_open_file_gets_the_json_alone_and_stays_open(number):
    target = io.StringIO()
    write_answer(target, random_masks(number))
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
    monkeypatch.setattr(os, 'fdopen', lambda handle, *_: FullDisk(handle, 'w'))
    masks = np.zeros((2, 4, 4), np.uint8)
    with pytest.raises(InputError, match=r'answer.json: .*No space left on device.* 2 frames'):
        write_answer(path, [masks] * 9)
    monkeypatch.setattr(FullDisk, 'room', 0)
    with pytest.raises(InputError, match=r'other.json: .*No space left on device'):
        SubmissionWriter(tmp_path / 'other.json')
    monkeypatch.undo()
    assert len(read_submission(path)) == 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named_before_the_first_frame(tmp_path):
    (tmp_path / 'file').touch()
    for target in (tmp_path / 'file' / 'answer.json', tmp_path):
        with pytest.raises(InputError, match=re.escape(f'{target}: cannot be written')):
            SubmissionWriter(target)
    assert [file.name for file in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('[' * 100_000, 'JSON'),
        ('[]', 'list'),
        ('{"0": ["", ""], "1": ["", ""]}', 'frame 2'),
        ('{"1": ["", ""], "4": ["", ""], "5": ["", ""]}', 'frame 2'),
        ('{"1": ["", ""], "2": [""]}', 'frame 2'),
        ('{"1": {"vehicle": ""}}', 'frame 1'),
    ],
)
def test_what_is_not_a_challenge_json_is_refused_with_its_fault(text, message, tmp_path):
    path = tmp_path / 'answer.json'
    path.write_text(text)
    with pytest.raises(InputError, match=f'answer.json: .*{message}'):
        read_submission(path)


def png(mask: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(mask).save(content, 'PNG')
    return content.getvalue()


GOOD = png(np.zeros((4, 5), np.uint8))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('ä', 'base64'),
        ('', 'PNG'),
        (png(np.zeros((4, 6), np.uint8)), '4x6.* 4x5'),
        (png(np.pad(np.uint8([[255, 7]]), ((2, 1), (3, 0)))), r'255 at \(row 2, col 3\), 2 '),
        (png(np.zeros((4, 5, 3), np.uint8)), '4x5.* grey'),
        (png(np.zeros((4, 5), np.uint16)), '4x5.* 8-bit'),
        (GOOD[:45] + bytes([GOOD[45] ^ 1]) + GOOD[46:], 'damaged'),
        (GOOD[:16] + (100_000).to_bytes(4, 'big') * 2 + GOOD[24:], '100000x100000'),
    ],
)
def test_an_invalid_mask_is_named_by_file_frame_and_mask(content, message, tmp_path):
    text = content if isinstance(content, str) else base64.b64encode(content).decode()
    good = base64.b64encode(GOOD).decode()
    path = tmp_path / 'answer.json'
    path.write_text(json.dumps({'1': [good, good], '2': [good, text]}))
    answer = read_submission(path)
    np.testing.assert_array_equal(answer.masks(1, (4, 5)), np.zeros((2, 4, 5)))
    with pytest.raises(InputError, match='frame 1, vehicle mask: 4x5.* 5x4'):
        answer.masks(1, (5, 4))
    with pytest.raises(InputError, match=f'answer.json: frame 2, road mask: .*{message}'):
        answer.masks(2)


def test_the_command_prints_the_official_scores_and_writes_them(tmp_path, capsys):
    answers, truths = random_masks(2), random_masks(2, seed=4)
    answer, truth = write_answer(tmp_path / 'a.json', answers), write_answer(tmp_path / 't.json', truths)
    out = tmp_path / 'scores.json'
    scores = scores_of(out, answer, truth, '--fps', '8')
    vehicle, road, average = official(answers, truths)
    found = [scores['masks']['vehicle']['f'], scores['masks']['road']['f'], scores['average']]
    assert found == pytest.approx([100 * vehicle, 100 * road, 100 * average], abs=1e-12)
    assert (scores['unit'], scores['final_score']) == ('percent', scores['average'] - 2)
    assert (scores['hood'], scores['frames'], scores['notes']) == ('as in TRUTH', 2, [])
    printed = capsys.readouterr().out
    assert f'average F      {100 * average:.4f}' in printed
    assert printed.endswith(f'graded 2 frames of {answer} against {truth}; wrote {out}\n')


def label_folder(kaggle):
    """Labels with road, lines and vehicles on a hood: tags in stripes, frames 2 and 10 unlike."""
    for number in (10, 2):
        tags = np.repeat(np.roll([7, 6, 10, 0], number // 10), 6)[:, None] * np.ones((1, 32), int)
        tags[:, :4] = 10
        kaggle.add(f'F1-{number}', tags=tags)
    return kaggle.root


def masks_of(root: Path, hood: np.ndarray) -> list[np.ndarray]:
    """The masks of `label_folder` in natural order."""
    paths = [root / 'dataA/dataA/CameraSeg' / name for name in ('F1-2.png', 'F1-10.png')]
    tags = [cv2.imread(str(path))[..., 2] for path in paths]
    return [np.stack([(one == 10) & ~hood, np.isin(one, (6, 7))]).astype(np.uint8) for one in tags]


@pytest.mark.parametrize('rule', ['exact', 'rows'])
@pytest.mark.parametrize('place', ['.', 'dataA/dataA/CameraSeg', 'packed'])
def test_label_pngs_are_taken_in_natural_order_by_either_hood_rule(kaggle, tmp_path, capsys, rule, place):
    root = label_folder(kaggle)
    if place == 'packed':
        Packing(find_pairs(root, ['F1']), root / place).write()
    (root / place / 'note.txt').write_text('not a frame')
    hood = hood_mask(24, 32) if rule == 'exact' else np.arange(24)[:, None] * 25 >= 496
    masks = masks_of(root, hood)
    answer, out = write_answer(tmp_path / 'answer.json', masks), tmp_path / 'scores.json'
    scores = scores_of(out, answer, root / place, '--hood', rule)
    assert scores['average'] == 100
    assert scores['masks']['vehicle']['tp'] == sum(int(one[0].sum()) for one in masks)
    assert f'hood: {rule}\n' in capsys.readouterr().out
    # The other rule has other vehicle pixels here.
    other = 'rows' if rule == 'exact' else 'exact'
    assert scores_of(out, answer, root / place, '--hood', other)['masks']['vehicle']['f'] < 100


def test_a_prepared_root_brings_its_own_hood(kaggle, tmp_path, capsys):
    root, hood = label_folder(kaggle), np.zeros((24, 32), bool)
    hood[:, :4] = True
    write_stats(root / 'stats.json', Stats(size=(24, 32), hood=hood))
    answer = write_answer(tmp_path / 'answer.json', masks_of(root, hood))
    assert scores_of(tmp_path / 'scores.json', answer, root)['average'] == 100
    assert f'hood: exact, as measured in {root}' in capsys.readouterr().out


def refusal(capsys, *arguments: str | Path) -> str:
    """The command's message for what it does not grade."""
    assert graded(*arguments) == 2
    return capsys.readouterr().err.split('error: ')[-1]


def test_what_cannot_be_graded_is_one_message(tmp_path, capsys):
    frames = random_masks(3)
    answer, truth = write_answer(tmp_path / 'a.json', frames[:1]), write_answer(tmp_path / 't.json', frames)
    small = write_answer(tmp_path / 's.json', [masks[:, :20] for masks in frames])
    none = write_answer(tmp_path / 'none.json', [])
    (tmp_path / 'empty').mkdir()
    for arguments, message in (
        ((answer, truth), f'{answer}: 1 frames, but {truth} has 3;'),
        ((small, truth), f'{small}: frame 1, vehicle mask: 20x32, expected 24x32 .*frame 1 of {truth};'),
        ((answer, none), f'{none}: '),
        ((answer, tmp_path / 'empty'), f'{tmp_path / "empty"}: .*CameraSeg'),
        ((answer, truth, '--json', truth), f'--json {truth}: '),
        ((answer, truth, '--drop-repeated', '7'), '7: '),
    ):
        assert re.match(message, refusal(capsys, *arguments)), message


def test_labels_that_would_move_others_up_or_hold_wrong_ids_are_named(kaggle, tmp_path, capsys):
    root = label_folder(kaggle)
    labels = root / 'dataA/dataA/CameraSeg'
    answer = write_answer(tmp_path / 'a.json', [masks[:, :20] for masks in random_masks(2)])
    assert f'expected 24x32 (height x width) as {labels / "F1-2.png"};' in refusal(capsys, answer, labels)
    (labels / 'F1-3.jpg').touch()
    for place in (root, labels):
        assert refusal(capsys, answer, place).startswith(f'{labels / "F1-3.jpg"}: ')
    (labels / 'F1-3.jpg').unlink()
    label = labels / 'F1-2.png'
    Image.fromarray(np.full((24, 32), 77, np.uint8)).save(label)
    assert refusal(capsys, answer, labels).startswith(f'{label}: class id 77 at (row 0, col 0)')
    label.unlink()
    assert 'F1-2.png: has no label' in refusal(capsys, answer, root)
    # Images saved as JPEG do not matter.
    for path in (root / 'dataA/dataA/CameraRGB').iterdir():
        path.rename(path.with_suffix('.jpg'))
    assert len(read_truth(root)) == 1
    for folder in ('dataA/dataA', 'dataB/dataB'):
        kaggle.add('F1-2', folder=folder)
    assert 'F1-2.png has the same name' in refusal(capsys, answer, root)


def test_scores_are_never_written_over_an_input(drive, tmp_path, capsys):
    inputs = [tmp_path / name for name in ('answer.json', 'truth.json', 'video.mp4')]
    for path in inputs:
        shutil.copy(drive[0] / path.name, path)
    (tmp_path / 'symbolic').symlink_to(inputs[1])
    (tmp_path / 'hard').hardlink_to(inputs[2])
    (tmp_path / 'x').mkdir()
    content = [path.read_bytes() for path in inputs]
    for out in (tmp_path / 'x/../answer.json', tmp_path / 'symbolic', tmp_path / 'hard'):
        message = refusal(capsys, *inputs[:2], '--drop-repeated', inputs[2], '--json', out)
        assert message.startswith(f'--json {out}: ')
    assert [path.read_bytes() for path in inputs] == content


@pytest.fixture(scope='module')
def drive(tmp_path_factory):
    """A synthetic drive of 30 frames: its truth, a video with frame 14 (from 0) twice, that one's masks."""
    folder = tmp_path_factory.mktemp('drive')
    images, masks = [], []
    for frame in range(30):
        image, tags = draw_frame('F3', frame, height=64, width=96)
        images.append(image)
        masks.append(challenge_masks(tags, CARLA13))
    shown = [*range(15), *range(14, 30)]
    encode(folder / 'video.mp4', [images[frame] for frame in shown])
    encode(folder / 'exact.mp4', images)
    write_answer(folder / 'truth.json', masks)
    write_answer(folder / 'answer.json', [masks[frame] for frame in shown])
    return folder, masks


def test_a_repeated_frame_spoils_a_perfect_answer_until_it_is_dropped(drive, tmp_path, capsys):
    folder, truths = drive
    out, truth = tmp_path / 'scores.json', folder / 'truth.json'
    scores = scores_of(out, folder / 'answer.json', truth, '--hood', 'rows')
    vehicle, _, average = official([*truths[:15], *truths[14:29]], truths)
    found = scores['masks']['vehicle']['f'], scores['average']
    assert found == pytest.approx((100 * vehicle, 100 * average), abs=1e-12)
    assert vehicle < 0.9
    printed = capsys.readouterr().out
    assert re.search('note: 1 .* 30 .*--drop-repeated VIDEO', printed)
    assert 'note: --hood rows has no effect' in printed
    drop = '--drop-repeated', folder / 'video.mp4', '--fps', '25'
    scores = scores_of(out, folder / 'answer.json', truth, *drop)
    assert (scores['average'], scores['final_score']) == (100, 100)
    assert 'note: dropped: frame 16 of the answer' in capsys.readouterr().out
    assert scores_of(out, truth, truth, '--drop-repeated', folder / 'exact.mp4')['average'] == 100
    assert 'note: nothing dropped' in capsys.readouterr().out


def test_a_video_without_enough_repeats_or_of_another_answer_is_refused(drive, tmp_path, capsys):
    folder, masks = drive
    video = folder / 'video.mp4'
    truth = write_answer(tmp_path / 'truth.json', masks[:29])
    message = refusal(capsys, folder / 'answer.json', truth, '--drop-repeated', video)
    assert message.startswith(f'{video}: 31 frames, 2 more than the truth, 1 like')
    message = refusal(capsys, folder / 'truth.json', folder / 'truth.json', '--drop-repeated', video)
    assert '1 more than the truth, 1 like' in message
    assert '30 answered' in message


def grey(*levels: int):
    return (np.full((4, 4, 3), level, np.uint8) for level in levels)


def test_the_frames_nearest_to_the_one_before_are_the_repeats():
    levels = (0, 40, 41, 80, 80, 120, 121, 160)
    found = find_repeats(grey(*levels), 'v', 8, 6)
    # Frame 5 is the same as frame 4; frames 3 and 7 are 1 from theirs, and the first of them is taken.
    assert (found.num_frames, found.frames, found.further) == (8, {3: 1.0, 5: 0.0}, 1)
    assert find_repeats(iter([]), 'v', 0, 3).frames == {}
    assert find_repeats(grey(*levels), 'v', 8, 7).frames == {5: 0.0}
