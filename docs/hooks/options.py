"""The page of configs: each short name with its value, meaning and keys, and what each config changes."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from mmseg_unet_lyft.engine.config import SHORT_NAMES

_OPENING = (
    'Each value stands in `configs/_base_` where MMEngine reads it. `--cfg-options KEY=x` changes it, by its '
    'dotted key (`optim_wrapper.optimizer.lr=0.001`) or by one of the short names below, which set all keys '
    'that belong together. A short name works on any config, one that a run saved too, and at the top of a '
    'config of your own (`max_iters = 100`). Where both are given, the dotted key wins.'
)
_LONGEST = 100


def read_values(path: Path) -> dict[str, tuple[str, str]]:
    """Source and comment of each value in a config file, by its key as `SHORT_NAMES` writes it."""
    text = path.read_text(encoding='utf-8')
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    found = {}
    for key, node, value in _values(ast.parse(text)):
        lines, above = [], node.lineno - 1
        while node.lineno not in comments and above in comments and _is_alone(comments[above]):
            lines.insert(0, above)
            above -= 1
        lines = lines or [node.lineno] * (node.lineno in comments)
        meaning = ' '.join(comments[line].string.lstrip('# ') for line in lines)
        found[key] = (ast.get_source_segment(text, value), meaning)
    return found


def _is_alone(comment: tokenize.TokenInfo) -> bool:
    return comment.line.lstrip().startswith('#')


def _values(tree: ast.Module) -> Iterator[tuple[str, ast.AST, ast.expr]]:
    """Key, the node that names it, and value of everything a config file assigns, in dicts and lists too."""
    todo = [(node.targets[0].id, node, node.value) for node in tree.body if isinstance(node, ast.Assign)]
    while todo:
        key, node, value = todo.pop(0)
        yield key, node, value
        if isinstance(value, ast.Call):
            todo += [(f'{key}.{one.arg}', one, one.value) for one in value.keywords]
        elif isinstance(value, ast.List):
            calls = [item for item in value.elts if isinstance(item, ast.Call)]
            for item in calls:
                kinds = [one.value.value for one in item.keywords if one.arg == 'type']
                todo += [(f'{key}[{kind}]', item, item) for kind in kinds]


def options_page(configs: Path) -> str:
    """The page in Markdown."""
    leaves = sorted(configs.glob('*.py'))
    bases = sorted(configs.glob('_base_/*/*.py'), reverse=True)
    sources = [read_values(path) for path in [*bases, *leaves]]
    sources.append(read_values(configs / '_base_' / 'default_runtime.py'))
    rows = ['| short name | value | what it is | keys |', '|---|---|---|---|']
    for name, keys in SHORT_NAMES.items():
        patterns = [re.sub(r'\\\[(.*?)\\\]', _alternatives, re.escape(key)) for key in keys]
        found = [
            source[key]
            for pattern in patterns
            for source in sources
            for key in source
            if re.fullmatch(pattern, key)
        ]
        value = ' '.join(found[0][0].split())
        value = (value if len(value) <= _LONGEST else '[...]').replace('|', '\\|')
        meaning = next((comment for _, comment in found if comment), '')
        shown = ', '.join('`{}`'.format(key.replace('|', '\\|')) for key in keys)
        rows.append(f'| `{name}` | `{value}` | {meaning} | {shown} |')
    parts = ['# Configs', _OPENING, '## Short names', '\n'.join(rows), '## The configs']
    parts.append('Only what differs from its base stands in a config.')
    for path in leaves:
        parts += [f'### `{path.name}`', f'```python\n{path.read_text(encoding="utf-8").strip()}\n```']
    return '\n\n'.join(parts) + '\n'


def _alternatives(match: re.Match) -> str:
    """``[A|B]``, escaped, as a pattern of either in brackets."""
    return r'\[(' + match[1].replace('\\|', '|') + r')\]'
