"""Messages on an mm stack that is missing, doubled or broken, in environments that are just that."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmseg_unet_lyft import compat, processes
from mmseg_unet_lyft.errors import InputError

ROOT = Path(__file__).parents[1]
ONEDL = {'onedl-mmsegmentation': '1.4.2', 'onedl-mmcv': '2.3.6', 'onedl-mmengine': '0.10.12'}
OPENMMLAB = {'mmsegmentation': '1.2.2', 'mmcv-lite': '2.1.0', 'mmengine': '0.10.7'}
INSTALL = f"pip install -e '{ROOT}[onedl]'"


class Environment:
    """An environment of empty packages and the standard library."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def module(self, name: str) -> None:
        """A package that can be imported."""
        (self.folder / name).mkdir()
        (self.folder / name / '__init__.py').touch()

    def distributions(self, versions: dict[str, str]) -> None:
        """What pip has installed."""
        for name, version in versions.items():
            info = self.folder / f'{name.replace("-", "_")}-{version}.dist-info'
            info.mkdir()
            (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')

    def run(self, *command: str) -> subprocess.CompletedProcess:
        """The package's command in this environment, which has nothing else."""
        environ = os.environ | dict(PYTHONPATH=os.pathsep.join([str(ROOT), str(self.folder)]))
        command = [sys.executable, '-S', '-m', 'mmseg_unet_lyft', *command]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    def message(self) -> str:
        """What the train command says before it exits with 2."""
        done = self.run('train', 'unet_lyft.py')
        assert (done.returncode, done.stdout) == (2, ''), done.stderr
        assert done.stderr.startswith('error: ')
        assert done.stderr.count('\n') == 1
        return done.stderr[len('error: ') : -1]


@pytest.fixture
def environment(tmp_path):
    """Empty packages of a whole stack's names; the test adds what pip would know of them."""
    env = Environment(tmp_path)
    packaging = importlib.util.find_spec('packaging').submodule_search_locations[0]
    (tmp_path / 'packaging').symlink_to(packaging)
    for name in ('torch', 'mmengine', 'mmcv', 'mmseg', 'ftfy', 'regex', 'pkg_resources', 'cv2'):
        env.module(name)
    return env


def remove(environment, name):
    (environment.folder / name / '__init__.py').unlink()
    (environment.folder / name).rmdir()


def test_no_stack_at_all(tmp_path):
    message = f'this command needs torch, mmengine, mmcv, mmseg; install with: {INSTALL}'
    assert Environment(tmp_path).message() == message


LITE, ONE = 'mmcv-lite 2.1.0', INSTALL.replace('onedl', 'openmmlab')


@pytest.mark.parametrize(
    ('distributions', 'removed', 'named', 'remedy'),
    [
        (dict(mmsegmentation='1.2.2', mmengine='0.10.7'), 'mmcv', 'mmcv (found: mmsegmentation 1.2.2', ONE),
        (
            ONEDL | {'mmcv': '2.1.0'},
            None,
            'onedl-mmengine 0.10.12 and mmcv 2.1.0',
            f'pip uninstall -y onedl-mmsegmentation onedl-mmcv onedl-mmengine mmcv && {INSTALL}',
        ),
        (OPENMMLAB | {'mmcv': '2.1.0'}, None, f'mmcv 2.1.0 and {LITE}', 'pip install mmcv-lite==2.1.0'),
        (OPENMMLAB | {'mmcv-lite': '2.2.0'}, None, 'mmcv-lite 2.2.0', 'pip install mmcv-lite==2.1.0'),
        (OPENMMLAB, 'ftfy', f'ftfy (found: mmsegmentation 1.2.2 and {LITE}', ONE),
        (OPENMMLAB | {'setuptools': '82.0.0'}, 'pkg_resources', 'pkg_resources (found: ', ONE),
        (ONEDL | {'torch': '2.5.1+cpu'}, None, 'torch 2.5.1+cpu', "pip install 'torch>=2.6'"),
    ],
    ids=['no mmcv', 'both', 'two mmcv', 'refused', 'undeclared', 'setuptools', 'torch'],
)
def test_a_stack_that_cannot_work_is_named_with_the_command_that_mends_it(
    environment, distributions, removed, named, remedy
):
    environment.distributions(distributions)
    if removed:
        remove(environment, removed)
    message = environment.message()
    assert named in message
    assert message.endswith(remedy)


def test_opencv_without_its_system_library(environment):
    environment.distributions(ONEDL | {'opencv-python': '4.10.0'})
    (environment.folder / 'cv2/__init__.py').write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file')\n"
    )
    wanted = 'pip uninstall -y opencv-python opencv-contrib-python && pip install opencv-python-headless'
    assert environment.message() == (
        'OpenCV does not load (libGL.so.1: cannot open shared object file); the build for machines without '
        f'a screen needs no system library: {wanted}'
    )
    assert wanted in environment.run('draw_scenes', 'out').stderr


