"""A run's page says what was run and what came of it, whatever names it holds, and never ends the run."""

import base64
import csv
import json
import sys
from html.parser import HTMLParser
from importlib import util

import cv2
import numpy as np
import pytest
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from mmengine.config import Config

from mmseg_unet_lyft import compat
from mmseg_unet_lyft.cli import report
from mmseg_unet_lyft.engine.config_changes import describe_changes, differences
from mmseg_unet_lyft.engine.report_hook import LyftReportHook
from mmseg_unet_lyft.engine.trackers import use_trackers
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.evaluation.challenge import score_dict
from mmseg_unet_lyft.report.curves import PANELS
from mmseg_unet_lyft.report.frames_sheet import FrameSheet, Score, choose, error_map
from mmseg_unet_lyft.report.run_data import read_latency, read_run
from mmseg_unet_lyft.report.run_page import build_page, describe_card, write_report

from .conftest import KaggleFolder
from .test_resume import run, weights_of

HOSTILE = '<img src=x onerror=alert(1)>'
# Roads 3 of 4 right, Vehicles 1 of 2, no Walls in the truth: IoU 3/5, 1/3, n/a.
CONFUSION = [[3, 1, 0], [1, 1, 0], [0, 0, 0]]
PALETTE = [[128, 64, 128], [0, 0, 250], [102, 102, 156]]


def scored(*values):
    return [
        Score(value, f'{index:03}.png', 0, index, np.float32([value])) for index, value in enumerate(values)
    ]


def write_run(folder, name='F1-0.png', **changes):
    """A work dir as a run leaves it, with two validations and one frame of this name; returns it."""
    tiny = cv2.imencode('.jpg', np.full((30, 40, 3), 90, np.uint8))[1].tobytes()
    picture = f'data:image/jpeg;base64,{base64.b64encode(tiny).decode()}'
    pictures = dict.fromkeys(('image', 'truth', 'prediction', 'errors'), picture)
    frame = dict(group='worst', path=name, miou=41.25, lowest=[['Vehicles', 33.3]], problem=None)
    result = dict(kind='validation', step=20, split='val', frames=1, classes=['Roads', 'Vehicles', 'Walls'])
    metrics = {'mIoU': 46.67, 'aAcc': 66.67, 'val_loss': 0.5, 'challenge/F_avg': None}
    card = dict(
        command=['train', 'c.py', '--cfg-options', 'a=1'],
        seed=7,
        config=dict(name=name, sha256='ab', text='a = 1\nb = 2'),
        data=dict(root=name, split='train', frames=5, manifest_sha256='cafe'),
        git=dict(commit='c0ffee', is_changed=False),
        config_changes=[dict(what='beside c.py', rows=[['a', '0', '1'], ['model.x', '2', name]])],
        result=result | dict(palette=PALETTE, metrics=metrics, confusion=CONFUSION, challenge=None),
        latency=None,
    )
    log = folder / '20250101_000000/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    entries = [dict(step=step, loss=1 / step, lr=0.1, time=0.4, data_time=0.1) for step in (10, 20)]
    entries += [{'step': step, 'mIoU': 40.0, 'aAcc': 60.0, 'IoU.Roads': 60.0} for step in (10, 20)]
    log.write_text(''.join(f'{json.dumps(entry)}\n' for entry in entries))
    (folder / 'report').mkdir()
    (folder / 'report/run_card.json').write_text(json.dumps(card | changes))
    (folder / 'report/frames.json').write_text(json.dumps([frame | dict(pictures=pictures)]))
    return folder


