"""Files from strangers: what each kind of hostile or damaged file comes to, and that none of it is run."""

import io
import os
import pickle
import re
import shutil
import tarfile
import zipfile
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmseg.apis import init_model

from mmseg_unet_lyft.bench.subject import save_random_weights
from mmseg_unet_lyft.cli.console import guarded
from mmseg_unet_lyft.engine.checkpoint import use_resume, weights_of
from mmseg_unet_lyft.engine.checkpoint_file import load_safely, read_checkpoint
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.plain_loading import plain_loading
from mmseg_unet_lyft.engine.saving import write_with_checksum
from mmseg_unet_lyft.engine.weights_file import write_safetensors
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.export import convert_to_openvino
from mmseg_unet_lyft.inference.exporting import Export, Proof, export
from mmseg_unet_lyft.inference.formats import EXPORT_SUFFIXES
from mmseg_unet_lyft.inference.seal import check_seal, seal
from mmseg_unet_lyft.inference.segmenter import Segmenter

from .conftest import Call, flip_bit

pytestmark = pytest.mark.stack


@pytest.fixture
def marker(tmp_path):
    """What code in the files below would make."""
    return tmp_path / 'ran'


@pytest.fixture
def evil(marker):
    """Weights beside a call that makes the marker."""
    return dict(state_dict=dict(a=torch.zeros(3)), extra=Call(os.mkdir, str(marker)))


@pytest.fixture(autouse=True)
def restored_loaders(monkeypatch):
    """mmengine's own loaders and torch's own default again after the test."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')


def old_format(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def bare_pickle(content, path):
    path.write_bytes(pickle.dumps(content['extra']))


def array(content, path):
    with path.open('wb') as file:
        np.save(file, np.array([content['extra']], dtype=object))


def archive(content, path):
    with tarfile.open(path, 'w') as file:
        for name in ('storages', 'tensors', 'pickle'):
            inside = pickle.dumps(content['extra'])
            member = tarfile.TarInfo(name)
            member.size = len(inside)
            file.addfile(member, io.BytesIO(inside))


# --- checkpoints that would run code ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('write', 'message'),
    [
        (torch.save, 'refused, it holds posix.mkdir'),
        (old_format, 'refused, it holds posix.mkdir'),
        (bare_pickle, 'cannot be read as a checkpoint'),
        (array, 'cannot be read as a checkpoint'),
        (archive, 'cannot be read as a checkpoint'),
    ],
)
def test_a_file_that_calls_is_refused_in_every_format_that_torch_reads(
    tmp_path, evil, marker, write, message
):
    path = tmp_path / 'evil.pth'
    write(evil, path)
    with pytest.raises(InputError, match=rf'evil\.pth: {message}'):
        read_checkpoint(str(path))
    assert not marker.exists()


@pytest.mark.parametrize(
    ('suffix', 'library', 'trust', 'message'),
    [
        ('.safetensors', None, False, r'cannot be read as safetensors \('),
        ('.onnx', 'onnxruntime', False, r'cannot be read as an ONNX model \('),
        ('.xml', 'openvino', False, r'cannot be read as an OpenVINO model \('),
        ('.pt2', None, False, 'is a program, and reading it can run whatever it holds'),
        ('.pt2', None, True, r'cannot be read as a program \('),
        ('.torchscript', None, False, 'is a program, and reading it can run whatever it holds'),
        ('.torchscript', None, True, r'cannot be read as a program \('),
        (
            '.pt',
            None,
            False,
            r'(refused, it holds posix\.mkdir, and|cannot be read as a checkpoint \(Unpick)',
        ),
    ],
)
def test_a_pickle_under_another_name_is_refused(tmp_path, evil, marker, suffix, library, trust, message):
    if library:
        pytest.importorskip(library)
    path = tmp_path / f'evil{suffix}'
    torch.save(evil, path)
    path.with_suffix('.bin').touch()
    for content in (path.read_bytes(), pickle.dumps(evil['extra'])):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf'evil\{suffix}: {message}'):
            Segmenter(path, trust=trust)
        assert not marker.exists()


def save_pickled(content, path, protocol):
    """An archive as torch writes it, of anything, in a protocol of pickle's."""
    parts = {'data.pkl': pickle.dumps(content, protocol), 'version': b'3', 'byteorder': b'little'}
    with zipfile.ZipFile(path, 'w') as file:
        for member, data in parts.items():
            file.writestr(f'{path.stem}/{member}', data)


