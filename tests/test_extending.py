"""What docs/extending.md says works as it stands there: its files are written out and used."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from mmseg_unet_lyft.cli import inspect_data, predict, train
from mmseg_unet_lyft.datasets import carla
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.inference.segmenter import Segmenter

ROOT = Path(__file__).parents[1]
TINY = (
    *('image_scale_wh=(48,32)', 'crop_size=(32,32)', 'batch_size=2', 'num_workers=0', 'warmup_iters=1'),
    *('max_iters=2', 'val_interval=2', 'train_drives=[F1]', 'val_drives=[F2]', 'test_drives=[F3]'),
)


@pytest.fixture
def page(three_drives, monkeypatch):
    """The page's files in the current folder, with the package's configs and ``frames``."""
    folder = three_drives.parent
    text = (ROOT / 'docs/extending.md').read_text(encoding='utf-8')
    # A name in code, at the start of a paragraph, is the file that the next block is.
    for name, content in re.findall(r'^`(\w+\.py)`[^\n]*\n\n(?:```python\n)(.*?)```', text, re.M | re.S):
        (folder / name).write_text(content)
    (folder / 'configs').symlink_to(ROOT / 'configs')
    monkeypatch.syspath_prepend(str(folder))
    # The page's scheme is gone with the test.
    monkeypatch.setattr(carla, 'SCHEMES', dict(carla.SCHEMES))
    return folder


@pytest.mark.stack
def test_a_label_scheme_of_ones_own_is_trained_as_the_page_types_it_and_predicted_with(page):
    text = (ROOT / 'docs/extending.md').read_text(encoding='utf-8')
    (command,) = re.findall(r'^python (-m mmseg_unet_lyft train .*)$', text, re.M)
    (page / 'data').mkdir()
    (page / 'data/lyft').symlink_to(page / 'frames')
    # The package is installed for whoever types it; modules of one's own are found by -m alone.
    environ = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    short = ['--device', 'cpu', '--cfg-options', *TINY, 'base_channels=2']
    done = subprocess.run(
        [sys.executable, *command.split(), *short], cwd=page, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    config, checkpoint = 'work_dirs/walkable/walkable.py', 'work_dirs/walkable/iter_2.pth'
    assert Segmenter(config, checkpoint, device='cpu').classes == ['Rest', 'Ground', 'Person']
    assert predict.main([config, checkpoint, 'frames', '--out', 'out', '--device', 'cpu']) == 0
    ids = carla.tags_to_ids(np.arange(13, dtype=np.uint8)[None], carla.get_scheme('walkable'))
    assert ids.tolist() == [[0, 0, 0, 0, 2, 0, 1, 1, 1, 0, 0, 0, 0]]


@pytest.mark.slow
@pytest.mark.stack
def test_a_backbone_of_ones_own_is_trained_and_labels_frames(page):
    places = ['--work-dir', 'run', '--device', 'cpu', '--seed', '0']
    assert train.main(['strided.py', *places, '--cfg-options', 'data_root=frames', *TINY]) == 0
    checkpoint = 'run/iter_2.pth'
    segmenter = Segmenter('run/strided.py', checkpoint, device='cpu')  # With the values of the command line.
    frame = np.random.default_rng(0).integers(0, 256, (33, 49, 3), np.uint8)
    assert segmenter(frame, colours='BGR').shape == (33, 49)
    alone = Segmenter(checkpoint)  # Training has imported the module.
    np.testing.assert_array_equal(alone(frame, colours='BGR'), segmenter(frame, colours='BGR'))


def test_the_pages_timm_encoder_fits_the_head():
    pytest.importorskip('timm')
    page = (ROOT / 'docs/extending.md').read_text(encoding='utf-8')
    (text,) = re.findall(r"`backbone=(dict\(.*'TIMMBackbone'.*?\))`", page)
    channels = [64, 64, 128, 256, 512]
    config = load_config('configs/unet_lyft_bn.py', {'model.decode_head.in_channels': channels})
    config.model.backbone = eval(text) | dict(pretrained=False)
    del config.model.backbone['_delete_']
    init_default_scope('mmseg')
    logits = MODELS.build(config.model)(torch.rand(2, 3, 75, 101))
    assert logits.shape == (2, 13, 75, 101)


def test_a_recording_of_ones_own_is_sound_in_the_layout(page, recording):
    from to_lyft import to_lyft

    to_lyft(*recording, page / 'own', 'F1')
    names = sorted(path.name for path in (page / 'own/dataA/CameraSeg').iterdir())
    assert names == ['F1-0.png', 'F1-1.png']
    arguments = [str(page / 'own'), '--simulator', '0.9.14', '--out', str(page / 'reports'), '--workers', '1']
    assert inspect_data.main(arguments) == 0


@pytest.fixture
def recording(page):
    """Two frames as CARLA 0.9.14 leaves them: folders of numbered images and tags."""
    from PIL import Image

    random = np.random.default_rng(0)
    folders = page / 'rgb', page / 'seg'
    for folder, largest, channels in zip(folders, (256, 29), (3, 1), strict=True):
        folder.mkdir()
        for number in (100, 105):
            pixels = random.integers(0, largest, (32, 48, channels), np.uint8)
            if channels == 1:
                pixels = np.dstack([pixels[..., 0], 0 * pixels[..., 0], 0 * pixels[..., 0]])
            Image.fromarray(pixels).save(folder / f'{number:06}.png')
    return folders
