"""Files for outsiders: model index, citation, issue forms, container, how to help."""

import re
from pathlib import Path

import pytest
import yaml

import mmseg_unet_lyft
from mmseg_unet_lyft.__main__ import find_tools

ROOT = Path(__file__).resolve().parents[1]
FORMS = ('bug.yml', 'idea.yml')


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding='utf-8')


def read_yaml(name: str) -> dict:
    return yaml.safe_load(read(name))


@pytest.fixture(scope='module')
def models() -> list[dict]:
    """Models of the metafiles that the index names."""
    return [model for name in read_yaml('model-index.yml')['Import'] for model in read_yaml(name)['Models']]


def table_below(text: str, heading: str) -> list[list[str]]:
    """Cells of the first table's rows after a heading, without the table's head."""
    lines = text.partition(f'\n{heading}\n')[2].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith('|'))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith('|'):
            break
        rows.append([cell.strip() for cell in line.strip('|').split('|')])
    return rows


def test_every_config_is_listed_once_and_every_listed_one_exists(models):
    assert sorted(model['Config'] for model in models) == sorted(
        f'configs/{path.name}' for path in (ROOT / 'configs').glob('*.py')
    )
    assert len({model['Name'] for model in models}) == len(models)


def test_every_score_names_its_data_and_those_it_was_trained_on(models):
    measured = [model for model in models if model.get('Results')]
    assert measured
    for model in measured:
        assert model['Metadata']['Training Data']
        assert all(result['Dataset'] and result['Metrics'] for result in model['Results'])
    others = [model['Metadata'] for model in models if not model.get('Results')]
    assert others == [dict(Note='not measured')] * len(others)


def test_readme_and_metafile_state_the_same_results(models):
    stated = {}
    for config, trained_on, scored_on, *scores in table_below(read('README.md'), '## Results'):
        name, steps = re.match(r'`(\w+\.py)`, ([\d,]+) steps', config).groups()
        iterations = int(steps.replace(',', ''))
        stated[f'configs/{name}'] = (iterations, trained_on, scored_on, *map(float, scores))
    listed = {}
    for model in models:
        for result in model.get('Results', []):
            about = model['Metadata']
            baselines = about['Baselines (mIoU)']
            listed[model['Config']] = (
                about['Iterations'],
                about['Training Data'],
                result['Dataset'],
                result['Metrics']['mIoU'],
                baselines['pixel frequency'],
                baselines['colour'],
            )
    assert listed == stated


def test_the_citation_has_what_the_format_requires_and_the_packages_version():
    citation = read_yaml('CITATION.cff')
    assert {'cff-version', 'message', 'title', 'authors', 'license'} < set(citation)
    assert citation['version'] == mmseg_unet_lyft.__version__


def test_commands_and_files_named_for_outsiders_exist():
    text = '\n'.join(map(read, ['CONTRIBUTING.md', *(f'.github/ISSUE_TEMPLATE/{name}' for name in FORMS)]))
    assert set(re.findall(r'mmseg-unet-lyft (\w+)', text)) <= {*find_tools()}
    named = set(re.findall(r'\b(?:tools|docs|configs)/[\w./]+\w', text)) | {'.ci/run', 'CHANGELOG.md'}
    assert len(named) > 4
    assert {name for name in named if not (ROOT / name).exists()} == set()
    targets = set(re.findall(r'\bmake (\w+)', text))
    assert targets == {'test', 'lint', 'slow'}
    assert targets <= set(re.findall(r'^(\w+):', read('Makefile'), re.MULTILINE))


def test_the_container_copies_files_that_exist_and_its_context_lets_in():
    copied = re.findall(r'^COPY (?!--from)(\S+) ', read('Dockerfile'), re.MULTILINE)
    assert copied == ['requirements/onedl.txt', '.']
    let_in = {line[1:] for line in read('.dockerignore').splitlines() if line.startswith('!')}
    assert {name for name in let_in if not (ROOT / name).exists()} == set()
    # What setup.py reads and builds from, and what the links in .mim point at.
    needed = 'README.md setup.py pyproject.toml mmseg_unet_lyft configs tools requirements'
    assert set(needed.split()) <= let_in
    assert {path.resolve().name for path in (ROOT / 'mmseg_unet_lyft/.mim').iterdir()} <= let_in


def test_the_container_does_not_run_as_root():
    last_stage = read('Dockerfile').rpartition('\nFROM ')[2]
    assert re.search(r'^USER 1000:1000$', last_stage, re.MULTILINE)
    assert re.search(r'useradd .*--uid 1000 ', last_stage)
