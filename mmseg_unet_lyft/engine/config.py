"""Reading a config with a command's options: knobs are set where they stand, other keys are checked."""

from __future__ import annotations

import ast
import re
import tempfile
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import InputError

_PACKAGED = Path(__file__).resolve().parents[1] / '.mim' / 'configs'
_BASE = '_base_'
# Their values are text, whatever they look like: data_root=2018, data_root=/data/a,b.
_TEXT_KEYS = {'data_root', 'work_dir', 'load_from', 'pretrained'}
# What running a config file can raise; it is the user's program.
_CONFIG_ERRORS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError)
_CONFIG_ERRORS += (OSError, RuntimeError, TypeError, ValueError)


def find_config(name: str) -> Path:
    """A config file: the path as given, or one of that name among the package's own.

    Raises:
        InputError: If there is neither; the message lists the package's configs.
    """
    path = Path(name)
    packaged = _PACKAGED / (name if name.endswith('.py') else f'{name}.py')
    for candidate in (path, packaged):
        if candidate.is_file():
            return candidate
    known = ', '.join(sorted(config.name for config in _PACKAGED.glob('*.py')))
    raise InputError(f'{name}: no such config file here, nor in the package; the package has: {known}')


def parse_options(options: list[str]) -> dict[str, Any]:
    """``['max_iters=5', 'train_drives=[02_00,F1]']`` as a dict.

    Values are Python literals; bare words are strings, inside brackets and commas too. Unlike mmengine's
    ``DictAction``, ``02_00`` is a drive and not the number 200.

    Raises:
        InputError: If an option has no ``=`` or unbalanced brackets.
    """
    parsed = {}
    for option in options:
        key, equals, text = option.partition('=')
        if not equals or not key:
            raise InputError(
                f'--cfg-options {option!r}: write it as KEY=VALUE, without blanks around the "="'
            )
        is_text = key.rpartition('.')[2] in _TEXT_KEYS and text != 'None'
        parsed[key] = text if is_text else _parse_value(text, option)
    return parsed


def _parse_value(text: str, option: str) -> Any:
    """A literal, a list of literals and bare words, or the text itself."""
    is_dict = text.startswith('{')
    # The drive 10_00 is the number 1000 to Python; inside quotes it is safe.
    if is_dict or not re.search(r'\d_\d', re.sub(r"'[^']*'|\"[^\"]*\"", '', text)):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            if is_dict:
                raise InputError(
                    f"--cfg-options {option!r}: write a dict as {{'type': 'BN'}}, with quotes"
                ) from None
    if ',' not in text and not text.startswith(('[', '(')):
        return {'true': True, 'false': False}.get(text.lower(), text)
    quoted = re.sub(
        r'[^\[\](),\s][^\[\](),]*', lambda match: repr(_parse_value(match[0].strip(' \'"'), option)), text
    )
    try:
        return ast.literal_eval(quoted)
    except (ValueError, SyntaxError):
        raise InputError(f'--cfg-options {option!r}: brackets or quotes do not close') from None


def load_config(name: str, options: dict[str, Any] | None = None) -> Config:
    """A config with options applied.

    A key without a dot that the config file or one of its bases assigns is a knob, unless the Runner itself
    reads it: it is set there, before anything is derived from it. Other keys are merged into the result,
    and must exist in it or be a parameter of the ``type`` they land in.

    Args:
        name: Path of a config file, or the name of one in the package.
        options: ``{'max_iters': 5, 'model.backbone.with_cp': True}``.

    Returns:
        The config, every base and option in it; ``filename`` is the path found.

    Raises:
        InputError: If the file is missing or broken, or a key is unknown or without effect.
    """
    # Late: judging keys needs torch, finding and parsing a config does not.
    from .config_keys import RUN_KEYS, check_key, number_like

    path = find_config(name)
    options = dict(options or {})
    assigned = _assigned_names(path)
    config = _read(path)
    knobs = {
        key: number_like(key, config.get(key), options.pop(key))
        for key in list(options)
        if key in assigned - RUN_KEYS
    }
    for key in options:
        try:
            check_key(config.to_dict(), key, assigned)
        except InputError as error:
            if key != 'data_root':
                raise InputError(f'{path}: {error}') from None
            raise InputError(
                f'{path}: --data-root: this config names no data; start it from one of the package, by _base_'
            ) from None
    _check_effect(path, config, {}, knobs)
    if knobs:
        config = _read(path, knobs)
    # train_pipeline.3.crop_size: the Runner reads the loader's copy, so the pipeline is set as a knob is.
    indirect = {key: options.pop(key) for key in list(options) if key.split('.')[0] in assigned - RUN_KEYS}
    if indirect:
        merged = Config(config.to_dict())
        merged.merge_from_dict(indirect)
        derived = {root: merged.to_dict()[root] for root in {key.split('.')[0] for key in indirect}}
        _check_effect(path, config, knobs, derived)
        config = _read(path, knobs | derived)
    config.merge_from_dict(options)
    return config


def _check_effect(path: Path, config: Config, applied: dict[str, Any], knobs: dict[str, Any]) -> None:
    """Raise an InputError for a knob whose new value, beside those applied, changes only its own entry."""
    for key, value in knobs.items():
        changed = _read(path, applied | {key: value})
        if _unlike(config.get(key), value) and not _differs_beyond(config, changed, key):
            raise InputError(f'--cfg-options {key}={value!r}: nothing in {path} derives from {key}')


