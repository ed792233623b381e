"""Whole commands on packed frames, and what is shown of the data."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmseg.registry import DATASETS
from PIL import Image

from mmseg_unet_lyft.bench import contenders as bench
from mmseg_unet_lyft.cli import benchmark, browse_data, test
from mmseg_unet_lyft.datasets.lyft_carla import find_pairs
from mmseg_unet_lyft.datasets.packing import pack
from mmseg_unet_lyft.datasets.scenes import MARKER_NAME
from mmseg_unet_lyft.datasets.stream import LyftStreamSampler
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


def test_scores_floors_and_pictures_of_packed_frames_are_those_of_the_pngs(
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
        found.append((summary['confusion'], summary['metrics'], summary['floors'], pictures, summary['data']))
    assert found[0] == found[1]
    assert len(found[0][3]) == 8
    assert found[0][4] == 'drawn scenes'


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
    assert (
        f'image of frame {last} is damaged; delete {root / "packed.json"} and run tools/prepare_data.py again'
        in said
    )
    assert 'Traceback' not in said


# --- sheets ------------------------------------------------------------------------------------------------


def test_sheets_show_what_the_network_sees(packed_root, tmp_path, capsys):
    out = tmp_path / 'sheets'
    arguments = ['configs/unet_lyft_demo.py', '--data-root', str(packed_root), '--out', str(out)]
    size = ['--sheets', '2', '--rows', '3', '--cfg-options', *TINY]
    assert browse_data.main([*arguments, *size]) == 0
    assert f'wrote 2 sheets to {out}' in capsys.readouterr().out
    sheets = [np.asarray(Image.open(path)) for path in sorted(out.iterdir())]
    assert len(sheets) == 2
    # Three rows of 64x96 crops, two columns, each under a caption of 22 rows.
    assert sheets[0].shape[1] == 2 * 96
    assert sheets[0].shape[0] > 3 * (64 + 22)
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
    assert f'{tmp_path}: no CameraRGB folder in it' in capsys.readouterr().err


# --- the preprocessor's contract ---------------------------------------------------------------------------


def test_a_preprocessor_that_cannot_read_the_batches_is_refused_before_the_start(
    drawn_root, tmp_path, capsys
):
    options = ('model.data_preprocessor.type=SegDataPreProcessor',)
    assert train_tiny(drawn_root, tmp_path, options=options) == 2
    assert "set model.data_preprocessor.type='LyftDataPreProcessor'" in capsys.readouterr().err


# --- the benchmark -----------------------------------------------------------------------------------------


def test_the_input_benchmark_measures_all_pipelines_both_ways(tmp_path, capsys):
    out = tmp_path / 'input.json'
    arguments = ['input', '--frames', '4', '--rounds', '2', '--samples', '4', '--json', str(out)]
    assert benchmark.main(arguments) == 0
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert list(result['pipelines']) == [bench.STOCK, *bench.TARGETS]
    for name, entry in result['pipelines'].items():
        assert name in printed
        for way in ('in_process', 'through_worker'):
            times = entry[way]['wall_ms']
            assert 0 < times['least'] <= times['median'] <= times['most']
            assert entry[way]['own_cpu_ms']['median'] > 0
    stock = result['pipelines'][bench.STOCK]['in_process']['times_stock']
    assert stock == dict(median=1, least=1, most=1)
    assert result['machine']['versions']['torch'] == torch.__version__
    assert result['settings']['data'] == 'drawn scenes'
    assert result['settings']['crop_size'] == [512, 512]
    assert set(result['device_ms']) == {'normalising, cpu', 'colour and normalising, cpu'}


def test_too_few_frames_for_the_benchmark_are_said(drawn_root, capsys):
    assert benchmark.main(['input', '--data-root', str(drawn_root), '--frames', '400']) == 2
    assert re.search(r'holds 18 frames; ask for as many with --frames', capsys.readouterr().err)


def test_every_contender_sees_the_same_frames(drawn_root, tmp_path):
    drives = bench.prepare(drawn_root, 6, tmp_path)
    found = bench.contenders(tmp_path, drives)
    for contender in found.values():
        names = {
            Path(contender.dataset.get_data_info(index)['img_path']).stem
            for index in range(len(contender.dataset))
        }
        assert len(names) == 6
        assert names == {path.stem for path in (tmp_path / 'grey').iterdir()}
    # The stock pipeline's labels are the tags, in one channel.
    name = next(iter(names))
    (label,) = drawn_root.glob(f'*/*/CameraSeg/{name}.png')
    np.testing.assert_array_equal(
        cv2.imread(str(tmp_path / 'grey' / f'{name}.png'), cv2.IMREAD_UNCHANGED),
        cv2.imread(str(label))[..., 2],
    )
