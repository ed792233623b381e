"""How commands speak: progress in lines, what was meant, defects in one line, completion by a shell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mmseg_unet_lyft
from mmseg_unet_lyft.__main__ import find_tools, main
from mmseg_unet_lyft.cli import console
from mmseg_unet_lyft.cli.console import ProgressLines, progress

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
        (40, 0.5, 40, {0: '4 of 40, 10 %, 2 a second, 0:18 left', 9: '40 in 0:20, 2 a second'}),
        (40, 16, 40, {0: '2 of 40, 5 %, 0.0625 a second, 10:08 left', 19: '40 in 10:40, 0.0625 a second'}),
        (100, 0.005, 100, {0: '100 in 0:00, 200 a second'}),
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


def test_progress_in_a_pipe_is_lines_without_escapes(capsys):
    assert list(progress('abc', 3, 'drawing')) == ['a', 'b', 'c']
    assert re.fullmatch(r'drawing: 3 in 0:00, [\d.e+]+ a second\n', capsys.readouterr().err)


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
def test_a_defect_ends_the_process_with_1_and_one_line_and_its_traceback_is_kept(way, broken_opencv):
    done = python(*way, **broken_opencv)
    assert (done.returncode, done.stdout) == (1, '')
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
    assert done.returncode == 1
    assert done.stderr.startswith('Traceback (most recent call last):')
    assert done.stderr.splitlines()[-1].startswith('defect: LookupError: first line (mmseg_unet_lyft/')
    assert list(Path(broken_opencv['TMPDIR']).iterdir()) == []


def test_a_users_mistake_has_its_traceback_with_debug_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('LYFT_DEBUG', '')
    line = f'error: {tmp_path}/none.json: cannot be read'
    assert main(['grade', f'{tmp_path}/none.json', str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(line)
    assert main(['grade', f'{tmp_path}/none.json', str(tmp_path), '--debug']) == 2
    told = capsys.readouterr().err
    assert told.startswith('Traceback')
    assert f'\n{line}' in told


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
    assert process.stderr.read() == b'error: standard output: the reader has ended\n'
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
        ('benchmark latency --rouns=3', r'unrecognized arguments: --rouns=3; did you mean --rounds\?'),
        ('train x.py --quux 1', r'unrecognized arguments: --quux 1$'),
        ('export x.pth --format onx', r"invalid choice: 'onx' .*; did you mean onnx\?"),
        ('benchmark latancy', r"invalid choice: 'latancy' .*; did you mean latency\?"),
        ('launch 2 tran x.py', r"invalid choice: 'tran' .*; did you mean train\?"),
    ],
)
def test_a_mistyped_option_or_choice_names_the_nearest(line, message, capsys):
    with pytest.raises(SystemExit, match='^2$'):
        main(line.split())
    assert re.search(message, capsys.readouterr().err.strip())


LINES = {
    'mmseg-unet-lyft tra': {'train'},
    'mmseg-unet-lyft export x.pth --format ': {'onnx', 'openvino', 'torch', 'safetensors'},
    'mmseg-unet-lyft draw-scenes --fra': {'--frames'},
    'mmseg-unet-lyft benchmark la': {'latency'},
    'mmseg-unet-lyft benchmark latency --sta': {'--starts'},
    'mmseg-unet-lyft predict a.onnx frames --unc': {'--uncertainty'},
}


@pytest.fixture(scope='module')
def on_path(tmp_path_factory):
    """Runs a script in a shell that finds ``mmseg-unet-lyft``, as pip would have made it."""
    argcomplete = pytest.importorskip('argcomplete')
    folder = tmp_path_factory.mktemp('bin')
    command = folder / 'mmseg-unet-lyft'
    code = 'import sys\nfrom mmseg_unet_lyft.__main__ import main\nsys.exit(main())\n'
    command.write_text(f'#!{sys.executable}\n{code}')
    command.chmod(0o755)
    paths = os.pathsep.join([str(ROOT), str(Path(argcomplete.__file__).parents[1])])
    env = dict(os.environ, PATH=f'{folder}{os.pathsep}{os.environ["PATH"]}', PYTHONPATH=paths)

    def run(shell: str, script: str) -> str:
        if shutil.which(shell) is None:
            pytest.skip(f'no {shell} here')
        done = subprocess.run([shell, '-c', script], cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_bash_completes_tools_options_and_choices(on_path):
    ask = """
eval "$(mmseg-unet-lyft completion bash)"
ask() {
    COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9 COMPREPLY=()
    _python_argcomplete mmseg-unet-lyft
    echo ${COMPREPLY[*]}
}
"""
    answers = on_path('bash', ask + '\n'.join(f'ask "{line}"' for line in LINES))
    assert dict(zip(LINES, map(set, map(str.split, answers.splitlines())), strict=True)) == LINES


def test_fish_completes_tools_options_and_choices(on_path):
    ask = 'mmseg-unet-lyft completion fish | source\n'
    answers = on_path('fish', ask + '\n'.join(f'complete -C "{line}"; echo' for line in LINES))
    found = [
        {line.partition('\t')[0] for line in part.splitlines()} for part in answers.strip().split('\n\n')
    ]
    assert dict(zip(LINES, found, strict=True)) == LINES


def test_zsh_takes_the_code_for_completion(on_path):
    ask = 'compdef() { : }; eval "$(mmseg-unet-lyft completion zsh)" && whence -w _python_argcomplete'
    assert on_path('zsh', ask).strip() == '_python_argcomplete: function'


@pytest.mark.parametrize(('module', 'words'), [('__main__', ['draw_scenes']), ('cli.draw_scenes', [])])
def test_a_command_to_be_completed_does_not_run_without_argcomplete(tmp_path, module, words):
    code = f"""
import sys
sys.modules['argcomplete'] = None
sys.argv = ['command', *{words}, {str(tmp_path / 'drawn')!r}, '--frames', '1', '--drives', 'F1']
from mmseg_unet_lyft.{module} import main
main()
"""
    done = python('-c', code, _ARGCOMPLETE='1', COMP_LINE='mmseg_unet_lyft draw_scenes x', COMP_POINT='29')
    assert (done.returncode, done.stdout, done.stderr) == (1, '', '')
    assert not (tmp_path / 'drawn').exists()


def test_completion_says_what_it_needs(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'argcomplete', None)
    assert main(['completion', 'bash']) == 2
    assert f"install with: pip install -e '{ROOT}[completion]'\n" in capsys.readouterr().err
