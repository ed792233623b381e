"""What is in the package, and that it works from any folder, in processes that know no clone."""

import configparser
import email
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import mmseg_unet_lyft
from mmseg_unet_lyft.__main__ import find_tools, main

HEAVY = {'torch', 'mmengine', 'mmcv', 'mmseg', 'cv2', 'matplotlib', 'numpy'}
HELP_SECONDS = 0.5
INFO = f'mmseg_unet_lyft-{mmseg_unet_lyft.__version__}.dist-info'
# Arguments that a tool's parser accepts; the files need not exist.
STACK_TOOLS = ['train x.py', 'test x.py y.pth', 'predict x.py y.pth z.png', 'browse_data x.py']


@pytest.fixture
def python(installed_env: Path, tmp_path: Path):
    """Runs the interpreter in an empty folder, with the installed wheel and without the clone.

    ``-S`` among the arguments hides everything else that is installed, an mm stack included.
    """

    def run(*arguments: str | Path, path: Path = installed_env) -> subprocess.CompletedProcess:
        environ = {key: value for key, value in os.environ.items() if key != 'LYFT_DATA_ROOT'}
        environ['PYTHONPATH'] = str(path)
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)

    return run


def imported(importtime: str) -> set[str]:
    """Top-level modules in what ``-X importtime`` wrote."""
    return {name.partition('.')[0] for name in re.findall(r'\| +([\w.]+)$', importtime, re.MULTILINE)}


@pytest.fixture(scope='module')
def wheel(built_wheel):
    """The content of each of its files by name."""
    with zipfile.ZipFile(built_wheel) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.fixture(scope='module')
def metadata(wheel):
    return email.message_from_bytes(wheel[f'{INFO}/METADATA'])


def test_wheel_carries_every_config_tool_and_template_as_it_stands_in_the_clone(wheel, source_copy):
    templates = 'mmseg_unet_lyft/report/templates'
    in_clone = {
        f'mmseg_unet_lyft/.mim/{path.relative_to(source_copy)}': path.read_bytes()
        for folder in ('configs', 'tools')
        for path in (source_copy / folder).rglob('*')
        # Scripts in tools/dev run from a clone only.
        if path.is_file() and path.parent.name != 'dev'
    }
    in_clone['mmseg_unet_lyft/.mim/model-index.yml'] = (source_copy / 'model-index.yml').read_bytes()
    in_clone |= {
        f'{templates}/{path.name}': path.read_bytes() for path in (source_copy / templates).iterdir()
    }
    assert {name: wheel[name] for name in wheel if '/.mim/' in name or name.startswith(templates)} == in_clone
    assert {'mmseg_unet_lyft/.mim/configs/_base_/default_runtime.py', f'{templates}/run_page.html'} <= set(
        wheel
    )


def test_wheel_installs_the_package_alone_and_the_command_under_both_its_names(wheel):
    assert {name.partition('/')[0] for name in wheel} == {'mmseg_unet_lyft', INFO}
    parser = configparser.ConfigParser()
    parser.read_string(wheel[f'{INFO}/entry_points.txt'].decode())
    target = 'mmseg_unet_lyft.__main__:main'
    assert dict(parser['console_scripts']) == {'mmseg-unet-lyft': target, 'mmseg_unet_lyft': target}


def test_metadata_has_the_version_and_leaves_the_owners_stack_alone(metadata):
    assert metadata['Version'] == mmseg_unet_lyft.__version__
    needs = [Requirement(text) for text in metadata.get_all('Requires-Dist')]
    always = {need.name for need in needs if need.marker is None}
    assert always == {'numpy', 'pillow', 'rich'}


@pytest.mark.parametrize('locks', [['onedl'], ['openmmlab'], ['onedl', 'dev'], ['openmmlab', 'dev']])
def test_locked_versions_satisfy_what_setup_asks_for(metadata, source_copy, locks):
    lines = [
        line for lock in locks for line in (source_copy / f'requirements/{lock}.txt').read_text().splitlines()
    ]
    pins = [Requirement(line) for line in lines if not line.startswith('#')]
    locked = {pin.name: str(pin.specifier)[2:] for pin in pins if pin.marker is None or pin.marker.evaluate()}
    asked = [Requirement(text) for text in metadata.get_all('Requires-Dist')]
    asked = [need for need in asked if need.marker is None or need.marker.evaluate({'extra': locks[-1]})]
    assert len(asked) > 3
    assert [str(need) for need in asked if not need.specifier.contains(locked.get(need.name, '0'))] == []


def test_editable_install_shows_the_clones_own_configs_and_tools(source_copy, tmp_path, python):
    options = ['--no-deps', '--no-index', '--no-build-isolation', '--ignore-installed', '--quiet']
    done = python('-m', 'pip', 'install', *options, '--prefix', tmp_path / 'prefix', '-e', source_copy)
    assert done.returncode == 0, done.stderr
    site_packages = next((tmp_path / 'prefix').rglob('*.dist-info')).parent
    code = f"""
import site
site.addsitedir({str(site_packages)!r})
import mmseg_unet_lyft
print(*mmseg_unet_lyft.__path__)
"""
    # Neither the wheel nor what this environment itself has installed as editable may answer.
    package = Path(python('-S', '-c', code, path=tmp_path).stdout.strip())
    assert package == source_copy / 'mmseg_unet_lyft'
    for file in ('configs/unet_lyft.py', 'tools/train.py'):
        assert (package / '.mim' / file).samefile(source_copy / file)


def test_bare_import_loads_only_the_standard_library(python):
    done = python('-X', 'importtime', '-c', 'import mmseg_unet_lyft')
    assert done.returncode == 0, done.stderr
    assert 'mmseg_unet_lyft' in imported(done.stderr)
    assert not imported(done.stderr) & HEAVY


