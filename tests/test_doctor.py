"""The doctor's findings in environments and on machines with one fault each."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmseg_unet_lyft.cli import doctor
from mmseg_unet_lyft.cli.doctor import machine_findings

from .test_compat import ONEDL, OPENMMLAB, Environment, environment  # noqa: F401 (a fixture)

ROOT = Path(__file__).parents[1]


def findings_in(env: Environment) -> tuple[int, dict[str, list[dict]]]:
    """Exit code and findings by name of the doctor in an environment, from its own folder."""
    done = env.run('doctor', '--json')
    assert done.stderr == ''
    by_name = {}
    for finding in json.loads(done.stdout)['findings']:
        by_name.setdefault(finding['what'], []).append(finding)
    return done.returncode, by_name


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Findings on this machine by name, from an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('LYFT_DATA_ROOT', raising=False)
    return lambda: {finding.what: finding for finding in machine_findings(tmp_path)}


def test_without_torch_stack_or_any_library_it_says_what_to_install(tmp_path):
    code, found = findings_in(Environment(tmp_path))
    assert code == 1
    assert found['mm stack'][0]['advice'] == (
        f"commands need torch, mmengine, mmcv, mmseg; install with: pip install -e '{ROOT}[onedl]'"
    )
    assert found['libraries'][0]['advice'].endswith('pip install numpy pillow rich')
    assert found['torch'][0]['found'] == 'not installed'


def test_all_faults_of_a_stack_are_reported_at_once(environment):  # noqa: F811
    environment.distributions(OPENMMLAB | {'mmcv': '2.2.0', 'torch': '2.13.0'})
    (environment.folder / 'ftfy/__init__.py').unlink()
    (environment.folder / 'ftfy').rmdir()
    code, found = findings_in(environment)
    first, second = (finding['advice'] for finding in found['mm stack'])
    assert code == 1
    assert first.startswith('mmcv 2.2.0 and mmcv-lite 2.1.0 are installed over each other')
    assert second.startswith('commands need ftfy (found: ')


def test_where_only_exported_files_run_commands_still_work(tmp_path):
    env = Environment(tmp_path)
    for name in ('cv2', 'onnxruntime'):
        env.module(name)
    env.distributions({'numpy': '2.0.0', 'pillow': '12.0.0', 'rich': '14.0.0', 'opencv-python': '4.10.0'})
    code, found = findings_in(env)
    assert code == 0
    assert found['mm stack'][0]['advice'].startswith('only exported files run (onnxruntime)')
    assert found['libraries'][0]['advice'] == (
        'some commands need them; install with: pip install av matplotlib safetensors jinja2'
    )
    for name in ('gradio [demo]', 'huggingface_hub [hub]', 'mlflow [trackers]'):
        assert f'no {name}' in found['optional'][0]['found']


def test_it_imports_neither_torch_nor_a_stack(tmp_path):
    code = (
        'import sys\nfrom mmseg_unet_lyft.cli.doctor import main\nmain([])\n'
        "print('imported', {'torch', 'mmengine', 'mmcv', 'mmseg'} & set(sys.modules))"
    )
    environ = os.environ | dict(PYTHONPATH=str(ROOT))
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.endswith('imported set()\n')


def test_data_are_found_counted_and_marked_as_synthetic(here, kaggle, tmp_path, monkeypatch):
    assert here()['data'].advice.startswith('draw some: python tools/draw_scenes.py data/drawn; or put https')
    for stem in ('F1-0', 'F1-1', 'F2-0'):
        kaggle.add(stem)
    (kaggle.root / 'DRAWN_SCENES.json').write_text('{}')
    (tmp_path / 'data').mkdir()
    kaggle.root.rename(tmp_path / 'data/drawn')
    found = here()['data']
    assert (found.found, found.advice) == ('data/drawn: 3 synthetic scenes of 2 drives', '')
    (tmp_path / 'data/drawn/dataA/dataA/CameraSeg/F2-0.png').unlink()
    found = here()['data']
    assert found.found.endswith('F2-0.png: has no label of this name in CameraSeg')
    assert found.advice == f'see all of them: python tools/inspect_data.py {tmp_path}/data/drawn'
    monkeypatch.setenv('LYFT_DATA_ROOT', 'nowhere')
    assert here()['data'].advice.startswith(f'{tmp_path}/nowhere: no such folder')


def test_more_threads_than_cores_are_reported(here, monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    assert here()['cores'].advice == ''
    monkeypatch.setenv('OMP_NUM_THREADS', '4096')
    assert here()['cores'].advice == 'threads wait for each other; unset OMP_NUM_THREADS'


@pytest.mark.parametrize(
    ('limit', 'what', 'advice'),
    [
        ('_LEAST_SHARED', '/dev/shm', 'docker run --shm-size=1g, or num_workers=0'),
        ('_LEAST_DISK', 'disk', 'make room'),
        ('_LEAST_MEMORY', 'memory', 'batch_size=1 with_cp=True'),
    ],
)
def test_what_is_nearly_full_is_reported(here, monkeypatch, limit, what, advice):
    assert re.fullmatch(r'[\d.]+ [GM]B free( at .*)?', here()[what].found)
    monkeypatch.setattr(doctor, limit, float('inf'))
    assert advice in here()[what].advice


def test_a_gpu_that_torch_does_not_use_is_reported(here, tmp_path, monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip('torch uses the GPU here')
    driver = tmp_path / 'nvidia-smi'
    driver.write_text('#!/bin/sh\necho Stand-in 9000\n')
    driver.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    found = here()['devices']
    assert found.found == f'Stand-in 9000, which torch {torch.__version__} does not use'
    assert found.advice.startswith('install a torch built for its driver')


def test_the_text_marks_faults_and_ends_with_a_verdict(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('LYFT_DATA_ROOT', raising=False)
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    marked = next(index for index, line in enumerate(lines) if line.startswith('! data'))
    assert lines[marked + 1].strip().startswith('-> draw some')
    assert re.fullmatch(r'worth a look: .*data; commands work', lines[-1])


def test_data_are_looked_at_without_opencv(kaggle):
    kaggle.add('F1-0')
    code = (
        'import sys; sys.modules["cv2"] = sys.modules["PIL"] = None\n'
        'from mmseg_unet_lyft.cli import doctor\n'
        'sys.exit(doctor.main([]))'
    )
    environ = os.environ | dict(LYFT_DATA_ROOT=str(kaggle.root), PYTHONPATH=str(ROOT))
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == doctor.EXIT_UNUSABLE
    assert '1 frames of 1 drives' in done.stdout
