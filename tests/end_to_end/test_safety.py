"""Whole commands on files from strangers: nothing that a file holds is run, and the refusal names it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmseg_unet_lyft.cli import export, predict, test, tune_thresholds, video
from mmseg_unet_lyft.engine.plain_loading import code_allowed

from ..conftest import Call
from .conftest import TINY, train_tiny

pytestmark = pytest.mark.stack

CONFIG = 'configs/unet_lyft_demo.py'
KNOBS = ('--cfg-options', *TINY)


@pytest.fixture
def marker(tmp_path):
    """What code in the files below would make."""
    return tmp_path / 'ran'


@pytest.fixture
def content(trained):
    """The last checkpoint of a run."""
    # Runs of this process have forced plain loading.
    with code_allowed():
        return torch.load(trained / 'iter_4.pth', weights_only=False)


@pytest.fixture
def calling(content, marker, tmp_path):
    """A whole checkpoint that also pickles a call."""
    path = tmp_path / 'evil/iter_4.pth'
    path.parent.mkdir()
    torch.save(dict(content, extra=Call(os.mkdir, str(marker))), path)
    return path


@pytest.fixture
def told(content, marker):
    """The content with Python wherever config text may stand, which a safe load lets pass."""
    code = f'import pathlib\npathlib.Path({str(marker)!r}).mkdir(exist_ok=True)\nmodel = dict()\n'
    content['meta'] |= dict(config=code, cfg=code)
    content['message_hub']['runtime_info']['cfg'] = code
    return content


@pytest.fixture
def telling(told, tmp_path):
    """A whole checkpoint of plain data, Python among it."""
    path = tmp_path / 'evil/iter_4.pth'
    path.parent.mkdir()
    torch.save(told, path)
    return path


def _train(way: str) -> Callable:
    def run(path: Path, root: Path, out: Path, *more: str) -> int:
        work_dir = path.parent if way == 'auto' else out
        given = ('--resume',) if way == 'auto' else (way, str(path))
        return train_tiny(root, work_dir, *given, *more, options=('max_iters=5', 'val_interval=5'))

    return run


def _test(path: Path, root: Path, out: Path, *more: str) -> int:
    places = ('--data-root', str(root), '--work-dir', str(out))
    return test.main([CONFIG, str(path), *places, *more, *KNOBS])


def _predict(path: Path, root: Path, out: Path, *more: str) -> int:
    (image,) = root.glob('*/*/CameraRGB/F3-0.png')
    return predict.main([str(path), str(image), '--out', str(out), *more])


def _video(path: Path, root: Path, out: Path, *more: str) -> int:
    (image,) = root.glob('*/*/CameraRGB/F3-0.png')
    return video.main([str(path), str(image.parent), '--out', str(out), '--labels', *more])


def _export(path: Path, root: Path, out: Path, *more: str) -> int:
    return export.main([str(path), '--format', 'torchscript', '--out', f'{out}.torchscript', *more])


def _export_weights(path: Path, root: Path, out: Path, *more: str) -> int:
    return export.main([str(path), '--format', 'safetensors', '--out', f'{out}.safetensors', *more])


def _tune(path: Path, root: Path, out: Path, *more: str) -> int:
    places = ('--data-root', str(root), '--out', f'{out}.json')
    return tune_thresholds.main([CONFIG, str(path), *places, *more, *KNOBS])


COMMANDS = {
    'train --load-from': _train('--load-from'),
    'train --resume PATH': _train('--resume'),
    'train --resume': _train('auto'),
    'test': _test,
    'predict': _predict,
    'video': _video,
    'export': _export,
    'export safetensors': _export_weights,
    'tune_thresholds': _tune,
}
every_command = pytest.mark.parametrize('command', COMMANDS.values(), ids=COMMANDS)


@every_command
def test_a_checkpoint_that_calls_is_refused_by_name(command, calling, marker, drawn_root, tmp_path, capsys):
    assert command(calling, drawn_root, tmp_path / 'out') == 2
    told = capsys.readouterr().err
    assert f'{calling}: refused, it holds posix.mkdir, and loading that could run code' in told
    assert 'give --trust (trust=True in Python): reading it can then run whatever it holds' in told
    assert not marker.exists()


@every_command
def test_config_text_in_a_checkpoint_is_never_run(command, telling, marker, drawn_root, tmp_path):
    assert command(telling, drawn_root, tmp_path / 'out') == 0
    assert not marker.exists()


@every_command
def test_trust_reads_a_checkpoint_whole_says_so_and_runs_no_config_text(
    command, told, marker, drawn_root, tmp_path, caplog
):
    path, unpickled = tmp_path / 'odd/iter_4.pth', tmp_path / 'unpickled'
    path.parent.mkdir()
    torch.save(dict(told, extra=Call(os.makedirs, str(unpickled), 0o777, True)), path)
    assert command(path, drawn_root, tmp_path / 'out') == 2
    assert not unpickled.exists()
    assert command(path, drawn_root, tmp_path / 'out', '--trust') == 0
    assert unpickled.exists()
    assert not marker.exists()
    warned = f'{path}: holds os.makedirs and is trusted: reading it can run whatever it holds'
    assert caplog.messages.count(warned) == 1


def test_a_command_leaves_what_torch_reads_of_the_environment_as_it_was(
    trained, drawn_root, tmp_path, monkeypatch
):
    safe, unsafe = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
    monkeypatch.delenv(safe, raising=False)
    monkeypatch.setenv(unsafe, '1')
    assert _test(trained / 'iter_4.pth', drawn_root, tmp_path / 'work') == 0
    assert (os.environ.get(safe), os.environ[unsafe]) == (None, '1')