def _unlike(old: Any, new: Any) -> bool:
    """Whether two values differ, a tuple and a list of the same items being alike."""
    as_list = [list(value) if isinstance(value, tuple) else value for value in (old, new)]
    return as_list[0] != as_list[1]


def _differs_beyond(config: Config, changed: Config, knob: str) -> bool:
    """Whether anything but the knob's own entry differs."""
    before, after = config.to_dict(), changed.to_dict()
    before.pop(knob, None)
    after.pop(knob, None)
    return before != after


def parse_source(path: Path) -> tuple[str, ast.Module]:
    """A config file's text and syntax tree."""
    try:
        source = path.read_text(encoding='utf-8')
        tree = ast.parse(source)
    except SyntaxError as error:
        raise InputError(f'{path}: line {error.lineno}: {error.msg}') from None
    # Bytes that are no UTF-8, or zeros among them.
    except ValueError as error:
        raise InputError(f'{path}: is no Python source ({error}); save it as UTF-8 text') from None
    if not source.strip():
        raise InputError(f'{path}: is empty; restore it')
    return source, tree


def _assignments(tree: ast.Module) -> dict[str, ast.expr]:
    """Value expression of each name assigned at the top level."""
    return {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def bases_of(path: Path, tree: ast.Module) -> list[str | Path]:
    """The config's bases: paths, or ``package::name`` strings as they are.

    Raises:
        InputError: If one is missing.
    """
    expression = _assignments(tree).get(_BASE)
    if expression is None:
        return []
    try:
        names = ast.literal_eval(expression)
    except ValueError:
        raise InputError(
            f'{path}: line {expression.lineno}: {_BASE} is computed; write it as a list of strings'
        ) from None
    bases = [
        name if '::' in name else path.parent / name
        for name in ([names] if isinstance(names, str) else names)
    ]
    for base in bases:
        if isinstance(base, Path) and not base.is_file():
            raise InputError(f'{path}: its base {base} does not exist')
    return bases


def _assigned_names(path: Path) -> set[str]:
    """Names that a config or any of its bases assigns at the top level."""
    _, tree = parse_source(path)
    names = set(_assignments(tree)) - {_BASE}
    for base in bases_of(path, tree):
        if isinstance(base, Path):
            names |= _assigned_names(base)
    return names


def _read(path: Path, knobs: dict[str, Any] | None = None) -> Config:
    """The config, with the given knobs set wherever the file or its bases assign them."""
    with tempfile.TemporaryDirectory() as folder:
        copy = _copy_with_knobs(path, knobs, Path(folder)) if knobs else path
        try:
            config = Config.fromfile(str(copy))
        except _CONFIG_ERRORS as error:
            broken = _first_broken(path) or path
            raise InputError(f'{broken}: {type(error).__name__}: {error}') from error
    # The copy is gone; logs and dumps name the file the user gave.
    object.__setattr__(config, '_filename', str(path))
    return config


def _first_broken(path: Path) -> Path | None:
    """Of a config that cannot be read and its bases, the deepest that cannot be read by itself, if any."""
    for base in bases_of(path, parse_source(path)[1]):
        broken = _first_broken(base) if isinstance(base, Path) else None
        if broken is not None:
            return broken
    try:
        Config.fromfile(str(path))
    except _CONFIG_ERRORS:
        return path
    return None


def _copy_with_knobs(path: Path, knobs: dict[str, Any], folder: Path) -> Path:
    """A copy of the config and its bases in the folder, with knobs replaced in their source."""
    source, tree = parse_source(path)
    replacements = {key: repr(value) for key, value in knobs.items()}
    folder.mkdir(exist_ok=True)
    copies = []
    for index, base in enumerate(bases_of(path, tree)):
        copies.append(
            str(_copy_with_knobs(base, knobs, folder / str(index)) if isinstance(base, Path) else base)
        )
    replacements[_BASE] = repr(copies)
    lines = source.encode().splitlines(keepends=True)
    # From the end, so that earlier positions stay right.
    for node in reversed(tree.body):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id in replacements:
                _replace(lines, node.value, replacements[node.targets[0].id])
        elif _changed_name(node) in knobs:
            # The value given is final; `train_pipeline[3].update(...)` would change it again.
            _replace(lines, node, 'pass')
    copy = folder / path.name
    copy.write_bytes(b''.join(lines))
    return copy


def _changed_name(node: ast.stmt) -> str | None:
    """The variable that ``x[3].update(...)``, ``x['key'] = ...`` or ``x += ...`` changes, else None."""
    if isinstance(node, ast.Expr):
        expression = node.value
    elif isinstance(node, (ast.Assign, ast.AugAssign)):
        expression = node.target if isinstance(node, ast.AugAssign) else node.targets[0]
    else:
        return None
    while isinstance(expression, (ast.Call, ast.Attribute, ast.Subscript)):
        expression = expression.func if isinstance(expression, ast.Call) else expression.value
    return expression.id if isinstance(expression, ast.Name) else None


def _replace(lines: list[bytes], node: ast.AST, text: str) -> None:
    """Put the text in the place of a node, in the lines of its source."""
    start, end = node.lineno - 1, node.end_lineno - 1
    head, tail = lines[start][: node.col_offset], lines[end][node.end_col_offset :]
    lines[start : end + 1] = [head + text.encode() + tail]
