"""How commands speak: progress in lines, what was meant, defects in one line."""

import errno
import io
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.registry import HOOKS, MODELS, OPTIMIZERS

import mmseg_unet_lyft.register
from mmseg_unet_lyft.__main__ import find_tools, main
from mmseg_unet_lyft.cli import console
from mmseg_unet_lyft.cli.console import ProgressLines, guarded, phase, progress, say
from mmseg_unet_lyft.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def python(*arguments: str, **environ: str) -> subprocess.CompletedProcess:
    """A fresh process in the clone."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT), **environ},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ('count', 'seconds', 'total', 'expected'),
    [
        (40, 0.5, 40, {0: '4 of 40, 10 %, 2 a second, 0:00:18 left', 9: '40 in 0:00:20, 2 a second'}),
        (
            40,
            16,
            40,
            {0: '2 of 40, 5 %, 0.0625 a second, 0:10:08 left', 19: '40 in 0:10:40, 0.0625 a second'},
        ),
        (100, 0.005, 100, {0: '100 in 0:00:00, 200 a second'}),
        (4, 1000, None, {3: '4, 0.001 a second', 4: '4 in 1:06:40, 0.001 a second'}),
    ],
    ids=['tenths', 'slow', 'quick', 'no-total'],
)
def test_progress_is_a_line_for_each_tenth_or_half_minute(
    count, seconds, total, expected, monkeypatch, capsys
):
    now = [100.0]
    monkeypatch.setattr(console.time, 'monotonic', lambda: now[0])
    lines = ProgressLines(total, 'drawing')
    for _ in range(count):
        now[0] += seconds
        lines.count()
    lines.close()
    written = capsys.readouterr().err.splitlines()
    assert len(written) == max(expected) + 1
    assert all(written[index] == f'drawing: {line}' for index, line in expected.items())


@pytest.fixture
def broken_opencv(tmp_path):
    """A folder for PYTHONPATH with an OpenCV that fails unexpectedly."""
    (tmp_path / 'modules').mkdir()
    (tmp_path / 'modules/cv2.py').write_text('raise LookupError("first line\\nsecond line")\n')
    (tmp_path / 'temporary').mkdir()
    paths = os.pathsep.join([str(tmp_path / 'modules'), str(ROOT)])
    return dict(PYTHONPATH=paths, TMPDIR=str(tmp_path / 'temporary'), LYFT_DEBUG='')


GRADE = ('grade', 'answer.json', 'truth.json')


@pytest.mark.parametrize('way', [('-m', 'mmseg_unet_lyft', *GRADE), ('tools/grade.py', *GRADE[1:])])
def test_a_defect_ends_the_process_with_70_and_one_line_and_its_traceback_is_kept(way, broken_opencv):
    done = python(*way, **broken_opencv)
    assert (done.returncode, done.stdout) == (70, '')
    told = re.fullmatch(
        r'defect: LookupError: first line \(mmseg_unet_lyft/\S+\.py:\d+, \w+\)\. '
        r'This is not your mistake; please report it; its traceback: (\S+), or with --debug\n',
        done.stderr,
    )
    assert told, done.stderr
    kept = Path(told[1])
    assert kept.parent == Path(broken_opencv['TMPDIR'])
    assert kept.read_text().endswith('LookupError: first line\nsecond line\n')


@pytest.mark.parametrize(
    ('before', 'after', 'variable'), [((), ('--debug',), ''), (('--debug',), (), ''), ((), (), '1')]
)
def test_debug_shows_the_traceback_and_keeps_no_file(broken_opencv, before, after, variable):
    done = python(
        '-m', 'mmseg_unet_lyft', *before, *GRADE, *after, **dict(broken_opencv, LYFT_DEBUG=variable)
    )
    assert done.returncode == 70
    assert done.stderr.startswith('Traceback (most recent call last):')
    assert done.stderr.splitlines()[-1].startswith('defect: LookupError: first line (mmseg_unet_lyft/')
    assert list(Path(broken_opencv['TMPDIR']).iterdir()) == []


def test_a_users_mistake_has_its_traceback_with_debug_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('LYFT_DEBUG', '')
    for option, start in ((), 'error: '), (('--debug',), 'Traceback'):
        assert main(['grade', f'{tmp_path}/none.json', str(tmp_path), *option]) == 2
        said = capsys.readouterr().err
        assert said.startswith(start)
        assert said.splitlines()[-1].startswith(f'error: {tmp_path}/none.json: ')


def fail(error):
    raise error


def optimizer_of_another_run():
    weights = [torch.nn.Parameter(torch.zeros(1))]
    adam, sgd = torch.optim.Adam(weights), torch.optim.SGD(weights, momentum=0.9)
    sgd.load_state_dict(adam.state_dict())
    weights[0].grad = torch.zeros(1)
    sgd.step()


def meeting():
    names = dict(RANK='1', WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT='1')
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=1))


def lone_rank():
    """What the rank sees that is left."""
    way = dict(init_method=f'file://{Path().resolve()}/meet', world_size=2)
    start = f"import torch.distributed as d; d.init_process_group('gloo', rank=1, **{way})"
    with subprocess.Popen([sys.executable, '-c', start]):
        torch.distributed.init_process_group('gloo', rank=0, timeout=timedelta(seconds=60), **way)
    try:
        torch.distributed.all_reduce(torch.zeros(1))
    finally:
        torch.distributed.destroy_process_group()


SYSTEM = {name: OSError(code, os.strerror(code), 'a') for code, name in errno.errorcode.items()}
FAULTS = {
    'a file for a folder': (lambda: Path('file').mkdir(), 'file: File exists', 'name another path'),
    'below a file': (lambda: Path('file/a').mkdir(), 'file/a: Not a directory', 'name another path'),
    'a folder for a file': (lambda: Path().read_bytes(), r'\.: Is a directory', 'name another path'),
    'nowhere': (lambda: Path('no.pth').read_bytes(), r'no\.pth: No such file', ''),
    'read-only': (lambda: fail(SYSTEM['EROFS']), 'a: Read-only file system', 'may read and write'),
    'forbidden': (lambda: fail(SYSTEM['EACCES']), 'a: Permission denied', 'may read and write'),
    'full disk': (lambda: fail(SYSTEM['ENOSPC']), 'a: No space left', 'make room'),
    'too many files': (lambda: fail(SYSTEM['EMFILE']), 'a: Too many open files', 'ulimit -n'),
    'shared memory': (
        lambda: fail(RuntimeError('unable to allocate shared memory(shm) for file </torch_1>: No space')),
        'RuntimeError: unable',
        '--shm-size',
    ),
    'memory of NumPy': (lambda: np.empty(1 << 55), '.*MemoryError: ', 'batch_size'),
    'memory of torch': (lambda: torch.empty(1 << 60), 'RuntimeError: .*allocate', 'batch_size'),
    'an extra': (lambda: fail(ModuleNotFoundError('no', name='wandb.sdk')), 'ModuleN.*', r'\[trackers\]'),
    'a package': (lambda: __import__('no_such.module'), 'ModuleN.*', 'pip install no_such'),
    'one value a channel': (
        lambda: torch.nn.BatchNorm2d(3)(torch.zeros(1, 3, 1, 1)),
        'ValueError: .* 1 value per channel',
        'crop_size',
    ),
    'a config without a model': (lambda: Config({}).model, "AttributeError: .*'model'", 'this key'),
    'an unknown class': (lambda: MODELS.build(dict(type='LyftUNot')), 'KeyError: LyftUNot .*registry', ''),
    'an unknown argument': (lambda: HOOKS.build(dict(type='TimerHook', a=3)), '.*Error: .*', ''),
    'a wrong value': (
        lambda: OPTIMIZERS.build(dict(type='SGD', params=[torch.zeros(1)], lr=-1.0)),
        r'ValueError: .*-1\.0',
        '',
    ),
    'another optimizer': (optimizer_of_another_run, "KeyError: 'momentum'", 'another optimizer'),
    'a rank that is gone': (lone_rank, 'RuntimeError: .*', 'another rank is gone'),
    'nodes apart': (meeting, 'Dist.*Error: .*', 'MASTER_ADDR'),
    'letters': (lambda: 'é'.encode('ascii'), 'UnicodeEncodeError: .*', 'PYTHONUTF8=1'),
}


@pytest.mark.stack
@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_of_input_or_machine_is_one_line_with_phase_remedy_and_traceback(
    name, tmp_path, capsys, monkeypatch
):
    act, said, remedy = FAULTS[name]
    monkeypatch.setenv('LYFT_DEBUG', '')
    monkeypatch.setattr(console.tempfile, 'tempdir', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path('file').touch()

    def command(argv):
        phase(lambda: 'step 17')
        act()

    assert guarded(command)([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    found = re.fullmatch(rf'error: step 17: {said}.*{remedy}.*; its traceback: (\S+), or with --debug', line)
    assert found, line
    assert Path(found[1]).read_text().startswith('Traceback')


def test_a_defect_is_raised_to_a_caller_from_python():
    with pytest.raises(KeyError, match='elsewhere'):
        guarded(lambda argv: dict()['elsewhere'])([])


def test_a_command_that_counts_says_how_far_it_came(capsys):
    assert list(progress('abc', 3, 'reading')) == ['a', 'b', 'c']
    # In a pipe: a line without escapes.
    assert re.fullmatch(r'reading: 3 in 0:00:00, [\d.e+]+ a second\n', capsys.readouterr().err)

    def command(argv):
        for one in progress('abc', 3, 'reading'):
            if one == 'c':
                fail(SYSTEM['ENOSPC'])

    assert guarded(command)([]) == 2
    assert 'error: reading, 2 done: a: No space' in capsys.readouterr().err


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1'])
def test_letters_that_the_output_lacks_are_spelt_out(encoding, monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, 'stdout', streams[0])
    monkeypatch.setattr(sys, 'stderr', streams[1])

    def command(argv):
        say('東')
        fail(InputError('東.png: wrong'))

    assert guarded(command)([]) == 2
    streams[1].flush()
    assert [one.buffer.getvalue() for one in streams] == [b'\\u6771\n', b'error: \\u6771.png: wrong\n']


def test_no_name_of_a_file_begins_a_line_or_moves_the_cursor(tmp_path, capsys):
    name, shown = f'{tmp_path}/a\nerror: b\x1b[2J.json', f'{tmp_path}/a\\nerror: b\\x1b[2J.json'
    assert main(['grade', name, str(tmp_path)]) == 2
    with pytest.raises(SystemExit):
        main(['grade', name, name, name])
    say(name, 'second\ttab')
    heard = capsys.readouterr()
    assert heard.out == f'{shown}\nsecond\ttab\n'
    assert heard.err.startswith(f'error: {shown}: ')
    assert heard.err.endswith(f'unrecognized arguments: {shown}\n')


def test_a_reader_that_has_gone_ends_a_command_with_one_line():
    code = """
