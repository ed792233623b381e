"""`tools/export.py`: every format labels as PyTorch does, or there is no file; programs are read on trust."""

import cv2
import numpy as np
import onnx
import pytest
import torch

from mmseg_unet_lyft.bench.subject import drawn_frames, save_random_weights
from mmseg_unet_lyft.cli import export, predict
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.evaluation.challenge import challenge_ids
from mmseg_unet_lyft.evaluation.thresholds import Thresholds, save_thresholds
from mmseg_unet_lyft.inference import exporting, parity, samples
from mmseg_unet_lyft.inference.export import FrameNetwork
from mmseg_unet_lyft.inference.exported import LABEL_MAP, MASKS, METADATA_KEY
from mmseg_unet_lyft.inference.exporting import Export
from mmseg_unet_lyft.inference.formats import EXPORT_SUFFIXES as SUFFIXES
from mmseg_unet_lyft.inference.parity import Parity
from mmseg_unet_lyft.inference.segmenter import Segmenter

OPTIONS = dict(base_channels=4, image_scale_wh=(128, 96))
SIZES = [(1, 16, 16), (3, 97, 45), (1, 96, 128)]


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return save_random(tmp_path_factory.mktemp('model') / 'best.pth')


def save_random(path, **knobs):
    """Random weights whose logits lie apart and whose classes occur."""
    config = load_config(knobs.pop('name', 'unet_lyft_bn.py'), OPTIONS | knobs)
    config.data_stats = dict(sha256='5eed' * 16)
    save_random_weights(config, path)
    content = torch.load(path, weights_only=True)
    content['state_dict']['decode_head.conv_seg.weight'] *= 30
    torch.save(content, path)
    return str(path)


