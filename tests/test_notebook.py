"""The notebook: committed clean, what it names exists, and it runs from start to end on synthetic scenes."""

import ast
import base64
import io
import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from mmseg_unet_lyft.__main__ import find_tools, main
from mmseg_unet_lyft.engine.config import find_config, load_config, parse_options, short_value

ROOT = Path(__file__).parents[1]
PATH = ROOT / 'notebooks' / 'lyft_unet_kaggle.ipynb'
CONTENT = json.loads(PATH.read_text(encoding='utf-8'))
CELLS = {cell['id']: cell for cell in CONTENT['cells']}
SOURCES = {name: ''.join(cell['source']) for name, cell in CELLS.items()}
FIGURES = 'look legend inspect unet contracting-figure middle expansive-figure output-figure'.split()
FIGURES += 'recommended leak-figure train score-figure segmenter'.split()


def python_of(name: str) -> ast.Module:
    """A code cell without its magic commands."""
    lines = SOURCES[name].splitlines()
    return ast.parse('\n'.join(re.sub(r'^(\s*)[%!].*', r'\1pass', line) for line in lines))


def commands() -> list[tuple[str, set[str]]]:
    """Every command that the notebook runs or names, with its options."""
    found = []
    for name, cell in CELLS.items():
        if cell['cell_type'] == 'markdown':
            for tool, rest in re.findall(r'python -m mmseg_unet_lyft (\w+)([^`]*)`', SOURCES[name]):
                found.append((tool, set(re.findall(r'--[\w-]+', rest))))
            continue
        calls = [node for node in ast.walk(python_of(name)) if isinstance(node, ast.Call)]
        for call in calls:
            if isinstance(call.func, ast.Name) and call.func.id == 'run':
                # A cell runs one command; a list of its words may stand before the call.
                words = {str(getattr(node, 'value', '')) for node in ast.walk(python_of(name))}
                found.append((call.args[0].value, {word for word in words if word.startswith('--')}))
    return found


def settings() -> list[tuple[str, list[str], list[str]]]:
    """Config and options, on the Kaggle data and on synthetic scenes."""
    branches = next(node for node in python_of('settings').body if isinstance(node, ast.If))
    chosen = []
    for body in (branches.body, branches.orelse):
        names: dict = {}
        # `DATA, CONFIG, OPTIONS = ...` and the options of the config, with a stand-in for the folder.
        exec(compile(ast.Module(body, []), 'settings', 'exec'), {'KAGGLE': None, 'Path': Path}, names)
        chosen.append((names['CONFIG'], names['OPTIONS'], names['CFG_OPTIONS']))
    return chosen


def test_it_is_committed_without_outputs_and_counts():
    code = [cell for cell in CONTENT['cells'] if cell['cell_type'] == 'code']
    assert len(code) > 20
    assert all(cell['outputs'] == [] and cell['execution_count'] is None for cell in code)
    assert CONTENT['metadata']['kernelspec']['name'] == 'python3'


def test_every_command_and_option_in_it_exists(capsys):
    found = commands()
    assert len({tool for tool, _ in found}) >= 7
    for tool, options in found:
        assert tool in find_tools()
        with pytest.raises(SystemExit, match='0'):
            main([tool, '--help'])
        known = set(re.findall(r'--[\w-]+', capsys.readouterr().out))
        assert options <= known, (tool, options - known)


def test_its_configs_exist_and_take_its_options():
    for name in set(re.findall(r'unet_lyft\w*\.py', '\n'.join(SOURCES.values()))):
        assert find_config(name).is_file()
    for config, options, cfg_options in settings():
        asked = parse_options(cfg_options)
        loaded = load_config(config, asked)
        assert {name: short_value(loaded, name) for name in asked} == asked
        assert set(options) <= {'--amp'}
    for option in re.findall(r'`(\w+=\d+)`', SOURCES['text-further']):
        load_config('unet_lyft_bn.py', parse_options([option]))


def test_another_config_has_a_work_dir_of_its_own():
    # --resume if-any would go on with the other config's network.
    names: dict = {}
    exec(SOURCES['settings'].replace('unet_lyft_bn.py', 'unet_lyft_challenge.py'), names)
    assert names['WORK'] == Path('work_dirs/notebook/unet_lyft_challenge')


@pytest.fixture(scope='module')
def executed(tmp_path_factory):
    """The notebook run in an empty folder, and that folder."""
    nbclient, nbformat = pytest.importorskip('nbclient'), pytest.importorskip('nbformat')
    if Path('/kaggle/input/lyft-udacity-challenge').exists():
        pytest.skip('the Kaggle data are mounted here; the notebook would train on them for hours')
    folder = tmp_path_factory.mktemp('notebook')
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    with pytest.MonkeyPatch.context() as patch:
        # The kernel's folder is another one.
        paths = [str(ROOT), str(PATH.parent), os.environ.get('PYTHONPATH', '')]
        patch.setenv('PYTHONPATH', os.pathsep.join(paths))
        patch.delenv('MPLBACKEND', raising=False)
        resources = {'metadata': {'path': str(folder)}}
        client = nbclient.NotebookClient(notebook, timeout=900, kernel_name='python3', resources=resources)
        client.execute()
    return {cell['id']: cell for cell in notebook.cells}, folder


def outputs(executed, name: str, mime: str = 'text/plain') -> list[str]:
    return [one['data'][mime] for one in executed[0][name]['outputs'] if mime in one.get('data', {})]


@pytest.mark.slow
def test_every_figure_is_there(executed):
    for name in FIGURES:
        (content,) = outputs(executed, name, 'image/png')
        picture = Image.open(io.BytesIO(base64.b64decode(content)))
        assert picture.width >= 450, name
        # Something is drawn on it.
        assert len(picture.convert('RGB').getcolors(1 << 24)) > 10, name


@pytest.mark.slow
def test_the_pieces_are_the_network(executed):
    shapes = ast.literal_eval(outputs(executed, 'middle')[-1])
    assert shapes == [(16, 120, 160), (32, 60, 80), (64, 30, 40), (128, 15, 20), (256, 7, 10)]
    assert ast.literal_eval(outputs(executed, 'expansive')[0]) == dict(
        upsampled=(1, 128, 15, 21), joined=(1, 256, 15, 20), step=(1, 128, 15, 20)
    )
    found = ast.literal_eval(outputs(executed, 'output')[0])
    # As many as Keras counts in the tutorial's network, for 3 channels and 13 classes.
    assert found == dict(logits=(1, 13, 120, 160), parameters=2_158_909)


@pytest.mark.slow
def test_it_trains_scores_predicts_and_exports(executed):
    cells, folder = executed
    scores = json.loads((folder / 'work_dirs/notebook/unet_lyft_bn/test/scores.json').read_text())
    assert scores['data'] == 'synthetic scenes'
    assert scores['tested_on'] == 'test'
    baseline = scores['baselines']['most frequent class at each pixel']['mIoU']
    assert baseline + 5 < scores['metrics']['mIoU'] < 95
    assert len(list((folder / 'predictions').rglob('*.png'))) == 8
    assert (folder / 'unet_lyft.onnx').stat().st_size > 100_000
    alike = re.search(r'([\d.]+) % of pixels', outputs(executed, 'exported')[0])
    assert float(alike[1]) > 99.9
    kinds = {one['output_type'] for cell in cells.values() for one in cell.get('outputs', [])}
    assert 'error' not in kinds
