"""Whole commands on packed frames, and what is shown of the data."""

import json
import shutil

import numpy as np
import pytest
import torch
from mmseg.registry import DATASETS
from PIL import Image

from mmseg_unet_lyft.cli import browse_data, test
from mmseg_unet_lyft.datasets.layout import MARKER_NAME, find_pairs
from mmseg_unet_lyft.datasets.prepare import pack
from mmseg_unet_lyft.datasets.sampler import LyftStreamSampler
from mmseg_unet_lyft.engine.checkpoint import best_checkpoint, read_weights
from mmseg_unet_lyft.engine.config import load_config

from ..conftest import flip_bit
from .conftest import DRIVES, TINY, train_tiny


@pytest.fixture(scope='module')
def packed_root(drawn_root, tmp_path_factory):
    root = tmp_path_factory.mktemp('packed')
    # Packed alone: the `stats.json` of a prepared root would give other weights than the PNGs.
    pack(find_pairs(drawn_root, DRIVES), root)
    shutil.copyfile(drawn_root / MARKER_NAME, root / MARKER_NAME)
    return root


def weights(work_dir):
    return read_weights(str(work_dir / 'iter_4.pth'))


@pytest.mark.parametrize('workers', [0, 2])
def test_training_on_packed_frames_with_any_workers_gives_the_same_weights(
    trained, packed_root, tmp_path, workers
):
    # `trained` read the PNGs, without workers.
    options = ('max_iters=4', 'val_interval=2', f'num_workers={workers}')
    assert train_tiny(packed_root, tmp_path, '--seed', '0', options=options) == 0
    torch.testing.assert_close(weights(tmp_path), weights(trained), rtol=0, atol=0)


def test_scores_baselines_and_pictures_of_packed_frames_are_those_of_the_pngs(
    trained, drawn_root, packed_root, tmp_path
):
    found = []
    for root in (drawn_root, packed_root):
        work_dir = tmp_path / root.name
        places = ['--data-root', str(root), '--work-dir', str(work_dir)]
        shown = ['--baselines', '--out', str(work_dir / 'ids'), '--show-dir', str(work_dir / 'panels')]
        checkpoint = str(best_checkpoint(str(trained)))
        options = ['--cfg-options', *TINY]
        assert test.main(['configs/unet_lyft_demo.py', checkpoint, *places, *shown, *options]) == 0
        summary = json.loads((work_dir / 'scores.json').read_text())
        pictures = {
            path.relative_to(work_dir): path.read_bytes()
            for folder in ('ids', 'panels')
            for path in sorted((work_dir / folder).iterdir())
        }
        found.append(
            (summary['confusion'], summary['metrics'], summary['baselines'], pictures, summary['data'])
        )
    assert found[0] == found[1]
    assert len(found[0][3]) == 8
    assert found[0][4] == 'synthetic scenes'


def test_a_damaged_packed_frame_ends_training_with_its_name(packed_root, tmp_path, capsys):
    root = tmp_path / 'damaged'
    shutil.copytree(packed_root, root)
    flip_bit(root / 'image_96x128.npy', -1)
    frames = json.loads((root / 'packed.json').read_text())['frames']
    last = max(frames, key=lambda name: frames[name][2])
    drive = last.split('-')[0]
    options = ('max_iters=2', 'num_workers=1', f'train_drives=[{drive}]', 'allow_overlap=True')
    assert train_tiny(root, tmp_path / 'run', options=options) == 2
    said = capsys.readouterr().err
    assert f'image of frame {last} is damaged; delete {root / "packed.json"}' in said
    assert 'Traceback' not in said


def test_sheets_show_what_the_network_sees(packed_root, tmp_path, capsys):
    out = tmp_path / 'sheets'
    arguments = ['configs/unet_lyft_demo.py', '--data-root', str(packed_root), '--out', str(out)]
    size = ['--sheets', '2', '--rows', '3', '--cfg-options', *TINY]
    assert browse_data.main([*arguments, *size]) == 0
    assert f'wrote 2 sheets to {out}' in capsys.readouterr().out
    sheets = [np.asarray(Image.open(path)) for path in sorted(out.iterdir())]
    assert len(sheets) == 2
    assert not np.array_equal(sheets[0], sheets[1])
    # The first picture is the first sample of the stream, with its normalisation taken back.
    config = load_config('configs/unet_lyft_demo.py', {'data_root': str(packed_root), 'crop_size': (64, 96)})
    config.train_dataloader.dataset.pipeline[0].scale = (128, 96)
    frames = DATASETS.build(config.train_dataloader.dataset)
    index = next(iter(LyftStreamSampler(frames, seed=0)))
    pixels = frames[index]['pixels'].numpy()[: 64 * 96 * 3].reshape(64, 96, 3)
    shape = frames[index]['meta']['img_shape']
    shown = sheets[0][22 : 22 + shape[0], : shape[1], ::-1]
    np.testing.assert_array_equal(shown, pixels[: shape[0], : shape[1]])


def test_mistakes_in_browsing_are_one_message(packed_root, tmp_path, capsys):
    assert browse_data.main(['configs/unet_lyft_demo.py', '--rows', '0']) == 2
    assert '--sheets 4 --rows 0: give 1 or more' in capsys.readouterr().err
    assert browse_data.main(['configs/unet_lyft_demo.py', '--data-root', str(tmp_path)]) == 2
    assert f'error: {tmp_path}: ' in capsys.readouterr().err
