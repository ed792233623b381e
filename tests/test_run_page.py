"""A run's page shows what was run and what came of it, whatever names it holds."""

import base64
import csv
import json
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from mmseg_unet_lyft.cli import report
from mmseg_unet_lyft.engine.config import describe_changes, differences
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.evaluation.challenge import score_dict
from mmseg_unet_lyft.report.run_page import (
    build_page,
    read_run,
    read_scalars,
    write_comparison,
    write_report,
)

HOSTILE = '<img src=x onerror=alert(1)>'
# Roads 3 of 4 right, Vehicles 1 of 2, no Walls in the truth: IoU 3/5, 1/3, n/a.
CONFUSION = [[3, 1, 0], [1, 1, 0], [0, 0, 0]]
PALETTE = [[128, 64, 128], [0, 0, 250], [102, 102, 156]]
CLASSES = ['Roads', 'Vehicles', 'Walls']
LOG = '20250101_000000/vis_data/scalars.json'


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

    @property
    def dense(self):
        """The text without white space."""
        return ''.join(self.text.split())

    def assert_harmless(self):
        """Nothing is loaded or run, and a policy of the page forbids it."""
        assert {tag for tag, _ in self.found} & {'script', 'iframe', 'object', 'base', 'form', 'svg'} == set()
        for _, attributes in self.found:
            assert not [name for name in attributes if name.startswith('on')]
            for name in ('src', 'href'):
                assert attributes.get(name, 'data:').startswith('data:')
        (policy,) = [one['content'] for _, one in self.found if one.get('http-equiv')]
        assert policy.startswith("default-src 'none'")


def write_run(folder, name='F1-0.png', **changes):
    """A work dir as a run leaves it, with two validations and one frame of this name; returns it."""
    tiny = cv2.imencode('.jpg', np.full((30, 40, 3), 90, np.uint8))[1].tobytes()
    picture = f'data:image/jpeg;base64,{base64.b64encode(tiny).decode()}'
    pictures = dict.fromkeys(('image', 'truth', 'prediction', 'errors'), picture)
    frame = dict(group='worst', path=name, miou=41.25, lowest=[['Vehicles', 33.3]], problem=None)
    result = dict(
        kind='validation', unit='percent', step=20, split='val', frames=1, classes=CLASSES, palette=PALETTE
    )
    metrics = {'mIoU': 46.67, 'aAcc': 66.67, 'val_loss': 0.5, 'challenge/F_avg': None}
    card = dict(
        command=['train', 'c.py', '--cfg-options', 'a=1'],
        seed=7,
        config=dict(name=name, sha256='ab', text='a = 1\nb = 2'),
        data=dict(root=name, split='train', frames=5, manifest_sha256='cafe'),
        git=dict(commit='c0ffee', is_changed=False),
        config_changes=[dict(what='compared to c.py', rows=[['a', '0', '1'], ['model.x', '2', name]])],
        result=result | dict(metrics=metrics, confusion=CONFUSION, challenge=None),
    )
    entries = [dict(step=step, loss=1 / step, lr=0.1, time=0.4, data_time=0.1) for step in (10, 20)]
    entries += [{'step': step, 'mIoU': 40.0, 'aAcc': 60.0, 'IoU.Roads': 60.0} for step in (10, 20)]
    write_log(folder, '20250101_000000', *map(json.dumps, entries))
    (folder / 'report').mkdir()
    (folder / 'report/run_card.json').write_text(json.dumps(card | changes))
    (folder / 'report/frames.json').write_text(json.dumps([frame | dict(pictures=pictures)]))
    return folder


def change_card(folder, change):
    """Edit a work dir's card by a function."""
    path = folder / 'report/run_card.json'
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))


def write_log(work_dir, run, *lines):
    """Scalars as mmengine's LocalVisBackend leaves them."""
    path = work_dir / run / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(lines))


def shown(folder):
    return Elements(build_page(read_run(folder)))


# --- a work dir --------------------------------------------------------------------------------------------


