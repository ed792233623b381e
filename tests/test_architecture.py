"""Between the rooms arrows run one way, as docs/architecture.md draws them."""

import ast
from pathlib import Path

import pytest

import mmseg_unet_lyft

PACKAGE = Path(mmseg_unet_lyft.__file__).parent
# Each room may import from those before it.
ROOMS = (
    'datasets',
    'models',
    'evaluation',
    'report',
    'engine',
    'inference',
    'bench',
    'torture',
    'apps',
    'cli',
)
PURE = 'evaluation.counts'  # Numbers alone: below every room.


def imported_by(path: Path) -> set[str]:
    """``room.module`` of what a file in a room imports from other rooms, functions' own imports included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.level == 2:
            names = [node.module] if node.module else []
            if not node.module or node.module in ROOMS:
                names = ['.'.join(filter(None, (node.module, alias.name))) for alias in node.names]
            found.update(name for name in names if name.split('.')[0] in ROOMS)
    return found


@pytest.mark.parametrize('room', ROOMS)
def test_a_room_imports_only_from_rooms_below(room):
    below = ROOMS[: ROOMS.index(room)]
    above = {
        f'{path.name} imports {name}'
        for path in (PACKAGE / room).glob('*.py')
        for name in imported_by(path)
        if name != PURE and name.split('.')[0] not in below
    }
    assert above == set()


def test_models_know_no_data_sets():
    found = set().union(*map(imported_by, (PACKAGE / 'models').glob('*.py')))
    assert not {name for name in found if name.startswith('datasets.')}


def code_lines(function: ast.FunctionDef, lines: list[str]) -> int:
    """A function's lines without its docstring and blank ones."""
    taken = set(range(function.lineno - 1, function.end_lineno))
    if ast.get_docstring(function) is not None:
        taken -= set(range(function.body[0].lineno - 1, function.body[0].end_lineno))
    return sum(bool(lines[number].strip()) for number in taken)


def test_modules_and_functions_stay_short():
    long = {}
    for path in PACKAGE.rglob('*.py'):
        text = path.read_text(encoding='utf-8')
        lines, name = text.splitlines(), str(path.relative_to(PACKAGE))
        if len(lines) > 300:
            long[name] = len(lines)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and code_lines(node, lines) > 50:
                long[f'{name}: {node.name}'] = code_lines(node, lines)
    assert long == {}


def test_commands_only_parse_and_call():
    commands = {path.name: path.read_text(encoding='utf-8') for path in (PACKAGE / 'cli').glob('*.py')}
    lengths = {name: len(text.splitlines()) for name, text in commands.items() if '\nmain = guarded(' in text}
    assert len(lengths) > 10
    assert max(lengths.values()) <= 80, lengths
