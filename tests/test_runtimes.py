"""Exported files label as their network does, in any thread; foreign and damaged ones are refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from mmseg_unet_lyft.cli import predict
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.evaluation.challenge import challenge_ids
from mmseg_unet_lyft.inference import EXPORT_SUFFIXES, export
from mmseg_unet_lyft.inference.runtimes import (
    LABEL_MAP,
    MASKS,
    METADATA_KEY,
    write_checksums,
)
from mmseg_unet_lyft.inference.segmenter import Segmenter

from .conftest import flip_bit
from .test_segmenter import OPTIONS, SIZE, by_mmseg, save_random, synthetic_frame


@pytest.fixture(scope='module')
def config():
    return load_config('configs/unet_lyft_bn.py', OPTIONS)


@pytest.fixture(scope='module')
def checkpoint(config, tmp_path_factory):
    return save_random(config, tmp_path_factory.mktemp('model') / 'random.pth')


@pytest.fixture(scope='module')
def files(checkpoint, tmp_path_factory) -> dict[str, Path]:
    """A file of every kind, by its suffix."""
    folder, segmenter = tmp_path_factory.mktemp('exported'), Segmenter(checkpoint)
    path = export.export_onnx(segmenter.network, folder / 'unet.onnx')
    others = [
        export.convert_to_openvino(path, folder / 'unet.xml'),
        export.export_program(segmenter.network, folder / 'unet.pt2'),
    ]
    return {one.suffix: one for one in (path, *others)}


every_kind = pytest.mark.parametrize('suffix', EXPORT_SUFFIXES.values())


@pytest.mark.stack
@every_kind
@pytest.mark.parametrize('size', [(16, 16), SIZE, (77, 101), (600, 800)])
def test_a_file_agrees_with_mmseg_on_its_checkpoint_at_any_size(config, checkpoint, files, suffix, size):
    frame = cv2.resize(synthetic_frame(), size[::-1])
    batch = np.stack([frame, frame[::-1]])
    # By mmseg, with the recipe's resize to 96x128.
    expected = np.stack([by_mmseg(config, checkpoint, one) for one in batch])
    exported = Segmenter(files[suffix], threads=1, trust=True)
    labels, masks = exported.network.run(batch, 'BGR', LABEL_MAP, MASKS)
    assert (labels == expected).mean() >= 0.9999
    assert (labels.dtype, masks.dtype, masks.shape) == (np.uint8, np.uint8, (2, 2, *size))
    # Without thresholds, the masks are the classes', the hood among the vehicles.
    by_class = np.stack([np.isin(labels, ids) for ids in challenge_ids(exported.classes)], axis=1)
    np.testing.assert_array_equal(masks, by_class)
    assert (exported(frame[..., ::-1], colours='RGB') == expected[0]).mean() >= 0.9999
    with pytest.raises(InputError, match=f'{files[suffix].name}: .*--probabilities'):
        exported.probabilities(frame, colours='BGR')


@every_kind
def test_a_file_serves_four_threads(files, suffix):
    frames = [cv2.resize(synthetic_frame(), (64 + 7 * index, 48 + 5 * index)) for index in range(8)]
    exported = Segmenter(files[suffix], threads=1, trust=True)
    serial = [exported(one, colours='BGR') for one in frames]
    with ThreadPoolExecutor(4) as threads:
        at_once = list(threads.map(lambda one: exported(one, colours='BGR'), frames * 2))
    for one, expected in zip(at_once, serial * 2, strict=True):
        np.testing.assert_array_equal(one, expected)


def test_an_exported_file_needs_neither_torch_nor_an_mm_stack(files, installed_env, tmp_path):
    frame = synthetic_frame()
    np.save(tmp_path / 'frame.npy', frame)
    code = (
        'import sys, numpy as np\n'
        'from mmseg_unet_lyft.inference.segmenter import Segmenter\n'
        f"label = Segmenter({str(files['.onnx'])!r})(np.load('frame.npy'), colours='BGR')\n"
        "np.save('label.npy', label)\n"
        "heavy = {'torch', 'mmengine', 'mmcv', 'mmseg', 'matplotlib'} & set(sys.modules)\n"
        'assert not heavy, heavy\n'
    )
    command, environment = [sys.executable, '-c', code], {'PYTHONPATH': str(installed_env)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    expected = Segmenter(files['.onnx'])(frame, colours='BGR')
    np.testing.assert_array_equal(np.load(tmp_path / 'label.npy'), expected)


# --- what is refused ---


def test_a_program_is_read_on_trust_alone(files, tmp_path, capsys):
    with pytest.raises(InputError, match='unet.pt2: .*--trust'):
        Segmenter(files['.pt2'])
    cv2.imwrite(str(tmp_path / 'frame.png'), synthetic_frame())
    arguments = [str(files['.pt2']), str(tmp_path / 'frame.png'), '--out', str(tmp_path / 'out')]
    assert predict.main(arguments) == 2
    assert '--trust' in capsys.readouterr().err
    assert predict.main([*arguments, '--trust']) == 0


@every_kind
def test_a_file_that_is_not_what_was_written_is_refused(files, tmp_path, suffix):
    for part in files[suffix].parent.glob('unet.*'):
        shutil.copy(part, tmp_path)
    path = tmp_path / f'unet{suffix}'
    write_checksums(path)
    classes = Segmenter(path, trust=True).classes
    parts = [path, path.with_suffix('.bin')] if suffix == '.xml' else [path]
    for part in parts:
        # As `sha256sum -c` reads it.
        assert subprocess.run(['sha256sum', '-c', f'{part.name}.sha256'], cwd=tmp_path).returncode == 0
        for position in (part.stat().st_size // 2, part.stat().st_size - 1):
            flip_bit(part, position)
            with pytest.raises(InputError, match=re.escape(f'{part}: ')):
                Segmenter(path, trust=True)
            flip_bit(part, position)
    # Without checksums, as files of older versions.
    for part in tmp_path.glob('*.sha256'):
        part.unlink()
    assert Segmenter(path, trust=True).classes == classes


def named(**fields) -> str:
    """Metadata of one class, with some fields changed."""
    fixed = dict(format=2, outputs=['label_map'], resizes=[], smallest_side=1)
    return json.dumps(fixed | dict(classes=['a'], palette=[[0, 0, 0]], colours='BGR') | fields)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (None, METADATA_KEY),
        ('{', METADATA_KEY),
        (named(format=1), f'{METADATA_KEY} .*resize'),
        (named(outputs=['masks']), METADATA_KEY),
        (named(resizes=[[[60_000, 60_000], False]]), METADATA_KEY),
        (named(resizes=[[[-64, -64], False]]), METADATA_KEY),
        (named(colours='HSV'), METADATA_KEY),
        (named(palette=[[0, 0, 256]]), 'palette'),
        (named(classes='a'), 'class names'),
        (named(hood=5), 'hood'),
        (named(hood=dict(size=[10**7, 10**7], spans={})), 'hood'),
        (named(hood=dict(size=[4, 4], spans={'4': [[0, 1]]})), 'hood'),
    ],
)
def test_metadata_of_others_are_refused(files, tmp_path, text, message):
    model = onnx.load(str(files['.onnx']))
    onnx.helper.set_model_props(model, {} if text is None else {METADATA_KEY: text})
    onnx.save(model, str(tmp_path / 'x.onnx'))
    with pytest.raises(InputError, match=rf'x\.onnx: .*{message}'):
        Segmenter(tmp_path / 'x.onnx')


@pytest.mark.parametrize(('taken', 'given'), [('FLOAT', 'FLOAT'), ('UINT8', 'INT64')])
def test_files_that_do_not_map_bytes_to_bytes_are_refused(tmp_path, taken, given):
    helper, types = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [helper.make_node('Cast', ['frames'], ['label_map'], to=getattr(types, given))],
        'cast',
        [helper.make_tensor_value_info('frames', getattr(types, taken), [1, 8, 8, 3])],
        [helper.make_tensor_value_info('label_map', getattr(types, given), [1, 8, 8, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=8)
    helper.set_model_props(model, {METADATA_KEY: named(precision='float32')})
    onnx.save(model, str(tmp_path / 'x.onnx'))
    export.convert_to_openvino(tmp_path / 'x.onnx', tmp_path / 'x.xml')
    for name in ('x.onnx', 'x.xml'):
        with pytest.raises(InputError, match=f'{name}: (its label_map is {given.lower()}|.*data type)'):
            Segmenter(tmp_path / name)(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize(('classes', 'size'), [(5, 8), (6, 7)])
def test_an_output_beyond_the_classes_or_of_another_size_is_refused(tmp_path, classes, size):
    helper, types = onnx.helper, onnx.TensorProto
    ids = helper.make_tensor('ids', types.UINT8, [1, size, size], bytes([5]) * size**2, raw=True)
    graph = helper.make_graph(
        [helper.make_node('Constant', [], ['label_map'], value=ids)],
        'constant',
        [helper.make_tensor_value_info('frames', types.UINT8, [1, 8, 8, 3])],
        [helper.make_tensor_value_info('label_map', types.UINT8, [1, size, size])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=8)
    names = dict(classes=list('abcdef'[:classes]), palette=[[0, 0, 0]] * classes)
    helper.set_model_props(model, {METADATA_KEY: named(**names)})
    onnx.save(model, str(tmp_path / 'x.onnx'))
    found = rf'x\.onnx: its label_map is uint8 \(1, {size}, {size}\), up to 5, '
    with pytest.raises(InputError, match=found):
        Segmenter(tmp_path / 'x.onnx')(np.zeros((8, 8, 3), np.uint8), colours='BGR')


@pytest.mark.parametrize('name', ['text.onnx', 'text.xml', 'text.pt2', 'lonely.xml', 'no.onnx'])
def test_files_that_are_not_models_are_refused(tmp_path, caplog, name):
    if name != 'no.onnx':
        (tmp_path / name).write_text('not a model')
    if name == 'text.xml':
        (tmp_path / 'text.bin').write_bytes(b'')
    named_file = 'lonely.bin' if name == 'lonely.xml' else name
    with pytest.raises(InputError, match=re.escape(f'{tmp_path / named_file}: ')):
        Segmenter(tmp_path / name, trust=True)
    # torch logs a traceback of its own.
    assert not caplog.records


@pytest.mark.parametrize(('suffix', 'device'), [('.onnx', 'cuda'), ('.xml', 'cuda'), ('.onnx', 'tpu')])
def test_a_device_that_does_not_serve_is_named(files, suffix, device):
    with pytest.raises(InputError, match=f'--device {device}: '):
        Segmenter(files[suffix], device=device)