def test_scalars_of_all_runs_come_in_order_and_a_resumed_run_replaces_the_steps_it_repeats(tmp_path):
    again = ['{"loss": 2.5, "step": 2}', '{"mIoU": 9.0, "step": 2}', '{"loss": 0.5, "step": 3}']
    write_log(tmp_path, '20260102_000000', *again)
    first = ['{"loss": 3.0, "step": 1}', '{"loss": 2.0, "step": 2}', '{"loss": 1.0, "st']
    write_log(tmp_path, '20260101_000000', *first)
    losses = [(entry['step'], entry['loss']) for entry in read_scalars(tmp_path) if 'loss' in entry]
    assert losses == [(1, 3.0), (2, 2.5), (3, 0.5)]
    assert [entry['step'] for entry in read_scalars(tmp_path) if 'mIoU' in entry] == [2]


def test_a_new_training_does_not_show_an_old_test(tmp_path):
    scores = dict(unit='percent', metrics=dict(mIoU=99.0), iou=dict.fromkeys(CLASSES))
    folder = write_run(tmp_path / 'run', result=None)
    (folder / 'scores.json').write_text(json.dumps(scores | dict(confusion=CONFUSION)))
    assert read_run(folder).result is None
    # A work dir without a report.
    (folder / 'report/run_card.json').unlink()
    assert read_run(folder).result['metrics'] == dict(mIoU=99.0)


@pytest.mark.parametrize(
    ('name', 'content', 'match'),
    [
        ('scores.json', '{"confusion": [[1]]}', r'scores\.json: metrics'),
        ('report/frames.json', '{}', r'frames\.json: .* dict'),
        (LOG, '{"loss": 1}\n', r'scalars\.json: .*step'),
    ],
)
def test_a_damaged_file_of_a_run_is_named_with_what_is_wrong(tmp_path, name, content, match):
    folder = write_run(tmp_path / 'run')
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=match):
        write_report(folder)


def test_config_keys_that_differ_are_named_with_both_values(tmp_path):
    before = Config(dict(a=1, b=[dict(c=2), dict(d=3)], same=(1, 2), work_dir='x', gone='y'))
    after = Config(dict(a=5, b=[dict(c=2), dict(d=4)], same=[1, 2], work_dir='z', new=None))
    wanted = [('a', '1', '5'), ('b.1.d', '3', '4'), ('new', '-', 'None'), ('gone', "'y'", '-')]
    assert differences(before, after) == wanted
    (tmp_path / 'base.py').write_text('a = 1\nb = 1\n')
    (tmp_path / 'leaf.py').write_text("_base_ = ['base.py']\nb = 2\n")
    config = Config.fromfile(str(tmp_path / 'leaf.py'))
    config.a = 3
    as_run, of_base = describe_changes(config)
    assert (as_run['rows'], of_base['rows']) == ([('a', '1', '3')], [('b', '1', '2')])
    (tmp_path / 'leaf.py').unlink()
    (gone,) = describe_changes(config)
    assert 'leaf.py' in gone['problem']


# --- the page ----------------------------------------------------------------------------------------------


def test_names_on_a_page_stay_text_and_nothing_is_loaded_or_run(tmp_path):
    page = write_report(write_run(tmp_path / 'run', HOSTILE)).read_text()
    assert HOSTILE not in page
    elements = Elements(page)
    assert elements.text.count(HOSTILE) >= 4
    elements.assert_harmless()


def test_a_page_shows_the_run_and_its_classes_with_na_for_what_the_truth_has_not(tmp_path):
    elements = shown(write_run(tmp_path / 'run'))
    # IoU, F, precision, recall, pixels, predicted.
    assert 'Roads60.0075.0075.0075.0044' in elements.dense
    assert 'Vehicles33.3350.0050.0050.0022' in elements.dense
    assert 'Walls' + 4 * 'n/a' + '00' in elements.dense
    text = ' '.join(elements.text.split())
    assert 'left out of the mean: Walls' in text
    assert 'git checkout c0ffee mmseg_unet_lyft train --seed 7 c.py --cfg-options a=1' in text
    assert 'manifest cafe' in text


def test_a_test_is_shown_next_to_its_baselines_and_no_other(tmp_path):
    folder = write_run(tmp_path / 'run')
    scores = dict(metrics=dict(mIoU=46.67), iou=dict.fromkeys(CLASSES), confusion=CONFUSION)
    scores['baselines'] = dict(colour=dict(mIoU=1.0, iou=dict(Roads=12.34, Vehicles=5.0, Walls=None)))
    (folder / 'scores.json').write_text(json.dumps(scores))
    assert 'Roads60.0012.3475.00' in shown(folder).dense
    change_card(folder, lambda card: card['result'].update(confusion=[[4, 0, 0], [1, 1, 0], [0, 0, 0]]))
    assert '12.34' not in shown(folder).dense


