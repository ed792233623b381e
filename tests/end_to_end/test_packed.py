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
from mmseg_unet_lyft.datasets.prepare import Packing
from mmseg_unet_lyft.datasets.sampler import LyftStreamSampler
from mmseg_unet_lyft.engine.checkpoint import best_checkpoint, read_checkpoint, read_weights
from mmseg_unet_lyft.engine.config import load_config

from .conftest import DRIVES, TINY, train_tiny


@pytest.fixture(scope='module')
def packed_root(drawn_root, tmp_path_factory):
    root = tmp_path_factory.mktemp('packed')
    # Packed alone: the `stats.json` of a prepared root would give other weights than the PNGs.
    Packing(find_pairs(drawn_root, DRIVES), root).write()
    shutil.copyfile(drawn_root / MARKER_NAME, root / MARKER_NAME)
    return root


def weights(work_dir):
    return read_weights(str(work_dir / 'iter_4.pth'))


@pytest.mark.stack
@pytest.mark.parametrize('workers', [0, 2])
def test_training_on_packed_frames_with_any_workers_gives_the_same_weights(
    trained, packed_root, tmp_path, workers
):
    # `trained` read the PNGs, without workers.
    options = ('max_iters=4', 'val_interval=2', f'num_workers={workers}')
    assert train_tiny(packed_root, tmp_path, '--seed', '0', options=options) == 0
    torch.testing.assert_close(weights(tmp_path), weights(trained), rtol=0, atol=0)
    # Named apart even within one second, or the second would write into the first one's log.
    files = [str(folder / 'iter_4.pth') for folder in (trained, tmp_path)]
    assert len({read_checkpoint(file)['meta']['experiment_name'][:-16] for file in files}) == 2


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
        assert test.main(['configs/unet_lyft_bn.py', checkpoint, *places, *shown, *options]) == 0
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


def test_sheets_show_what_the_network_sees(packed_root, tmp_path, capsys):
    out = tmp_path / 'sheets'
    arguments = ['configs/unet_lyft_bn.py', '--data-root', str(packed_root), '--out', str(out)]
    size = ['--sheets', '2', '--rows', '3', '--cfg-options', *TINY]
    assert browse_data.main([*arguments, *size]) == 0
    assert f'wrote 2 sheets to {out}' in capsys.readouterr().out
    sheets = [np.asarray(Image.open(path)) for path in sorted(out.iterdir())]
    assert len(sheets) == 2
    assert not np.array_equal(sheets[0], sheets[1])
    # The first picture is the first sample of the stream, with its normalisation taken back.
    config = load_config('configs/unet_lyft_bn.py', {'data_root': str(packed_root), 'crop_size': (64, 96)})
    config.train_dataloader.dataset.pipeline[0].scale = (128, 96)
    frames = DATASETS.build(config.train_dataloader.dataset)
    index = next(iter(LyftStreamSampler(frames, seed=0)))
    pixels = frames[index]['pixels'].numpy()[: 64 * 96 * 3].reshape(64, 96, 3)
    shape = frames[index]['meta']['img_shape']
    shown = sheets[0][22 : 22 + shape[0], : shape[1], ::-1]
    np.testing.assert_array_equal(shown, pixels[: shape[0], : shape[1]])
