"""Drawn frames and one tiny trained model, shared by the tests of whole commands."""

from pathlib import Path

import pytest

from mmseg_unet_lyft.cli import train

DRIVES = ('F1', 'F62', '02_00', '03_00', 'F3', 'F63', '07_00', 'F2', 'F66')
# A network and frames of a size that trains a step in a tenth of a second.
TINY = (
    'image_scale_wh=(128,96)',
    'crop_size=(64,96)',
    'base_channels=4',
    'batch_size=2',
    'num_workers=0',
    'warmup_iters=1',
)


def train_tiny(data_root: Path, work_dir: Path, *arguments: str, options: tuple[str, ...] = ()) -> int:
    """Exit code of the train command on the demo config, made tiny."""
    places = ['--data-root', str(data_root), '--work-dir', str(work_dir)]
    return train.main(['configs/unet_lyft_bn.py', *places, *arguments, '--cfg-options', *TINY, *options])


@pytest.fixture(scope='session')
def drawn_root(tmp_path_factory):
    """Two frames of each of nine drives, at 96x128."""
    from mmseg_unet_lyft.cli import draw_scenes

    root = tmp_path_factory.mktemp('drawn')
    size = ['--height', '96', '--width', '128', '--frames', '2']
    assert draw_scenes.main([str(root), *size, '--drives', *DRIVES]) == 0
    return root


@pytest.fixture(scope='session')
def trained(drawn_root, tmp_path_factory):
    """Work dir of a model trained for four steps with seed 0."""
    work_dir = tmp_path_factory.mktemp('trained')
    assert train_tiny(drawn_root, work_dir, '--seed', '0', options=('max_iters=4', 'val_interval=2')) == 0
    return work_dir
