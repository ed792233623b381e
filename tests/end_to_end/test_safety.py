"""Whole commands on files from strangers: nothing that a file holds is run, and the refusal names it."""

import os
import re
import shutil

import pytest
import torch

from mmseg_unet_lyft.cli import export, predict, test, tune_thresholds, video
from mmseg_unet_lyft.processes import code_allowed

from ..conftest import Call
from .conftest import TINY, train_tiny

pytestmark = pytest.mark.stack

CONFIG = 'configs/unet_lyft_bn.py'
OPTIONS = ('--cfg-options', *TINY)


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
def scripted(content, marker):
    """The content with Python wherever config text may stand, which a safe load lets pass."""
    code = f'import pathlib\npathlib.Path({str(marker)!r}).mkdir(exist_ok=True)\nmodel = dict()\n'
    content['meta'] |= dict(config=code, cfg=code)
    content['message_hub']['runtime_info']['cfg'] = code
    return content


@pytest.fixture
def path(tmp_path):
    """A checkpoint's place in a work dir of its own."""
    (tmp_path / 'evil').mkdir()
    return tmp_path / 'evil/iter_4.pth'


def _train(way):
    def run(path, root, out, *more):
        work_dir = path.parent if way == 'auto' else out
        given = ('--resume',) if way == 'auto' else (way, str(path))
        return train_tiny(root, work_dir, *given, *more, options=('max_iters=5', 'val_interval=5'))

    return run


def _test(path, root, out, *more):
    places = ('--data-root', str(root), '--work-dir', str(out))
    return test.main([CONFIG, str(path), *places, *more, *OPTIONS])


def _predict(path, root, out, *more):
    (image,) = root.glob('*/*/CameraRGB/F3-0.png')
    return predict.main([str(path), str(image), '--out', str(out), *more])


def _video(path, root, out, *more):
    (image,) = root.glob('*/*/CameraRGB/F3-0.png')
    return video.main([str(path), str(image.parent), '--out', str(out), '--labels', *more])


def _export(kind, suffix):
    return lambda path, root, out, *more: export.main(
        [str(path), '--format', kind, '--out', f'{out}{suffix}', *more]
    )


def _tune(path, root, out, *more):
    places = ('--data-root', str(root), '--out', f'{out}.json')
    return tune_thresholds.main([CONFIG, str(path), *places, *more, *OPTIONS])


COMMANDS = {
    'train --load-from': _train('--load-from'),
    'train --resume PATH': _train('--resume'),
    'train --resume': _train('auto'),
    'test': _test,
    'predict': _predict,
    'video': _video,
    'export': _export('torch', '.pt2'),
    'export safetensors': _export('safetensors', '.safetensors'),
    'tune_thresholds': _tune,
}
every_command = pytest.mark.parametrize('command', COMMANDS.values(), ids=COMMANDS)


@every_command
def test_config_text_in_a_checkpoint_is_never_run(command, scripted, path, marker, drawn_root, tmp_path):
    torch.save(scripted, path)
    assert command(path, drawn_root, tmp_path / 'out') == 0
    assert not marker.exists()


@every_command
def test_a_checkpoint_that_calls_is_refused_by_name_or_read_on_trust_and_says_so(
    command, scripted, path, marker, drawn_root, tmp_path, caplog, capsys
):
    unpickled = tmp_path / 'unpickled'
    torch.save(dict(scripted, extra=Call(os.makedirs, str(unpickled), 0o777, True)), path)
    assert command(path, drawn_root, tmp_path / 'out') == 2
    said = capsys.readouterr().err
    assert all(what in said for what in (f'{path}: ', 'os.makedirs', '--trust'))
    assert not unpickled.exists()
    assert command(path, drawn_root, tmp_path / 'out', '--trust') == 0
    assert unpickled.exists()
    assert not marker.exists()
    assert len([line for line in caplog.messages if line.startswith(f'{path}: holds os.makedirs')]) == 1


def test_a_resumed_run_with_another_recipe_is_refused_unless_the_change_is_named(
    trained, drawn_root, tmp_path, capsys
):
    work_dir = shutil.copytree(trained, tmp_path / 'run')
    options = ('batch_size=1', 'max_iters=5', 'val_interval=5')
    assert train_tiny(drawn_root, work_dir, '--resume', options=options) == 2
    assert re.search(
        'iter_4.pth: .*--allow-changes batch_size\n  batch_size: 2 -> 1', capsys.readouterr().err
    )
    allow = ('--resume', '--allow-changes', 'batch_size')
    assert train_tiny(drawn_root, work_dir, *allow, options=options) == 0
    assert (work_dir / 'iter_5.pth').is_file()