@pytest.fixture(autouse=True, scope='module')
def _small_drawings():
    """Frames of the set's own size take a second each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, '_DRAWN', (('F1', 0, 96, 128), ('F62', 5, 97, 131)))
        patch.setattr(parity, '_ROUNDS', 1)
        yield


@pytest.fixture(scope='module')
def frames():
    return drawn_frames(3, (97, 131))


@pytest.fixture(scope='module')
def files(checkpoint, tmp_path_factory):
    """A file of every format."""
    folder = tmp_path_factory.mktemp('exported')
    for kind, suffix in SUFFIXES.items():
        assert export.main([checkpoint, '--format', kind, '--out', str(folder / f'x{suffix}')]) == 0
    return folder


@pytest.mark.stack
@pytest.mark.parametrize('kind', SUFFIXES)
@pytest.mark.parametrize('size', SIZES)
def test_every_format_labels_frames_of_any_number_and_size_as_the_network(
    checkpoint, files, frames, kind, size
):
    number, height, width = size
    batch = np.ascontiguousarray(np.stack(frames[:number])[:, :height, :width])
    module = FrameNetwork(Segmenter(checkpoint).network).eval()
    with torch.no_grad():
        label, masks = (one.numpy() for one in module(torch.from_numpy(batch)))
    exported = Segmenter(files / f'x{SUFFIXES[kind]}', trust=True)
    found_label, found_masks = exported.network.run(batch, LABEL_MAP, MASKS)
    assert (found_label == label).mean() >= 0.9999
    assert (found_masks == masks).mean() >= 0.9999
    assert found_label.dtype == found_masks.dtype == np.uint8
    assert found_masks.shape == (number, 2, height, width)
    # Without thresholds, the masks are the classes', the hood among the vehicles.
    expected = np.stack([np.isin(label, ids) for ids in challenge_ids(exported.classes)], axis=1)
    np.testing.assert_array_equal(masks, expected)


@pytest.mark.parametrize('kind', SUFFIXES)
def test_a_file_says_what_it_is_of(checkpoint, files, kind):
    network, made_from = (
        Segmenter(path, trust=True).network for path in (files / f'x{SUFFIXES[kind]}', checkpoint)
    )
    assert network.classes == made_from.classes
    assert network.palette == made_from.palette
    assert (network.scheme, network.data_sha256, network.precision) == ('carla13', '5eed' * 16, 'float32')


def test_no_path_of_this_machine_goes_into_a_file(files):
    for path in files.iterdir():
        assert b'site-packages' not in path.read_bytes(), path
    assert 'mmseg_unet_lyft/' not in str(onnx.load(str(files / 'x.onnx')).graph.node)


def test_the_command_tells_agreement_score_and_speed(checkpoint, tmp_path, capsys):
    out = tmp_path / 'x.torchscript'
    assert export.main([checkpoint, '--format', 'torchscript', '--out', str(out)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(('drawn', 'wrote'))]
    assert lines[0].startswith('drawn frames: 100.0000 % of 0.12 million pixels labelled alike')
    assert 'mIoU' in lines[1]
    assert lines[1].endswith('in the file (+0.00)')
    assert lines[2].endswith('times as fast as PyTorch on the CPU')
    assert lines[3].startswith(f'wrote {out} (')
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_that_labels_otherwise_is_not_left(checkpoint, tmp_path, capsys, monkeypatch):
    def write_another(segmenter, *args):
        # For real: the weights of another network.
        write(Segmenter(save_random(tmp_path / 'other.pth', base_channels=2)), *args)

    write = exporting._write
    monkeypatch.setattr(exporting, '_write', write_another)
    out = tmp_path / 'out' / 'x.torchscript'
    out.parent.mkdir()
    assert export.main([checkpoint, '--format', 'torchscript', '--out', str(out)]) == 2
    error = capsys.readouterr().err
    assert f'{out}: not written, the file labels ' in error
    assert 'as PyTorch does, and 99.99 % is asked for; try another --format' in error
    assert list(out.parent.iterdir()) == []


def test_agreement_and_score_by_hand():
    found = Parity(
        same_pixels=3, pixels=4, confusions=[np.array([[2, 0], [0, 2]]), np.array([[1, 1], [0, 2]])]
    )
    assert found.agreement == 0.75
    assert found.miou == pytest.approx([100, 100 * (1 / 2 + 2 / 3) / 2])
    assert Parity(1, 1).miou is None
    lines = list(found.lines('real frames'))
    assert lines[1] == 'real frames: mIoU 100.00 in PyTorch, 58.33 in the file (-41.67)'


def test_real_frames_are_compared_and_scored(checkpoint, kaggle, tmp_path, capsys):
    kaggle.add('F2-0', size=(33, 47), tags=7)
    arguments = ['--data-root', str(kaggle.root), '--drives', 'F2', '--format', 'torchscript']
    assert export.main([checkpoint, '--out', str(tmp_path / 'x.torchscript'), *arguments]) == 0
    # At the network's 96x128: a label map and two masks alone, and twice 77x101 in a batch.
    assert 'real frames: 100.0000 % of 0.08 million pixels' in capsys.readouterr().out


def test_thresholds_go_into_the_masks(checkpoint, frames, tmp_path, capsys):
    thresholds, out = tmp_path / 'thresholds.json', tmp_path / 'x.onnx'
    segmenter = Segmenter(checkpoint)
    arguments = [checkpoint, '--out', str(out), '--thresholds', str(thresholds)]
    save_thresholds(thresholds, Thresholds((0.9, 0.1), (0, 2)), segmenter.classes, {})
    assert export.main(arguments) == 2
    assert 'the thresholds dilate masks by (0, 2) pixels, which an exported file' in capsys.readouterr().err
    save_thresholds(thresholds, Thresholds((0.9, 0.1)), segmenter.classes, {})
    assert export.main(arguments) == 0
    plain, with_thresholds = (FrameNetwork(segmenter.network, given).eval() for given in (None, (0.9, 0.1)))
    batch = torch.from_numpy(frames[0])[None]
    with torch.no_grad():
        expected, by_class = with_thresholds(batch)[1].numpy(), plain(batch)[1].numpy()
    (found,) = Segmenter(out).network.run(frames[0][None], MASKS)
    assert (found == expected).mean() >= 0.9999
    assert (expected != by_class).any()


def test_a_road_network_has_label_maps_alone(tmp_path):
    checkpoint = save_random(tmp_path / 'road.pth', name='unet_lyft_road.py')
    out = tmp_path / 'x.torchscript'
    assert export.main([checkpoint, '--format', 'torchscript', '--out', str(out)]) == 0
    assert Segmenter(out, trust=True).network.outputs == [LABEL_MAP]


# --- trust -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('suffix', ['.pt2', '.torchscript'])
def test_a_program_is_read_on_trust_alone(files, frames, tmp_path, capsys, suffix):
    path = files / f'x{suffix}'
    with pytest.raises(InputError, match=r'is a program, and reading it can run whatever it holds'):
        Segmenter(path)
    image = tmp_path / 'frame.png'
    cv2.imwrite(str(image), frames[0])
    out = ['--out', str(tmp_path / 'out')]
    assert predict.main([str(path), str(image), *out]) == 2
    assert 'give --trust (trust=True in Python)' in capsys.readouterr().err
    assert predict.main([str(path), str(image), *out, '--trust']) == 0


@pytest.mark.parametrize('suffix', ['.pt2', '.torchscript'])
def test_a_program_that_is_none_is_named(tmp_path, caplog, suffix):
    path = tmp_path / f'x{suffix}'
    path.write_bytes(b'no program')
    with pytest.raises(InputError, match=rf'x\{suffix}: cannot be read as a program \('):
        Segmenter(path, trust=True)
    # torch logs a traceback of its own.
    assert not caplog.records


def test_frames_too_small_for_a_program_are_named(files):
    with pytest.raises(InputError, match=r'x\.pt2: does not take frames of 8x8 \('):
        Segmenter(files / 'x.pt2', trust=True)(np.zeros((8, 8, 3), np.uint8), colours='BGR')


# --- what is refused ---------------------------------------------------------------------------------------


def test_a_file_that_is_there_stays_without_overwrite(checkpoint, tmp_path, capsys):
    out = tmp_path / 'x.xml'
    out.with_suffix('.bin').write_bytes(b'weights')
    assert export.main([checkpoint, '--format', 'openvino', '--out', str(out)]) == 2
    assert 'x.bin: is there already; name another --out, or give --overwrite' in capsys.readouterr().err
    assert out.with_suffix('.bin').read_bytes() == b'weights'


def test_a_folder_is_no_place_for_a_file(checkpoint, tmp_path, capsys):
    (tmp_path / 'x.onnx').mkdir()
    assert export.main([checkpoint, '--out', str(tmp_path / 'x.onnx'), '--overwrite']) == 2
    assert 'x.onnx: is a folder; name a file with --out' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ['--format', 'torch', '--half'],
            '--format torch has no float16; formats that have it: onnx, openvino',
        ),
        (['--out', 'x.xml'], r'x.xml: files of --format onnx end in .onnx'),
        (['--out', 'none/x.onnx'], 'none/x.onnx: none does not exist; name a folder that does'),
        (['--frames', '0'], '--frames 0: give 1 or more'),
        (['--max-loss', 'nan'], '--max-loss nan: give 0 or more'),
        (['--drives', 'F1'], '--drives: are of --data-root; give that too'),
        (['--format', 'safetensors', '--int8'], '--format safetensors: holds the weights as they are; leave'),
    ],
)
def test_what_makes_no_sense_is_refused_before_work(
    checkpoint, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert export.main([checkpoint, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_words_that_are_no_checkpoint_are_refused(capsys):
    assert export.main(['unet_lyft.py']) == 2
    assert 'unet_lyft.py: name a checkpoint (.pth, .pt, .safetensors), or a config' in capsys.readouterr().err


def test_another_precision_may_cost_no_more_than_asked(tmp_path):
    wanted = Export('onnx', tmp_path / 'x.onnx', 'int8', max_loss=1.0)
    worse = Parity(9, 10, [np.array([[2, 0], [0, 2]]), np.array([[1, 1], [0, 2]])])
    with pytest.raises(InputError, match=r'int8 costs 41\.67 points of mIoU \(drawn\), and --max-loss is 1'):
        exporting._require(worse, wanted, 'drawn')
    with pytest.raises(InputError, match=r'int8 costs 10\.00 % of pixels \(drawn\), and --max-loss is 1'):
        exporting._require(Parity(9, 10), wanted, 'drawn')
    exporting._require(Parity(995, 1000), wanted, 'drawn')


def test_safetensors_are_written_too(checkpoint, frames, tmp_path):
    out = tmp_path / 'x.safetensors'
    assert export.main([checkpoint, '--format', 'safetensors', '--out', str(out)]) == 0
    np.testing.assert_array_equal(
        Segmenter(out)(frames[0], colours='BGR'), Segmenter(checkpoint)(frames[0], colours='BGR')
    )
    assert METADATA_KEY.encode() in out.read_bytes()[:4000]