@pytest.mark.parametrize(
    ('owner', 'name', 'told'),
    [
        (torch.Tensor, '__init__', "getattr(<class 'torch.Tensor'>,'__init__')"),
        (Call(__import__, 'os'), 'system', '__import__'),
        (dict, '__class__', 'dict'),
        (
            HistoryBuffer,
            '__init__',
            "getattr(<class 'mmengine.logging.history_buffer.HistoryBuffer'>,'__init__')",
        ),
    ],
    ids=['tensor', 'module', 'dict', 'history'],
)
def test_attributes_of_other_things_than_the_log_history_are_refused(tmp_path, owner, name, told):
    path = tmp_path / 'evil.pth'
    save_pickled(dict(a=Call(getattr, owner, name)), path, protocol=2)
    with pytest.raises(
        InputError, match=rf'evil\.pth: refused, it holds {re.escape(told)}, and loading that'
    ):
        read_checkpoint(str(path))
    # Of a protocol that torch does not read as plain data, nothing is.
    save_pickled(dict(a=Call(getattr, owner, name)), path, protocol=4)
    with pytest.raises(
        InputError, match=r'evil\.pth: cannot be read as a checkpoint \(UnpicklingError: Unsupp'
    ):
        read_checkpoint(str(path))


def test_the_log_historys_own_methods_are_read(tmp_path):
    save_pickled(dict(a=Call(getattr, HistoryBuffer, 'mean')), tmp_path / 'x.pth', protocol=2)
    assert read_checkpoint(str(tmp_path / 'x.pth'))['a'] is HistoryBuffer.mean


def test_a_pickle_of_another_protocol_is_read_on_trust_alone(tmp_path, caplog):
    path = tmp_path / 'x.pth'
    torch.save(dict(state_dict=dict(a=torch.ones(2))), path, pickle_protocol=4)
    said = (
        f'{path}: cannot be read as a checkpoint (UnpicklingError: Unsupported operand 149); take another '
        'copy, or save it anew with torch.save'
    )
    with pytest.raises(InputError, match=f'^{re.escape(said)}$'):
        read_checkpoint(str(path))
    assert read_checkpoint(str(path), trust=True)['state_dict']['a'].tolist() == [1, 1]
    assert f'{path}: holds more than plain data and is trusted' in caplog.text
    path.write_bytes(b'never')
    with pytest.raises(
        InputError, match=r'x\.pth: cannot be read as a checkpoint here, though trusted \(Unpickl'
    ):
        read_checkpoint(str(path), trust=True)


def test_a_link_to_a_checkpoint_is_followed_and_judged_like_a_file(tmp_path, evil, marker):
    torch.save(evil, tmp_path / 'evil.bin')
    (tmp_path / 'iter_1.pth').symlink_to(tmp_path / 'evil.bin')
    with pytest.raises(InputError, match=r'iter_1\.pth: refused, it holds posix\.mkdir'):
        read_checkpoint(str(tmp_path / 'iter_1.pth'))
    assert not marker.exists()


@pytest.mark.parametrize('note', [b'../../evil.pth', b'/etc/passwd', b'\xff\xfe\x00', b'', b'..'])
def test_a_note_of_the_last_checkpoint_leads_nowhere_outside_the_work_dir(tmp_path, evil, marker, note):
    work_dir = tmp_path / 'a/b'
    work_dir.mkdir(parents=True)
    torch.save(evil, tmp_path / 'evil.pth')
    (work_dir / 'last_checkpoint').write_bytes(note)
    config = Config(dict(work_dir=str(work_dir), load_from=None, resume=False))
    with pytest.raises(InputError, match=r'holds no sound checkpoint; start without --resume$'):
        use_resume(config, 'auto')
    assert not marker.exists()


@pytest.mark.parametrize(
    'part', [dict(meta=[1]), dict(meta=dict(epoch='0', iter=1)), dict(message_hub=[]), dict(optimizer=3)]
)
def test_a_run_of_wrong_types_is_nothing_to_resume_from(tmp_path, part):
    whole = dict(optimizer={}, param_schedulers=[], message_hub={}, meta=dict(epoch=0, iter=1))
    torch.save(whole | part, tmp_path / 'iter_1.pth')
    config = Config(dict(work_dir=str(tmp_path), load_from=None, resume=False))
    with pytest.raises(InputError, match=r'iter_1\.pth: holds weights alone, no .* to go on from'):
        use_resume(config, str(tmp_path / 'iter_1.pth'))


def test_a_pickle_that_asks_for_more_memory_than_there_is_is_refused(tmp_path):
    torch.save(dict(extra=Call(bytearray, 1 << 60)), tmp_path / 'huge.pth')
    with pytest.raises(InputError, match=r'huge\.pth: cannot be read as a checkpoint \((Memory|Overflow)Err'):
        read_checkpoint(str(tmp_path / 'huge.pth'))


def test_a_weight_that_repeats_few_numbers_without_end_is_refused(tmp_path):
    torch.save(dict(a=torch.zeros(1).expand(1 << 40)), tmp_path / 'huge.pth')
    with pytest.raises(InputError, match=r'huge\.pth: its a claims 1099511627776 numbers and holds 1'):
        weights_of(read_checkpoint(str(tmp_path / 'huge.pth')), str(tmp_path / 'huge.pth'))


