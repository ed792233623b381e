"""Imports run one way and without circles, registering stays light, and nothing needs Unix to be imported."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mmseg_unet_lyft

PACKAGE = Path(mmseg_unet_lyft.__file__).parent
NAME = PACKAGE.name
# Each may import from those before it, and from the modules next to the folders: errors, compat, processes.
FOLDERS = 'datasets models synthetic evaluation engine report inference demo cli'.split()
# The rest draws no sample frames.
NEEDS_FRAMES = {'inference.export', 'inference.latency', 'demo.app', 'cli.draw_scenes'}
UNIX_MODULES = {'fcntl', 'grp', 'pwd', 'resource', 'termios'}


def modules() -> dict[str, Path]:
    """Path of each module, by its dotted name within the package."""
    paths = (path for path in PACKAGE.rglob('*.py') if '.mim' not in path.parts)
    return {'.'.join(path.relative_to(PACKAGE).with_suffix('').parts): path for path in paths}


MODULES = modules()


def imports_of(name: str) -> set[str]:
    """Modules of the package that one imports, in its functions too; not those for annotations only."""
    package = [NAME, *name.split('.')[:-1]]
    found = set()
    tree = ast.parse(MODULES[name].read_text(encoding='utf-8'))
    tree.body = [
        node for node in tree.body if 'TYPE_CHECKING' not in ast.unparse(getattr(node, 'test', node))
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: len(package) - node.level + 1] if node.level else []
        target = [*base, *(node.module.split('.') if node.module else [])]
        if target[:1] != [NAME]:
            continue
        for alias in node.names:
            candidates = ('.'.join([*target[1:], alias.name]), '.'.join(target[1:]))
            found.update(next(([one] for one in candidates if one in MODULES), []))
    return found


def folder(name: str) -> str:
    return name.partition('.')[0] if '.' in name else ''


IMPORTS = {name: imports_of(name) for name in MODULES}


def test_no_module_imports_itself_through_others():
    graph = {name: found for name, found in IMPORTS.items() if not name.endswith('__init__')}
    assert set(TopologicalSorter(graph).static_order()) == set(graph)


@pytest.mark.parametrize('name', FOLDERS)
def test_a_folder_imports_only_from_those_before_it(name):
    allowed = {'', name, *FOLDERS[: FOLDERS.index(name)]} - ({'datasets'} if name == 'models' else set())
    wrong = {
        f'{module} imports {one}'
        for module, found in IMPORTS.items()
        for one in found
        if folder(module) == name and (folder(one) not in allowed or one == 'register')
    }
    assert wrong == set()


def test_only_what_needs_a_frame_draws_one():
    users = {name for name, found in IMPORTS.items() if any(folder(one) == 'synthetic' for one in found)}
    assert {name for name in users if folder(name) != 'synthetic'} <= NEEDS_FRAMES


def test_registering_loads_few_modules():
    code = f'import sys, {NAME}.register; print(*sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    loaded = [name for name in done.stdout.split() if name.partition('.')[0] == NAME]
    assert f'{NAME}.models.unet' in loaded
    assert len(loaded) <= 35, loaded


def test_no_module_needs_unix_to_be_imported():
    wrong = []
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                roots = {alias.name.partition('.')[0] for alias in node.names}
                roots |= {node.module} if isinstance(node, ast.ImportFrom) else set()
                wrong += [f'{name}: {root}' for root in roots & UNIX_MODULES]
    assert wrong == []