def test_opencv_is_missing(environment):
    remove(environment, 'cv2')
    done = environment.run('draw_scenes', 'out')
    assert done.stderr == 'error: this command needs cv2; install with: pip install opencv-python\n'


@pytest.mark.parametrize('is_compiled', [True, False])
def test_operators_of_an_uncompiled_mmcv_can_be_imported_and_not_called(
    environment, monkeypatch, is_compiled
):
    if is_compiled:
        (environment.folder / 'mmcv/_ext.cpython-311-x86_64-linux-gnu.so').touch()
    for name in ('mmcv', 'mmcv._ext'):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, 'path', [str(environment.folder)])
    importlib.invalidate_caches()
    monkeypatch.delenv('MMSEG_UNET_LYFT_OPS_STAND_IN', raising=False)
    compat.stand_in_for_ops()
    assert ('mmcv._ext' in sys.modules) == ('MMSEG_UNET_LYFT_OPS_STAND_IN' in os.environ) == (not is_compiled)
    if not is_compiled:
        with pytest.raises(InputError, match=r'mmcv\.ops\.nms, .* pip install mmcv==2'):
            sys.modules['mmcv._ext'].nms(1, 2)


def test_within_plain_types_the_log_history_loads_and_afterwards_all_is_as_before(tmp_path):
    from mmengine.logging.history_buffer import HistoryBuffer

    torch.save(dict(loss=HistoryBuffer([1.0, 3.0], [1, 1])), tmp_path / 'history.pth')
    before = torch.serialization.get_safe_globals()
    with processes.plain_types_only():
        loaded = torch.load(tmp_path / 'history.pth', weights_only=True)
    np.testing.assert_array_equal(loaded['loss'].data[0], [1.0, 3.0])
    assert loaded['loss'].mean() == 2.0
    assert set(torch.serialization.get_safe_globals()) == set(before)


@pytest.mark.stack
def test_importing_the_package_changes_nothing_but_the_registries():
    code = """
import os, sys, signal, warnings
import mmcv, mmengine, mmseg.models, mmengine.runner, torch, cv2, matplotlib.pyplot

def state():
    loaders = dict(mmengine.runner.CheckpointLoader._schemes)
    return (dict(os.environ), torch.serialization.get_safe_globals(), loaders, list(warnings.filters),
            signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(), torch.initial_seed(), list(sys.path),
            cv2.getNumThreads(), torch.load, mmengine.runner.Runner.resume, sys.modules.get('mmcv._ext'))

before = state()
import mmseg_unet_lyft, mmseg_unet_lyft.register, mmseg_unet_lyft.inference.segmenter
assert state() == before
from mmseg.registry import MODELS
print('found', MODELS.get('LyftUNet').__name__)
"""
    lite = 'from mmseg_unet_lyft.compat import stand_in_for_ops; stand_in_for_ops()\n'
    done = subprocess.run(
        [sys.executable, '-c', lite + code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == 'found LyftUNet\n', done.stderr