@pytest.mark.parametrize(
    ('weight', 'sort'),
    [
        (torch.zeros(3).to_sparse(), 'sparse_coo'),
        (torch.zeros(3, device='meta'), 'meta'),
    ],
    ids=['sparse', 'meta'],
)
def test_a_weight_without_a_number_in_each_place_is_refused(tmp_path, weight, sort):
    path = str(tmp_path / 'odd.pth')
    torch.save(dict(a=torch.zeros(3), b=weight), path)
    with pytest.raises(InputError, match=rf'odd\.pth: its b is a {sort} tensor; only plain ones are loaded'):
        weights_of(read_checkpoint(path), path)


# --- what mmengine and mmseg make of them, once a runner of ours or `load_safely` was there -----------------


def test_init_model_refuses_a_file_that_calls(tmp_path, evil, marker):
    torch.save(evil, tmp_path / 'evil.pth')
    load_safely()
    config = load_config('configs/unet_lyft.py', dict(base_channels=2))
    with pytest.raises(InputError, match=r'evil\.pth: refused, it holds posix\.mkdir'):
        init_model(config, str(tmp_path / 'evil.pth'), device='cpu')
    assert not marker.exists()


def test_the_inferencer_finds_no_config_text_to_run(tmp_path, marker):
    from mmseg.apis import MMSegInferencer

    code = f'import os\nos.mkdir({str(marker)!r})\n'
    hub = dict(runtime_info=dict(cfg=code))
    torch.save(dict(state_dict={}, message_hub=hub, meta=dict(config=code)), tmp_path / 'evil.pth')
    load_safely()
    with pytest.raises((KeyError, ValueError, TypeError), match='cfg|config'):
        MMSegInferencer(None, weights=str(tmp_path / 'evil.pth'), device='cpu')
    assert not marker.exists()


def test_trust_is_for_the_one_file_that_was_named(tmp_path, marker):
    for name in ('mine', 'other'):
        extra = Call(os.makedirs, f'{marker}-{name}')
        torch.save(dict(state_dict=dict(a=torch.ones(2)), extra=extra), tmp_path / f'{name}.pth')
    load_safely(trusted=str(tmp_path / 'mine.pth'))
    content = CheckpointLoader.load_checkpoint(str(tmp_path / 'mine.pth'), map_location='cpu')
    assert content['state_dict']['a'].tolist() == [1, 1]
    with pytest.raises(InputError, match=r'other\.pth: refused, it holds os\.makedirs'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'other.pth'), map_location='cpu')
    # What is loaded by others than us stays forced to be plain.
    with pytest.raises(pickle.UnpicklingError, match='Weights only load failed'):
        torch.load(tmp_path / 'other.pth', weights_only=False)
    assert sorted(path.name for path in tmp_path.glob('ran*')) == ['ran-mine']


def test_within_a_command_torch_loads_plain_data_whatever_the_environment_says(
    tmp_path, evil, marker, monkeypatch
):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    torch.save(evil, tmp_path / 'evil.pth')
    with plain_loading():
        with pytest.raises(pickle.UnpicklingError, match='Weights only load failed'):
            torch.load(tmp_path / 'evil.pth', weights_only=False)
        with pytest.raises(InputError, match='refused, it holds posix.mkdir'):
            read_checkpoint(str(tmp_path / 'evil.pth'))
    assert os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] == '1'
    assert not marker.exists()


def test_in_commands_torch_loads_plain_data_alone_and_behind_them_as_before(tmp_path, monkeypatch):
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD')
    torch.save(dict(extra=Call(os.makedirs, str(tmp_path / 'ran'), 0o777, True)), tmp_path / 'evil.pth')

    def load(argv):
        torch.load(tmp_path / 'evil.pth', weights_only=False)

    with pytest.raises(pickle.UnpicklingError, match='Weights only load failed'):
        guarded(load)([])
    assert not (tmp_path / 'ran').exists()
    load([])
    assert (tmp_path / 'ran').exists()


# --- damage -------------------------------------------------------------------------------------------------


@pytest.fixture
def weights_file(tmp_path):
    """A checkpoint of one large weight, all zeros."""
    path = tmp_path / 'iter_1.pth'
    torch.save(dict(a=torch.zeros(100_000)), path)
    return path


