"""The page of all knobs, read from the configs: their values, their comments, and where each value goes."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BASE = '_base_'
_OPENING = (
    'Each knob stands in one file, which everything else derives from. `--cfg-options KNOB=x` sets it there, '
    'before anything derives from it; a config of your own over one of these sets it and rebinds what '
    'derives from it. This page is read from `configs/` when the site is built.'
)


@dataclass(frozen=True)
class Knob:
    """A name that a config assigns for others to derive from.

    Attributes:
        name: As ``--cfg-options`` takes it.
        value: Its source.
        meaning: Its comment; '' if it has none.
        reaches: Keys of the finished config that its value goes into.
    """

    name: str
    value: str
    meaning: str
    reaches: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A config file, read and not run: its first comment, its bases and its knobs."""

    path: Path
    title: str
    bases: tuple[str, ...]
    knobs: tuple[Knob, ...]


def read_source(path: Path) -> Source:
    """What a config file says of itself; its knobs are the first paragraph behind its bases."""
    text = path.read_text(encoding='utf-8')
    tree = ast.parse(text)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found = [token for token in tokens if token.type == tokenize.COMMENT]
    comments = {token.start[0]: token.string.lstrip('# ') for token in found}
    whole_lines = {token.start[0] for token in found if not token.start[1]}
    assigned = [
        node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    ]
    bases = next((ast.literal_eval(node.value) for node in assigned if node.targets[0].id == _BASE), [])
    reaches = _reaches(tree)
    knobs = tuple(
        Knob(
            node.targets[0].id,
            ast.get_source_segment(text, node.value),
            _comment_of(node, comments, whole_lines),
            tuple(reaches.get(node.targets[0].id, ())),
        )
        for node in _first_paragraph([node for node in assigned if node.targets[0].id != _BASE], whole_lines)
    )
    return Source(path, comments[1], tuple(bases), knobs)


def _first_paragraph(nodes: list[ast.Assign], whole_lines: set[int]) -> Iterator[ast.Assign]:
    """Assignments up to the first empty line between them."""
    end = None
    for node in nodes:
        start = node.lineno
        while start - 1 in whole_lines:
            start -= 1
        if end is not None and start > end + 1:
            return
        end = node.end_lineno
        yield node


def _comment_of(node: ast.Assign, comments: dict[int, str], whole_lines: set[int]) -> str:
    """What stands behind an assignment, else in the lines above it."""
    if node.end_lineno in comments:
        return comments[node.end_lineno]
    above = []
    line = node.lineno - 1
    while line in whole_lines and line > 1:
        above.insert(0, comments[line])
        line -= 1
    return ' '.join(above)


def _reaches(tree: ast.Module) -> dict[str, list[str]]:
    """Where in the finished config each assigned name's value goes, through other names too."""
    uses: dict[str, list[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            for name, place in _places(node.value, node.targets[0].id):
                uses.setdefault(name, []).append(place)

    def finished(place: str) -> Iterator[str]:
        root, dot, rest = place.partition('.')
        if root not in uses:
            yield place
        for above in uses.get(root, ()):
            yield from finished(f'{above}{dot}{rest}')

    return {
        name: list(dict.fromkeys(one for place in places for one in finished(place)))
        for name, places in uses.items()
    }


def _places(value: ast.expr, place: str) -> Iterator[tuple[str, str]]:
    """Each name in an expression with the key that it stands under."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == 'dict':
        for keyword in value.keywords:
            yield from _places(keyword.value, f'{place}.{keyword.arg}' if keyword.arg else place)
    elif isinstance(value, ast.List):
        for index, item in enumerate(value.elts):
            yield from _places(item, f'{place}.{index}')
    else:
        for node in ast.walk(value):
            if isinstance(node, ast.Name):
                yield node.id, place


def knobs_page(configs: Path) -> str:
    """The page in Markdown: the knobs of each base, then what each config of the package changes."""
    bases = [read_source(path) for path in sorted(configs.glob('_base_/*/*.py'))]
    meanings = {knob.name: knob.meaning for source in bases for knob in source.knobs if knob.meaning}
    parts = [
        '# Configs, knob by knob',
        _OPENING,
    ]
    for source in bases:
        parts += [f'## `{source.path.relative_to(configs).as_posix()}`', source.title, _table(source, {})]
    parts += ['## The configs', 'Only what differs from their base stands in them.']
    for path in sorted(configs.glob('*.py')):
        source = read_source(path)
        over = ', '.join(f'`{base}`' for base in source.bases)
        parts += [f'### `{path.name}`', f'{source.title} Over {over}.']
        parts += [_table(source, meanings)] if source.knobs else []
    return '\n\n'.join(parts) + '\n'


def _table(source: Source, meanings: dict[str, str]) -> str:
    """The knobs as a Markdown table; a meaning that is not said here is taken from the base's."""
    rows = ['| knob | value | what it is | goes to |', '|---|---|---|---|']
    for knob in source.knobs:
        meaning = knob.meaning or meanings.get(knob.name, '')
        value = ' '.join(knob.value.split()).replace('|', '\\|')
        # What a config only hands on to its bases is said there.
        goes_to = ', '.join(f'`{key}`' for key in knob.reaches)
        rows.append(f'| `{knob.name}` | `{value}` | {meaning} | {goes_to} |')
    return '\n'.join(rows)