class Elements(HTMLParser):
    """All elements of a page with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ''
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


# --- frames ------------------------------------------------------------------------------------------------


def test_the_frames_shown_are_the_worst_the_middle_and_the_best():
    groups = choose(scored(*np.random.default_rng(0).permutation(np.arange(40) / 40)))
    places = {group: [round(one.miou * 40) for one in members] for group, members in groups.items()}
    assert places == dict(worst=list(range(12)), median=list(range(14, 26)), best=[39, 38, 37, 36, 35, 34])


@pytest.mark.parametrize('total', [0, 1, 2, 5, 17, 30, 31])
def test_of_few_frames_none_is_shown_twice_and_up_to_thirty_all_are(total):
    shown = [one.path for members in choose(scored(*np.linspace(0, 1, total))).values() for one in members]
    assert len(shown) == len(set(shown)) == min(total, 30)


def test_an_error_map_marks_wrong_pixels_and_those_that_do_not_count():
    label, pred = np.uint8([[0, 1, 255]]), np.uint8([[0, 0, 0]])
    shown = error_map(np.full((1, 3, 3), 100, np.uint8), label, pred)
    assert shown.tolist() == [[[130, 130, 130], [230, 30, 30], [255, 255, 255]]]


def test_a_frame_has_its_score_and_its_pictures_and_one_that_is_gone_says_so(kaggle: KaggleFolder):
    image, _ = kaggle.add('F1-0', size=(24, 32))
    label = np.repeat(np.uint8([[0, 1, 255, 0]]), 24, 0).repeat(8, 1)
    sheet = FrameSheet(3)
    sheet.add(str(image), label, np.zeros_like(label))
    sheet.add(str(image), np.full_like(label, 255), label)
    (score,) = sheet.scores
    # Class 0: 16 columns right of 24 that count; class 1: none.
    assert score.miou == pytest.approx((2 / 3 + 0) / 2)
    frame = sheet.picture(score, 'worst', dict(classes=['a', 'b', 'c'], palette=PALETTE))
    assert frame['lowest'] == [('b', 0.0), ('a', pytest.approx(200 / 3))]
    errors = base64.b64decode(frame['pictures']['errors'].partition(',')[2])
    pixels = cv2.imdecode(np.frombuffer(errors, np.uint8), cv2.IMREAD_COLOR)[12, [12, 20]].astype(int)
    assert abs(pixels - [[30, 30, 230], [255, 255, 255]]).max() < 40
    image.unlink()
    gone = sheet.picture(score, 'worst', dict(classes=['a', 'b', 'c'], palette=PALETTE))
    assert 'F1-0.png' in gone['problem']
    assert gone['pictures'] == {}


# --- config ------------------------------------------------------------------------------------------------


def test_config_keys_that_differ_are_told_by_their_dotted_names():
    before = Config(dict(a=1, b=[dict(c=2), dict(d=3)], same=(1, 2), work_dir='x', gone='y'))
    after = Config(dict(a=5, b=[dict(c=2), dict(d=4)], same=[1, 2], work_dir='z', new=None))
    assert differences(before, after) == [
        ('a', '1', '5'),
        ('b.1.d', '3', '4'),
        ('new', '-', 'None'),
        ('gone', "'y'", '-'),
    ]


def test_a_config_is_told_beside_its_file_and_that_beside_its_base(tmp_path):
    (tmp_path / 'base.py').write_text('a = 1\nb = 1\n')
    (tmp_path / 'leaf.py').write_text("_base_ = ['base.py']\nb = 2\n")
    config = Config.fromfile(str(tmp_path / 'leaf.py'))
    config.a = 3
    as_run, of_base = describe_changes(config)
    assert (as_run['rows'], of_base['rows']) == ([('a', '1', '3')], [('b', '1', '2')])
    (tmp_path / 'leaf.py').unlink()
    (gone,) = describe_changes(config)
    assert 'leaf.py: no such config file' in gone['problem']


# --- the page ----------------------------------------------------------------------------------------------


def test_names_on_a_page_stay_text_and_nothing_is_loaded_or_run(tmp_path):
    (folder,) = [write_run(tmp_path / 'run', HOSTILE)]
    page = write_report(folder).read_text()
    assert HOSTILE not in page
    elements = Elements(page)
    assert elements.text.count(HOSTILE) >= 4
    assert {tag for tag, _ in elements.found} & {'script', 'iframe', 'object', 'base', 'form'} == set()
    for _, attributes in elements.found:
        assert not [name for name in attributes if name.startswith('on')]
        for name in ('src', 'href'):
            assert attributes.get(name, 'data:').startswith('data:')
    (policy,) = [dict(found)['content'] for _, found in elements.found if 'http-equiv' in found]
    assert policy.startswith("default-src 'none'")


def test_a_page_tells_classes_with_na_for_what_the_truth_has_not(tmp_path):
    text = ' '.join(Elements(build_page(read_run(write_run(tmp_path / 'run')))).text.split())
    # IoU, F, precision, recall, pixels, predicted.
    assert 'Roads 60.00 75.00 75.00 75.00 4 4'.replace(' ', '') in text.replace(' ', '')
    assert 'Vehicles33.3350.0050.0050.0022' in text.replace(' ', '')
    assert 'Walls' + 4 * 'n/a' + '00' in text.replace(' ', '')
    assert 'left out of the mean: Walls' in text
    assert 'git checkout c0ffee mmseg_unet_lyft train --seed 7 c.py --cfg-options a=1' in text
    assert 'A step took 400 ms on the mean: 25.0 % waiting for data, 75.0 % computing.' in text
    assert 'The data must have the manifest cafe.' in text


def test_a_page_has_the_challenges_score_and_why_there_is_none(tmp_path):
    folder = write_run(tmp_path / 'run')
    assert 'Not scored: the evaluator has no LyftScoreMetric' in build_page(read_run(folder))
    card = json.loads((folder / 'report/run_card.json').read_text())
    # Vehicle: P 1/2, R 1/3, F2 5/14; of road nothing is right.
    card['result']['challenge'] = score_dict(np.array([[1, 1, 2], [0, 3, 4]]), 'exact')
    (folder / 'report/run_card.json').write_text(json.dumps(card))
    text = ''.join(Elements(build_page(read_run(folder))).text.split())
    assert 'vehicle,F20.35710.50000.3333' in text
    assert 'road,F0.5n/a0.00000.0000' in text
    assert 'n/a:road:TP=0,precisionandrecallare0' in text


def test_a_page_says_what_is_not_there_yet(tmp_path):
    folder = write_run(tmp_path / 'run', result=None, config_changes=[])
    (folder / 'report/frames.json').unlink()
    text = Elements(write_report(folder).read_text()).text
    assert text.count('No validation yet.') == 4
    assert 'Training is at step 20.' in text
    assert not (folder / 'report/results.csv').exists()


def test_a_new_training_is_not_told_by_an_old_test(tmp_path):
    scores = dict(metrics=dict(mIoU=99.0), iou=dict.fromkeys(('Roads', 'Vehicles', 'Walls')))
    folder = write_run(tmp_path / 'run', result=None)
    (folder / 'scores.json').write_text(json.dumps(scores | dict(confusion=CONFUSION)))
    assert read_run(folder).result is None
    # A work dir of before there were reports.
    (folder / 'report/run_card.json').unlink()
    assert read_run(folder).result['metrics'] == dict(mIoU=99.0)


def test_a_page_says_how_to_measure_this_runs_model(tmp_path):
    folder = write_run(tmp_path / 'a run')
    assert (
        'benchmark latency CHECKPOINT --json latency.json measures'
        in Elements(build_page(read_run(folder))).text
    )
    for name in ('best_mIoU_iter_20.pth', 'iter_40.pth'):
        (folder / name).touch()
    text = Elements(build_page(read_run(folder))).text
    assert f"mmseg_unet_lyft benchmark latency '{folder}/best_mIoU_iter_20.pth' --json latency.json" in text
    assert f"mmseg_unet_lyft report '{folder}' --latency latency.json" in text
    tested = write_run(tmp_path / 'test', checkpoint='elsewhere/iter_9.pth')
    assert 'latency elsewhere/iter_9.pth --json' in Elements(build_page(read_run(tested))).text


def test_a_card_that_does_not_know_the_machine_does_not_deny_a_gpu(tmp_path):
    rows = dict(describe_card(dict(seed=1)))
    assert (rows['GPU'], rows['threads']) == ('not known', 'not known')
    assert dict(describe_card(dict(machine=dict(gpu=None))))['GPU'] == 'none'


def test_a_class_may_have_any_name(tmp_path):
    folder = write_run(tmp_path / 'run')
    card = json.loads((folder / 'report/run_card.json').read_text())
    # A formula that there is none of, one that would be drawn as such, and a name that a legend leaves out.
    names = [r'$\q$', '$x$', '_hidden']
    card['result']['classes'] = names
    (folder / 'report/run_card.json').write_text(json.dumps(card))
    entry = {'step': 1, 'mIoU': 1.0} | {f'IoU.{name}': 50.0 for name in names}
    (folder / '20250101_000000/vis_data/scalars.json').write_text(json.dumps(entry))
    assert r'$\q$' in Elements(write_report(folder).read_text()).text
    axes = Figure().subplots()
    PANELS['IoU of each class'](axes, [], [entry])
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [text.strip('\u200b') for text in shown] == [r'\$\q\$', r'\$x\$', '_hidden']
    assert not any(map(is_math_text, shown))


def test_the_tables_beside_a_page_hold_its_figures(tmp_path):
    folder = write_run(tmp_path / 'run')
    write_report(folder)
    rows = list(csv.DictReader((folder / 'report/results.csv').open()))
    assert [row['class'] for row in rows] == ['Roads', 'Vehicles', 'Walls']
    assert float(rows[1]['iou']) == pytest.approx(100 / 3)
    assert (rows[2]['iou'], rows[2]['pixels']) == ('n/a', '0')
    matrix = list(csv.reader((folder / 'report/confusion_matrix.csv').open()))
    assert [list(map(int, line[1:])) for line in matrix[1:]] == CONFUSION
    for name in ('confusion_matrix.png', 'curves.png'):
        assert cv2.imread(str(folder / 'report' / name)).std() > 10


# --- the command -------------------------------------------------------------------------------------------


def test_two_runs_side_by_side_have_what_differs_marked_and_nothing_else(tmp_path, capsys):
    first = write_run(tmp_path / 'first')
    config = dict(name='F1-0.png', sha256='cd', text='a = 1\nb = 3')
    second = write_run(tmp_path / 'second', seed=8, config=config)
    card = json.loads((second / 'report/run_card.json').read_text())
    card['result']['confusion'][0] = [4, 0, 0]
    (second / 'report/run_card.json').write_text(json.dumps(card))
    assert report.main([str(first), str(second)]) == 0
    path = first / 'report/comparison.html'
    assert capsys.readouterr().out == f'wrote {path}\n'
    page = path.read_text()
    marked = [part.partition('</tr>')[0] for part in page.split('<tr class="differs">')[1:]]
    names = [row.partition('<th>')[2].partition('</th>')[0] for row in marked]
    assert names == ['config', 'seed', 'IoU Roads', 'IoU Vehicles']
    # IoU of roads: 4 of 5 after 3 of 5.
    assert '80.00 (+20.00)' in marked[2]
    assert [Elements(line).text for line in page.split('\n') if '<ins>' in line or '<del>' in line][
        -1
    ] == '+b = 3'


def test_a_latency_card_is_put_on_the_page_and_stays(tmp_path):
    folder, card = write_run(tmp_path / 'run'), tmp_path / 'latency.json'
    card.write_text(json.dumps(dict(device='cpu', stages={'decode': dict(p50=1.25, p95=2.5)})))
    assert report.main([str(folder), '--latency', str(card)]) == 0
    assert report.main([str(folder)]) == 0
    text = Elements((folder / 'report/index.html').read_text()).text
    assert 'decode1.252.50' in ''.join(text.split())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nowhere'], 'nowhere: no such folder; name the work dir of a run'),
        (['empty'], 'empty: holds nothing of a run, no report/run_card.json'),
        (['broken'], 'run_card.json: is no JSON ('),
        (['empty', '--out', 'x.html'], "--out: a run's own page stands in its work dir"),
        (['empty', 'empty', '--latency', 'x.json'], '--latency: is of one run'),
        (['empty', '--latency', 'none.json'], 'none.json: no such file; write one with benchmark latency'),
    ],
)
def test_what_cannot_be_reported_on_is_said(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'broken/report').mkdir(parents=True)
    (tmp_path / 'broken/report/run_card.json').write_text('{')
    assert report.main(arguments) == 2
    assert message in capsys.readouterr().err


DEEP = '[' * 100_000 + ']' * 100_000
OF_THREE = '"iou": {"a": 1, "b": 1, "c": null}, "metrics": {"mIoU": 1}'


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('scores.json', '{"confusion": [[1]]}', r'scores\.json: metrics is missing; remove it'),
        ('scores.json', f'{{{OF_THREE}, "confusion": [[1]]}}', r'confusion is not of 3 x 3 counts'),
        (
            'scores.json',
            f'{{{OF_THREE}, "confusion": {[[10**30] * 3] * 3}}}',
            'confusion has what is no count',
        ),
        ('scores.json', f'{{{OF_THREE}, "floors": {{"x": {{}}}}}}', r'floors\.x\.iou is missing'),
        ('report/frames.json', '[1]', r'frames\.json: \[0\] is no dict; remove it, or restore it'),
        ('report/frames.json', '[{"group": "worst"}]', r'\[0\]\.path is missing'),
        ('report/frames.json', '{}', r'frames\.json: holds a dict in place of a list'),
        ('report/frames.json', DEEP, r'frames\.json: is no JSON \('),
        ('report/run_card.json', '{"data": "x"}', r'run_card\.json: data is no dict'),
        ('report/run_card.json', '{"since": 5}', r'run_card\.json: since is 5;'),
        (
            'report/run_card.json',
            '{"config_changes": [{"what": "a", "rows": [["b"]]}]}',
            r'1 values in place',
        ),
        (
            'report/run_card.json',
            '{"result": {"kind": "test", "palette": [[1, 2, 3]]}}',
            'palette is not of 0',
        ),
        ('report/run_card.json', f'{{"x": {DEEP}}}', r'run_card\.json: is no JSON \('),
        ('report/run_card.json', '{"latency": {"stages": {"a": 1.0}}}', r'latency\.stages\.a is no dict'),
        ('20250101_000000/vis_data/scalars.json', '{"loss": 1}\n', r'scalars\.json: is no log of scalars'),
        ('20250101_000000/vis_data/scalars.json', '{"step": 1, "lr": "x"}', r'is no log of scalars \(\{'),
        ('20250101_000000/vis_data/scalars.json', '1}', r'is no log of scalars \(Extra data'),
    ],
)
def test_a_damaged_file_of_a_run_is_named_with_what_is_wrong(tmp_path, name, content, message):
    folder = write_run(tmp_path / 'run')
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=message):
        write_report(folder)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{"stages": {"a": 1.0}}', r'stages\.a is no dict; write one with benchmark latency'),
        ('{"stages": {"a": {"p50": "x"}}}', r"stages\.a\.p50 is 'x'; write one with"),
        ('{}', 'stages is missing; write one with'),
        (DEEP, r'is no JSON \(.*; write one with'),
    ],
)
def test_a_latency_card_that_is_none_is_refused(tmp_path, content, message):
    (tmp_path / 'latency.json').write_text(content)
    with pytest.raises(InputError, match=message):
        read_latency(tmp_path / 'latency.json')


def test_what_writes_pages_and_is_missing_is_named_with_the_remedy(tmp_path, monkeypatch, capsys):
    found = util.find_spec
    monkeypatch.setattr(compat, 'find_spec', lambda name: None if name == 'jinja2' else found(name))
    assert report.main([str(write_run(tmp_path / 'run'))]) == 2
    assert capsys.readouterr().err == 'error: this command needs jinja2; install with: pip install jinja2\n'


# --- real runs ---------------------------------------------------------------------------------------------


@pytest.mark.stack
def test_a_training_run_leaves_its_page_and_trains_as_without_it(three_drives, tmp_path):
    runner = run(tmp_path / 'run', LyftReportHook(), seed=3, max_iters=2)
    folder = tmp_path / 'run/report'
    card = json.loads((folder / 'run_card.json').read_text())
    assert (card['seed'], card['result']['kind'], card['result']['step']) == (3, 'validation', 2)
    assert card['result']['metrics']['mIoU'] == runner.message_hub.get_scalar('val/mIoU').current()
    # Three frames of 32x48.
    assert np.sum(card['result']['confusion']) == 3 * 32 * 48
    assert ['max_iters', '20000', '2'] in card['config_changes'][0]['rows']
    frames = json.loads((folder / 'frames.json').read_text())
    assert sorted(frame['path'][-8:] for frame in frames) == ['F3-0.png', 'F3-1.png', 'F3-2.png']
    assert len([tag for tag, _ in Elements((folder / 'index.html').read_text()).found if tag == 'img']) == 17
    plain = weights_of(run(tmp_path / 'plain', seed=3, max_iters=2))
    assert all(weight.equal(plain[name]) for name, weight in weights_of(runner).items())


def log_of_a_run_beside(file, content):
    """What a run says, to its end, whose work dir holds a file already."""
    file.parent.mkdir()
    file.write_text(content)
    assert run(file.parent, LyftReportHook(), seed=3, max_iters=2).iter == 2
    (log,) = file.parent.glob('*/*.log')
    return log.read_text()


def test_a_page_that_cannot_be_written_does_not_end_the_run(three_drives, tmp_path):
    assert 'the report was not written' in log_of_a_run_beside(tmp_path / 'run/report', 'in the way')


def test_damaged_files_of_an_earlier_run_do_not_end_the_run(three_drives, tmp_path):
    said = log_of_a_run_beside(tmp_path / 'run/scores.json', '{"confusion": [[1]]}')
    assert 'the report was not written: ' in said
    assert 'scores.json: metrics is missing; remove it' in said
    # A damaged card of the run that is resumed is not taken over into every one that follows.
    (tmp_path / 'run/scores.json').unlink()
    (tmp_path / 'run/report/run_card.json').write_text('{"since": 5, "result": {}}')
    run(tmp_path / 'run', LyftReportHook(), seed=3, max_iters=4, resume='auto')
    assert json.loads((tmp_path / 'run/report/run_card.json').read_text())['result']['step'] == 4
    assert (tmp_path / 'run/report/index.html').is_file()


def test_a_tracker_that_is_not_installed_is_named_with_the_remedy(monkeypatch):
    # What Python has for a module that may not be imported.
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(InputError, match=r"--wandb: .* install with: pip install -e '.*\[trackers\]'"):
        use_trackers(Config(dict(work_dir='x', visualizer={})), ['wandb'])