def test_a_flipped_bit_of_a_weight_is_found_which_torch_itself_loads(weights_file):
    flip_bit(weights_file, weights_file.stat().st_size // 2)
    assert torch.load(weights_file, weights_only=True)['a'].count_nonzero() == 1
    with pytest.raises(
        InputError,
        match=r'iter_1\.pth: cannot be read, it is damaged \(Bad CRC-32 for file .*dat.*; take another copy$',
    ):
        read_checkpoint(str(weights_file))


def test_a_file_that_is_not_the_one_its_checksum_is_of_is_refused_by_whoever_reads_it(weights_file):
    content = weights_file.read_bytes()
    write_with_checksum(weights_file, content)
    assert read_checkpoint(str(weights_file))['a'].shape == (100_000,)
    torch.save(dict(a=torch.ones(100_000)), weights_file)
    with pytest.raises(InputError, match=r'checksum differs; .* remove iter_1\.pth\.sha256'):
        read_checkpoint(str(weights_file))


def test_a_checkpoint_without_checksums_in_it_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(dict(a=torch.ones(1000)), tmp_path / 'plain.pth')
    finally:
        torch.serialization.set_crc32_options(before)
    assert read_checkpoint(str(tmp_path / 'plain.pth'))['a'].sum() == 1000


def test_a_checkpoint_that_would_expand_is_refused_unread(weights_file):
    with zipfile.ZipFile(weights_file) as file:
        members = {member.filename: file.read(member) for member in file.infolist()}
    with zipfile.ZipFile(weights_file, 'w', zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    assert torch.load(weights_file, weights_only=True)['a'].shape == (100_000,)
    with pytest.raises(InputError, match=r'iter_1\.pth: refused, it would expand from \d{4} to 40\d{4} byte'):
        read_checkpoint(str(weights_file))


@pytest.mark.parametrize(('suffix', 'unreadable'), [('.onnx', '.onnx'), ('.xml', '.bin')])
def test_an_exported_file_that_cannot_be_read_is_named(tmp_path, suffix, unreadable):
    path = tmp_path / f'x{suffix}'
    for part in (path, path.with_suffix('.bin')):
        part.write_bytes(b'content')
    seal(path)
    check_seal(path)
    path.with_suffix(unreadable).unlink()
    path.with_suffix(unreadable).mkdir()
    with pytest.raises(
        InputError, match=rf'x\{unreadable}: cannot be read \(Is a directory\); check its perm'
    ):
        check_seal(path)


def flipped(path, position):
    """A copy of a file, and of what is beside it, with a bit changed."""
    folder = path.parent / f'flipped-{position}'
    folder.mkdir(exist_ok=True)
    for part in path.parent.glob(f'{path.stem}.*'):
        shutil.copy(part, folder)
    flip_bit(folder / path.name, position)
    return folder / path.name


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A checkpoint of a small U-Net that describes itself."""
    config = load_config('configs/unet_lyft.py', dict(base_channels=2, image_scale_wh=(64, 48)))
    path = tmp_path_factory.mktemp('model') / 'unet.pth'
    return save_random_weights(config, path)


def test_a_flipped_bit_of_a_safetensors_file_of_ours_is_found_wherever_it_is(model, tmp_path):
    path = write_safetensors(model, tmp_path / 'unet.safetensors')
    expected, size = read_checkpoint(str(path)), path.stat().st_size
    assert expected['state_dict'].keys() == read_checkpoint(model)['state_dict'].keys()
    middle, name = path.read_bytes().index(b'carla13') + 2, path.read_bytes().index(b'"backbone') + 3
    for position in (middle, name, size // 2, size - 1):
        with pytest.raises(InputError, match='is not what was written, its checksum differs; take another'):
            read_checkpoint(str(flipped(path, position)))


@pytest.fixture(scope='module')
def exported(model, tmp_path_factory):
    """The model as files of three kinds, by suffix."""
    pytest.importorskip('onnxscript')
    folder = tmp_path_factory.mktemp('exported')
    for kind in ('onnx', 'torchscript'):
        wanted = Export(kind, folder / f'unet{EXPORT_SUFFIXES[kind]}')
        export(Segmenter(model), wanted, Proof(), lambda line: None)
    if find_spec('openvino'):
        seal(convert_to_openvino(folder / 'unet.onnx', folder / 'unet.xml'))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ('suffix', 'weights'), [('.onnx', '.onnx'), ('.xml', '.bin'), ('.xml', '.xml'), ('.torchscript',) * 2]
)
def test_a_flipped_bit_of_an_exported_file_is_found(model, exported, suffix, weights):
    if suffix == '.xml':
        pytest.importorskip('openvino')
    trusted = dict(trust=suffix == '.torchscript')
    assert Segmenter(exported / f'unet{suffix}', **trusted).classes == Segmenter(model).classes
    path = exported / f'unet{weights}'
    for position in (path.stat().st_size // 2, path.stat().st_size // 3):
        damaged = flipped(path, position).with_suffix(suffix)
        with pytest.raises(InputError, match='is not what was exported, its checksum differs|it is damaged'):
            Segmenter(damaged, **trusted)