import sys
from mmseg_unet_lyft.cli.console import guarded, say
def command(argv):
    sys.stdin.read()
    say('to nobody')
sys.exit(guarded(command)())
"""
    process = subprocess.Popen(
        [sys.executable, '-c', code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    process.stdin.close()
    assert b'error: BrokenPipeError' in process.stderr.read()
    assert process.wait() == 2


@pytest.mark.parametrize('tool', [*find_tools(), 'draw-scenes'])
def test_each_tool_says_its_version(tool, capsys):
    with pytest.raises(SystemExit, match='^0$'):
        main([tool, '--version'])
    assert capsys.readouterr().out == f'mmseg_unet_lyft {mmseg_unet_lyft.__version__}\n'


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('train x.py --data-rot y', r'unrecognized arguments: --data-rot y; did you mean --data-root\?'),
        ('benchmark latency x.onnx --rouns=3', r'unrecognized arguments: --rouns=3; did you mean --rounds\?'),
        ('train x.py --quux 1', r'unrecognized arguments: --quux 1$'),
        ('export x.pth --format onx', r"invalid choice: 'onx' .*onnx"),
        ('benchmark latancy', r"invalid choice: 'latancy' .*latency"),
        ('launch 2 tran x.py', r"invalid choice: 'tran' .*train"),
    ],
)
def test_a_mistyped_option_or_choice_names_the_nearest(line, message, capsys):
    with pytest.raises(SystemExit, match='^2$'):
        main(line.split())
    assert re.search(message, capsys.readouterr().err.strip())


def test_openmp_threads_wait_without_spinning_unless_the_user_chose():
    for chosen, expected in (({}, 'PASSIVE'), (dict(OMP_WAIT_POLICY='ACTIVE'), 'ACTIVE')):
        environ = {name: value for name, value in os.environ.items() if name != 'OMP_WAIT_POLICY'} | chosen
        # Before torch, which loads OpenMP, is imported.
        code = 'import os, sys, mmseg_unet_lyft.cli.train\n'
        code += 'print("torch" in sys.modules, os.environ["OMP_WAIT_POLICY"])'
        done = subprocess.run(
            [sys.executable, '-c', code], cwd=ROOT, env=environ, capture_output=True, text=True
        )
        assert done.stdout.split() == ['False', expected]