@pytest.mark.parametrize('tool', ['', *find_tools()])
def test_help_is_quick_and_loads_neither_torch_nor_an_mm_stack(python, tool):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = python('-X', 'importtime', '-m', 'mmseg_unet_lyft', *filter(None, [tool]), '--help')
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Of the processor's time, which other work on the machine does not stretch.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < HELP_SECONDS
    assert done.stdout.startswith(f'usage: mmseg_unet_lyft {tool}')
    assert not imported(done.stderr) & HEAVY


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['trian'], 'trian: no such tool; did you mean train? The tools are: '),
        (['xyzzy'], 'xyzzy: no such tool. The tools are: '),
        (['--verison'], '--verison: no such tool; did you mean --version? The tools are: '),
        ([], '  predict '),
    ],
)
def test_an_unknown_tool_names_the_nearest_or_all_and_exits_with_2(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('call', STACK_TOOLS)
def test_a_missing_stack_is_one_message_with_the_install_command_of_the_copy_that_ran(
    python, installed_env, source_copy, tmp_path, call
):
    tool, *arguments = shlex.split(call)
    done = python('-S', '-m', 'mmseg_unet_lyft', tool, *arguments)
    message = 'error: this command needs torch, mmengine, mmcv, mmseg; install with: pip install '
    assert (done.returncode, done.stdout, done.stderr) == (2, '', f"{message}'mmseg_unet_lyft[onedl]'\n")
    # A clone's tools need no installation.
    done = python('-S', source_copy / f'tools/{tool}.py', *arguments, path=tmp_path)
    assert (done.returncode, done.stderr) == (2, f"{message}-e '{source_copy}[onedl]'\n")
    done = python('-S', installed_env / f'mmseg_unet_lyft/.mim/tools/{tool}.py', *arguments)
    assert (done.returncode, done.stderr) == (2, f"{message}'mmseg_unet_lyft[onedl]'\n")


@pytest.mark.stack
def test_custom_imports_alone_registers_the_parts(python, tmp_path, installed_env):
    (tmp_path / 'theirs.py').write_text("custom_imports = dict(imports=['mmseg_unet_lyft'])\n")
    code = """
from mmengine.config import Config
Config.fromfile('theirs.py')
from mmseg.apis import init_model
from mmseg.registry import DATASETS, MODELS
import sys
for registry, name in ((MODELS, 'LyftUNet'), (MODELS, 'LyftUNetHead'), (DATASETS, 'LyftCarlaDataset')):
    print('found', sys.modules[registry.get(name).__module__].__file__)
print('found', init_model('packaged.py', device='cpu').cfg.filename)
"""
    config = installed_env / 'mmseg_unet_lyft/.mim/configs/unet_lyft.py'
    code = code.replace('packaged.py', str(config))
    done = python('-c', code)
    found = re.findall(r'^found (.*)$', done.stdout, re.MULTILINE)
    assert len(found) == 4, done.stderr
    assert all(Path(file).is_relative_to(installed_env) for file in found)


@pytest.mark.stack
def test_config_is_found_by_name_from_any_folder(python):
    done = python('-m', 'mmseg_unet_lyft', 'train', 'unet_lyft.py')
    assert done.returncode == 2, done.stderr
    assert 'data/lyft: no such folder' in done.stderr
    assert 'Traceback' not in done.stderr


def make(clone: Path, *arguments: str) -> subprocess.CompletedProcess:
    """``make`` in a copy of the clone, knowing nothing of a make that runs these tests."""
    environ = {
        key: value for key, value in os.environ.items() if key not in ('MAKEFLAGS', 'MFLAGS', 'MAKELEVEL')
    }
    return subprocess.run(['make', *arguments], cwd=clone, env=environ, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which('make') is None, reason='no make here')
def test_make_refuses_a_python_that_is_too_old(source_copy, tmp_path):
    old = tmp_path / 'python3.9'
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1\n')
    old.chmod(0o755)
    done = make(source_copy, 'install', f'PYTHON={old}', f'VENV={tmp_path / "venv"}')
    assert done.returncode == 2
    assert f'{old} is Python 3.9.1; this needs Python 3.10 or newer' in done.stdout
    assert not (tmp_path / 'venv').exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('make') is None, reason='no make here')
def test_make_install_keeps_a_torch_that_is_there_and_runs_once(source_copy, tmp_path):
    clone = Path(shutil.copytree(source_copy, tmp_path / 'clone', symlinks=True))
    subprocess.run([sys.executable, '-m', 'venv', str(clone / '.venv')], check=True)
    # What pip sees of a torch of another version and build.
    torch = next((clone / '.venv').glob('[Ll]ib*/**/site-packages')) / 'torch-2.10.0+own.dist-info'
    torch.mkdir()
    (torch / 'METADATA').write_text('Metadata-Version: 2.1\nName: torch\nVersion: 2.10.0+own\n')
    (torch / 'RECORD').write_text('')
    (torch.parent / 'torch.py').write_text('')
    first, second = make(clone, 'install'), make(clone, 'install')
    assert re.search(r'^installed in \d+ s$', first.stdout, re.MULTILINE), first.stdout + first.stderr
    assert 'keeping the torch in .venv' in first.stdout
    assert [path.name for path in torch.parent.glob('torch-*')] == [torch.name]
    assert second.stdout == 'environment: .venv/bin/python\n'
    command = [clone / '.venv/bin/mmseg_unet_lyft', '--version']
    version = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    assert version == f'mmseg_unet_lyft {mmseg_unet_lyft.__version__}\n'
