"""`tools/export.py`: every format and precision labels as PyTorch does, or no file is left."""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import re
import sys

import cv2
import numpy as np
import onnx
import pytest
import torch

from mmseg_unet_lyft.cli import export as command
from mmseg_unet_lyft.datasets.carla import CARLA_CLASSES, hood_mask
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.evaluation.thresholds import (
    Thresholds,
    mask_probabilities,
    save_thresholds,
    threshold_masks,
)
from mmseg_unet_lyft.inference import EXPORT_SUFFIXES, export
from mmseg_unet_lyft.inference.export import Export, Parity, half_onnx, quantise_onnx
from mmseg_unet_lyft.inference.latency import synthetic_frames
from mmseg_unet_lyft.inference.runtimes import LABEL_MAP, MASKS, PROBABILITIES
from mmseg_unet_lyft.inference.segmenter import Segmenter

from .test_segmenter import OPTIONS, SIZE, save_random, save_small, synthetic_frame

SHA256 = '5eed' * 16
# Near what the random network gives, so that both masks have an edge.
MASK_THRESHOLDS = (0.3, 0.34)
SYNTHETIC = export._SYNTHETIC


@pytest.fixture(autouse=True, scope='module')
def _small_frames():
    """Frames of the set's own size take a second each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, '_SYNTHETIC', (('F1', 0, 90, 121), ('F62', 5, 97, 131)))
        yield


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    config = load_config('configs/unet_lyft_bn.py', OPTIONS)
    config.data_stats = dict(sha256=SHA256)
    path = save_random(config, tmp_path_factory.mktemp('model') / 'best.pth')
    content = torch.load(path, weights_only=True)
    # Logits that lie apart.
    content['state_dict']['decode_head.conv_seg.weight'] *= 30
    torch.save(content, path)
    return path


@pytest.fixture(scope='module')
def files(checkpoint, tmp_path_factory):
    """A file of every format."""
    folder = tmp_path_factory.mktemp('exported')
    for kind, suffix in EXPORT_SUFFIXES.items():
        assert command.main([checkpoint, '--format', kind, '--out', str(folder / f'x{suffix}')]) == 0
    return folder


@pytest.mark.stack
@pytest.mark.parametrize('kind', EXPORT_SUFFIXES)
def test_a_file_says_what_it_is_of(checkpoint, files, kind):
    suffix = EXPORT_SUFFIXES[kind]
    network, made_from = (Segmenter(path, trust=True).network for path in (files / f'x{suffix}', checkpoint))
    assert network.classes == made_from.classes
    assert network.palette == made_from.palette
    assert (network.scheme, network.data_sha256) == ('carla13', SHA256)


def test_each_file_has_its_checksum_and_no_path_of_this_machine(files):
    written = sorted(path for path in files.iterdir() if path.suffix != '.sha256')
    assert [path.suffix for path in written] == ['.bin', '.onnx', '.pt2', '.xml']
    for path in written:
        assert b'site-packages' not in path.read_bytes(), path
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert (files / f'{path.name}.sha256').read_text() == f'{digest}  {path.name}\n'
    assert 'mmseg_unet_lyft/' not in str(onnx.load(str(files / 'x.onnx')).graph.node)


def test_the_command_reports_agreement_and_score(checkpoint, kaggle, tmp_path, capsys):
    kaggle.add('F2-0', size=(33, 47), tags=7)
    out = tmp_path / 'x.onnx'
    arguments = ['--data-root', str(kaggle.root), '--drives', 'F2', '--out', str(out)]
    assert command.main([checkpoint, *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    by_kind = [[line for line in lines if line.startswith(kind)] for kind in ('synthetic', 'real')]
    # A label map and two masks each of 90x121 and 97x131, and of twice 77x101 in a batch.
    assert '% of 0.12 million pixels' in by_kind[0][0]
    # The frame's own 33x47, alone and twice in a batch: not the recipe's size.
    assert '% of 0.01 million pixels' in by_kind[1][0]
    for agreement, score in by_kind:
        assert float(agreement.split()[2]) >= 99.99
        assert 'mIoU' in score
    assert lines[-1].startswith(f'wrote {out} (')
    assert sorted(tmp_path.glob('x.*')) == [out, tmp_path / 'x.onnx.sha256']


def test_the_gate_compares_on_three_sizes_that_no_recipe_has():
    sizes = {(height, width) for _, _, height, width in SYNTHETIC}
    assert len(sizes) >= 3
    assert sizes.isdisjoint({(600, 800), (300, 400), (450, 600)})


@pytest.mark.parametrize('lacks', ['weights', 'resize'])
def test_a_file_that_labels_otherwise_is_not_left(checkpoint, tmp_path, capsys, monkeypatch, lacks):
    def write_another(segmenter, *args):
        if lacks == 'weights':
            segmenter = Segmenter(save_small(tmp_path / 'other.pth', base_channels=2))
        else:
            # As files were, whose network saw frames at their own size.
            segmenter = copy.copy(segmenter)
            segmenter.network = copy.copy(segmenter.network)
            segmenter.network.resizes = []
        write(segmenter, *args)

    write = export._write
    monkeypatch.setattr(export, '_write', write_another)
    # Folders that are missing are made.
    out = tmp_path / 'a' / 'folder' / 'x.onnx'
    assert command.main([checkpoint, '--out', str(out)]) == 2
    assert re.search(f'{out}: .* 99.9 %', capsys.readouterr().err)
    assert list(out.parent.iterdir()) == []


def test_another_precision_may_cost_no_more_than_asked(tmp_path):
    wanted = Export('onnx', tmp_path / 'x.onnx', 'int8', max_loss=1.0)
    worse = Parity(9, 10, [np.array([[2, 0], [0, 2]]), np.array([[1, 1], [0, 2]])])
    assert worse.agreement == 0.9
    assert worse.miou == pytest.approx([100, 100 * (1 / 2 + 2 / 3) / 2])
    for parity, loss in ((worse, 41.67), (Parity(9, 10), '10.00 %')):
        with pytest.raises(InputError, match=f'int8 .*{loss}'):
            export._require_parity(parity, wanted, 'synthetic')
    export._require_parity(Parity(995, 1000), wanted, 'synthetic')


# --- what goes into a file, and what does not ---


@pytest.mark.parametrize('leaf', ['unet_lyft_resnet18', 'unet_lyft_road'])
def test_other_networks_are_exported(tmp_path, leaf):
    # One whose pyramid ends small, and one with a single output, without vehicles and so without masks.
    options = dict(image_scale_wh=SIZE[::-1]) if leaf == 'unet_lyft_resnet18' else OPTIONS
    segmenter = Segmenter(save_random(load_config(f'configs/{leaf}.py', options), tmp_path / 'random.pth'))
    exported = Segmenter(export.export_onnx(segmenter.network, tmp_path / 'x.onnx', probabilities=True))
    masks = [] if leaf == 'unet_lyft_road' else [MASKS]
    assert exported.network.outputs == [LABEL_MAP, *masks, PROBABILITIES]
    for frame in (synthetic_frame(), synthetic_frame()[:77, :101]):
        found, expected = (one(frame, colours='BGR') for one in (exported, segmenter))
        assert len(np.unique(expected)) > 1
        assert (found == expected).mean() >= 0.9999
        shares, expected = (one.probabilities(frame, colours='BGR') for one in (exported, segmenter))
        np.testing.assert_allclose(shares, expected, atol=0.002)
    nats = [one.uncertainty(frame, colours='BGR', passes=1)[1] for one in (exported, segmenter)]
    np.testing.assert_allclose(*nats, atol=0.01)
    with pytest.raises(InputError, match=r'x\.onnx: .*dropout'):
        exported.uncertainty(frame, colours='BGR', passes=2)


@pytest.mark.parametrize('wanted', [(48, 64), (24, 32), (95, 70), (1, 150)])
@pytest.mark.parametrize('size', [(48, 64), (77, 101), (1, 300)])
def test_frames_are_resized_as_opencv_does(size, wanted):
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = export.resize_as_opencv(torch.from_numpy(frame)[None], wanted)[0].numpy()
    expected = cv2.resize(frame, wanted[::-1], interpolation=cv2.INTER_LINEAR)
    # OpenCV's kernels for other processors round otherwise.
    assert abs(found - expected).max() <= 1
    assert (found == expected).mean() >= (0.99 if platform.machine() == 'x86_64' else 0.8)


def test_thresholds_go_into_the_file(tmp_path, capsys):
    checkpoint = save_small(tmp_path / 'random.pth')
    options = OPTIONS | dict(class_thresholds=[0.2] * 6 + [0.05] * 7)
    plain, frame, out = Segmenter(checkpoint), synthetic_frame(), tmp_path / 'x.onnx'
    expected = Segmenter(load_config('unet_lyft_bn.py', options), checkpoint)(frame, colours='BGR')
    assert (expected != plain(frame, colours='BGR')).mean() > 0.05
    arguments = ['unet_lyft_bn.py', checkpoint, '--out', str(out), '--thresholds', str(tmp_path / 't.json')]
    arguments += ['--cfg-options', *(f'{key}={value}'.replace(' ', '') for key, value in options.items())]
    save_thresholds(tmp_path / 't.json', Thresholds((0.1, 0.03), (0, 2)), CARLA_CLASSES, {})
    assert command.main(arguments) == 2
    assert f'{out}: ' in (error := capsys.readouterr().err)
    assert '(0, 2) pixels' in error
    save_thresholds(tmp_path / 't.json', Thresholds((0.1, 0.03)), CARLA_CLASSES, {})
    assert command.main(arguments) == 0
    exported = Segmenter(out)
    label, masks = exported.labels_and_masks(frame, colours='BGR')
    assert (label == expected).mean() >= 0.9999
    shares = mask_probabilities(plain.probabilities(frame, colours='BGR'), CARLA_CLASSES)
    by_hand = threshold_masks(shares, Thresholds((0.1, 0.03)), hood_mask(*SIZE))
    assert by_hand.any(axis=(1, 2)).all()
    assert (masks == by_hand).mean() >= 0.999
    np.testing.assert_array_equal(exported.masks(frame, colours='BGR'), masks)
    with pytest.raises(InputError, match=re.escape(str(out))):
        Segmenter(out, thresholds=Thresholds())


@pytest.mark.parametrize(
    ('options', 'key'),
    [
        (dict(test_flip=True), 'test_cfg.flip'),
        (dict(test_scales=(0.5, 1.0)), 'test_cfg.scales'),
        (dict(window_size=(32, 32)), 'test_cfg.mode'),
        (dict(interpolation='area'), 'test_pipeline'),
    ],
)
def test_what_a_file_cannot_do_is_not_exported(checkpoint, tmp_path, options, key):
    interpolation = options.pop('interpolation', 'bilinear')
    config = load_config('configs/unet_lyft_bn.py', OPTIONS | options)
    config.test_pipeline[1]['interpolation'] = interpolation
    with pytest.raises(InputError, match=f'^{key}.*: '):
        export.export_onnx(Segmenter(config, checkpoint).network, tmp_path / 'x.onnx')
    assert not (tmp_path / 'x.onnx').exists()


def test_a_file_that_is_there_stays_without_overwrite(checkpoint, tmp_path, capsys):
    out, weights = tmp_path / 'x.xml', tmp_path / 'x.bin'
    weights.write_bytes(b'weights')
    assert command.main([checkpoint, '--format', 'openvino', '--out', str(out)]) == 2
    assert f'{weights}: ' in capsys.readouterr().err
    assert weights.read_bytes() == b'weights'
    (tmp_path / 'x.xml.sha256').write_text('0' * 64 + '  x.xml\n')
    assert command.main([checkpoint, '--format', 'openvino', '--out', str(out), '--overwrite']) == 0
    assert Segmenter(out).classes == list(CARLA_CLASSES)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--format', 'torch', '--half'], '--format torch has no float16'),
        (['--out', 'x.xml'], 'x.xml: '),
        (['--drives', 'F1'], '--drives: '),
        (['--format', 'safetensors', '--int8'], '--format safetensors: '),
    ],
)
def test_mistakes_are_refused_before_work(checkpoint, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert command.main([checkpoint, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_words_that_are_not_a_checkpoint_are_refused(capsys):
    assert command.main(['unet_lyft.py']) == 2
    assert 'unet_lyft.py: ' in capsys.readouterr().err


def test_safetensors_are_written_too(checkpoint, tmp_path):
    out = tmp_path / 'x.safetensors'
    assert command.main([checkpoint, '--format', 'safetensors', '--out', str(out)]) == 0
    labels = [Segmenter(path)(synthetic_frame(), colours='BGR') for path in (out, checkpoint)]
    np.testing.assert_array_equal(*labels)


# --- float16 and int8 ---


@pytest.fixture(scope='module')
def segmenter(tmp_path_factory):
    """A random network of three classes that all occur, large enough for its weights to make up the file."""
    path = tmp_path_factory.mktemp('model') / 'random.pth'
    return Segmenter(save_small(path, scheme='challenge3', base_channels=8))


@pytest.fixture(scope='module')
def folder(segmenter, tmp_path_factory):
    """The network exported with masks: as it is, in float16 and in int8."""
    folder = tmp_path_factory.mktemp('exported')
    plain = export.export_onnx(segmenter.network, folder / 'plain.onnx', mask_thresholds=MASK_THRESHOLDS)
    half_onnx(plain, folder / 'half.onnx')
    quantise_onnx(plain, folder / 'int8.onnx', synthetic_frames(4, SIZE))
    for name in ('plain', 'half', 'int8'):
        export.convert_to_openvino(folder / f'{name}.onnx', folder / f'{name}.xml')
    return folder


@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
@pytest.mark.parametrize(('name', 'share'), [('half', 0.998), ('int8', 0.98)])
def test_smaller_files_label_as_the_network_does(segmenter, folder, name, suffix, share):
    # Frames that nothing was calibrated on; the last of an odd size.
    frames = synthetic_frames(13, SIZE)[10:]
    frames[2] = cv2.resize(frames[2], (101, 77))
    found, plain = (Segmenter(folder / one, threads=1) for one in (f'{name}{suffix}', 'plain.onnx'))
    for frame in frames:
        labels, masks = found.labels_and_masks(frame, colours='BGR')
        expected = segmenter(frame, colours='BGR')
        assert np.bincount(expected.ravel()).max() < 0.7 * expected.size
        assert (labels == expected).mean() >= share
        exact_labels, exact_masks = plain.labels_and_masks(frame, colours='BGR')
        assert (labels == exact_labels).mean() >= share
        assert 0.05 < exact_masks.mean() < 0.95
        assert (masks == exact_masks).mean() >= share


def test_weights_are_stored_in_float16_and_int8(segmenter, folder):
    def weights(name: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for one in onnx.load(str(folder / name)).graph.initializer:
            if len(one.dims) == 4:
                kind = onnx.TensorProto.DataType.Name(one.data_type)
                found[kind] = found.get(kind, 0) + int(np.prod(one.dims))
        return found

    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    layers = [layer for layer in segmenter.network.model.modules() if isinstance(layer, kinds)]
    total, first_and_last = sum(layer.weight.numel() for layer in layers), 3 * 3 * 3 * 8 + 8 * 3
    assert weights('plain.onnx') == dict(FLOAT=total)
    assert weights('half.onnx') == dict(FLOAT16=total)
    assert weights('int8.onnx') == dict(INT8=total - first_and_last, FLOAT=first_and_last)
    for name, half_as_large, a_quarter in (('onnx', 1.9, 3), ('bin', 1.9, 3.5)):
        plain, half, int8 = ((folder / f'{one}.{name}').stat().st_size for one in ('plain', 'half', 'int8'))
        assert plain > half_as_large * half
        assert plain > a_quarter * int8


def test_metadata_are_kept_and_name_the_precision(folder):
    plain, half, int8 = (
        json.loads(onnx.load(str(folder / f'{name}.onnx')).metadata_props[0].value)
        for name in ('plain', 'half', 'int8')
    )
    assert plain['classes'] == ['Background', 'Road', 'Vehicle']
    assert plain['precision'] == 'float32'
    assert half == plain | dict(precision='float16')
    assert int8 == plain | dict(precision='int8')


def test_all_frames_that_are_given_are_read(folder, tmp_path):
    frames = iter(synthetic_frames(3, SIZE))
    quantise_onnx(folder / 'plain.onnx', tmp_path / 'x.onnx', frames)
    assert next(frames, None) is None


def test_real_frames_are_spread_over_a_split(kaggle):
    written = [cv2.imread(str(kaggle.add(f'F1-{frame}')[0])) for frame in range(5)]
    kaggle.add('F2-0')
    found = [image for image, _ in export.real_frames(kaggle.root, ['F1'], 3)]
    np.testing.assert_array_equal(found, [written[index] for index in (0, 2, 4)])
    assert len(list(export.real_frames(kaggle.root, ['F1'], 9))) == 5
    ((image, label),) = export.real_frames(kaggle.root, ['F1'], 1, 'carla13')
    assert image.shape[:2] == label.shape


@pytest.mark.parametrize(
    'write', [half_onnx, lambda path, out: quantise_onnx(path, out, synthetic_frames(1, SIZE))]
)
def test_a_missing_package_is_named(folder, tmp_path, monkeypatch, write):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(InputError, match='pip install onnx$'):
        write(folder / 'plain.onnx', tmp_path / 'out.onnx')