def test_a_page_has_the_challenges_score_or_why_there_is_none(tmp_path):
    folder = write_run(tmp_path / 'run')
    assert 'LyftScoreMetric' in shown(folder).text
    # Vehicle: P 1/2, R 1/3, F2 5/14; of road nothing is right.
    score = score_dict(np.array([[1, 1, 2], [0, 3, 4]]), 'exact')
    change_card(folder, lambda card: card['result'].update(challenge=score, unit='percent'))
    dense = shown(folder).dense
    assert 'vehicle,F235.7150.0033.33' in dense
    assert 'road,F0.50.000.000.00' in dense
    assert 'Note:road:nopixelisright' in dense


def test_a_page_says_what_is_not_there_yet(tmp_path):
    folder = write_run(tmp_path / 'run', result=None, config_changes=[])
    (folder / 'report/results.csv').write_text('of an earlier run')
    (folder / 'report/frames.json').unlink()
    text = Elements(write_report(folder).read_text()).text
    assert text.count('No validation yet.') == 4
    assert 'step 20' in text
    assert not (folder / 'report/results.csv').exists()


def test_the_tables_next_to_a_page_hold_its_figures(tmp_path):
    folder = write_run(tmp_path / 'run')
    write_report(folder)
    rows = list(csv.DictReader((folder / 'report/results.csv').open()))
    assert [row['class'] for row in rows] == CLASSES
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
    change_card(second, lambda card: card['result'].update(confusion=[[4, 0, 0], *CONFUSION[1:]]))
    assert report.main([str(first), str(second)]) == 0
    path = first / 'report/comparison.html'
    assert str(path) in capsys.readouterr().out
    page = path.read_text()
    marked = [part.partition('</tr>')[0] for part in page.split('<tr class="differs">')[1:]]
    names = [row.partition('<th>')[2].partition('</th>')[0] for row in marked]
    assert names == ['config', 'seed', 'IoU Roads', 'IoU Vehicles']
    # IoU of roads: 4 of 5 after 3 of 5.
    assert '80.00 (+20.00)' in marked[2]
    changed = [Elements(line).text for line in page.split('\n') if '<ins>' in line or '<del>' in line]
    assert changed == ['-b = 2', '+b = 3']


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        (['nowhere'], 'nowhere: '),
        (['empty'], 'empty: '),
        (['empty', '--out', 'x.html'], '--out: '),
    ],
)
def test_what_cannot_be_reported_on_is_named(arguments, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    assert report.main(arguments) == 2
    assert f'error: {named}' in capsys.readouterr().err


# --- a browser ---------------------------------------------------------------------------------------------

_MEASURE = """return [
    document.documentElement.scrollWidth - document.documentElement.clientWidth,
    [...document.images].filter(image => !(image.complete && image.naturalWidth)).length,
    document.images.length,
    getComputedStyle(document.body).backgroundColor,
    document.body.innerText]"""


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    """A run's page and that of two runs, each with file names that would be elements."""
    folder = tmp_path_factory.mktemp('runs')
    runs = [write_run(folder / name, HOSTILE + 80 * 'x', seed=seed) for seed, name in enumerate('ab')]
    write_comparison([read_run(run) for run in runs], folder / 'comparison.html')
    return dict(run=write_report(runs[0]), comparison=folder / 'comparison.html')


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize(('page', 'pictures'), [('run', 9), ('comparison', 2)])
@pytest.mark.parametrize('width', [400, 1400])
@pytest.mark.parametrize(
    ('scheme', 'background'), [('light', 'rgb(255, 255, 255)'), ('dark', 'rgb(20, 23, 27)')]
)
def test_a_page_fits_any_window_and_loads_without_an_error(
    browser, pages, page, pictures, width, scheme, background
):
    features = [dict(name='prefers-color-scheme', value=scheme)]
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=features))
    window = dict(width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', window)
    browser.get_log('browser')
    browser.get(pages[page].as_uri())
    overflow, broken, images, colour, text = browser.execute_script(_MEASURE)
    assert (overflow, broken, images, colour) == (0, 0, pictures, background)
    assert HOSTILE in text
    assert browser.get_log('browser') == []
