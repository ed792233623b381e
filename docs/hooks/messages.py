"""Every message that the source can give a user, collected from it without running it."""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GAP = '…'
# What is raised or listed for a user, and which argument is the message.
_MESSAGE_OF = {'InputError': 0, 'Problem': 2}
# Of functions with these names, the strings that they yield or return are such messages too, or parts of one.
_TELLING = re.compile(r'.*_problems?|_?describe_?.*')


@dataclass(frozen=True)
class Message:
    """A message as far as the source says it.

    Attributes:
        text: With a gap for each part that is filled in when it is given.
        function: Name of the function that gives it; ``import`` where importing the module does.
        about: The first line of that function's docstring.
        module: ``engine/config.py``.
    """

    text: str
    function: str
    about: str
    module: str


def collect(package: Path) -> list[Message]:
    """All messages of the package, by module and place."""
    return [message for path in sorted(package.rglob('*.py')) for message in _of_module(path, package)]


def _of_module(path: Path, package: Path) -> Iterator[Message]:
    tree = ast.parse(path.read_text(encoding='utf-8'))
    module = path.relative_to(package).as_posix()
    constants = _assigned(tree.body)
    for scope in _scopes(tree):
        about = (ast.get_docstring(scope) or '').partition('\n')[0]
        known = constants | _assigned(list(_own(scope)))
        name = scope.name if isinstance(scope, ast.FunctionDef) else 'import'
        for text in dict.fromkeys(_texts(scope, known, bool(_TELLING.fullmatch(name)))):
            yield Message(text, name, about, module)


def _scopes(tree: ast.Module) -> Iterator[ast.Module | ast.FunctionDef]:
    """A module's own lines, then each function."""
    return (node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.FunctionDef)))


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a function without those of functions in it."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, ast.FunctionDef):
            yield from _own(child)


def _assigned(nodes: list[ast.AST]) -> dict[str, ast.expr]:
    """What each name that is assigned once stands for."""
    values: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values.setdefault(node.targets[0].id, []).append(node.value)
    return {name: found[0] for name, found in values.items() if len(found) == 1}


def _texts(scope: ast.AST, known: dict[str, ast.expr], is_telling: bool) -> Iterator[str]:
    """The messages of a function that say anything by themselves."""
    for node in _own(scope):
        value = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _MESSAGE_OF:
            place = _MESSAGE_OF[node.func.id]
            value = node.args[place] if len(node.args) > place else None
        elif is_telling and isinstance(node, (ast.Yield, ast.Return)):
            value = node.value
        if value is not None:
            text = template(value, known)
            if any(letter.isalpha() for letter in text):
                yield text


def template(value: ast.expr, known: dict[str, ast.expr], depth: int = 0) -> str:
    """An expression's text, with a gap for all that only running it would tell."""
    if isinstance(value, ast.Constant):
        return value.value if isinstance(value.value, str) else GAP
    if isinstance(value, ast.JoinedStr):
        text = ''.join(template(part, known, depth) for part in value.values)
    elif isinstance(value, ast.FormattedValue):
        text = template(value.value, known, depth)
    elif isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        text = template(value.left, known, depth) + template(value.right, known, depth)
    elif isinstance(value, ast.Name) and value.id in known and depth < 3:
        text = template(known[value.id], known, depth + 1)
    elif isinstance(value, ast.IfExp):
        sides = [template(side, known, depth) for side in (value.body, value.orelse)]
        text = ' / '.join(side for side in sides if side and side != GAP) or GAP
    else:
        return GAP
    while GAP * 2 in text:
        text = text.replace(GAP * 2, GAP)
    return text


def messages_section(package: Path) -> str:
    """All messages in Markdown, under a heading for each room."""
    parts: list[str] = []
    rooms: dict[str, list[Message]] = {}
    for message in collect(package):
        room = message.module.partition('/')[0] if '/' in message.module else 'the package itself'
        rooms.setdefault(room, []).append(message)
    for room, messages in sorted(rooms.items()):
        rows = ''.join(
            f'<tr><td>{html.escape(message.text)}</td><td>{_as_html(message.about)} '
            f'<code>{message.module}</code>, <code>{message.function}</code></td></tr>\n'
            for message in messages
        )
        head = '<tr><th>message</th><th>given by</th></tr>'
        parts.append(f'### {room}\n\n<table>\n{head}\n{rows}</table>')
    return '\n\n'.join(parts)


def _as_html(docstring: str) -> str:
    """A line of a docstring, its code marked."""
    return re.sub(r'`+([^`]+)`+', r'<code>\1</code>', html.escape(docstring))
