"""The page of all commands: what each prints with ``--help``."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator

from mmseg_unet_lyft.__main__ import find_tools, main

_WIDTH = '100'


@contextlib.contextmanager
def _as_command(name: str) -> Iterator[io.StringIO]:
    """Within it argparse takes this name and this width, and what is printed is kept."""
    columns, argv0 = os.environ.get('COLUMNS'), sys.argv[0]
    os.environ['COLUMNS'], sys.argv[0] = _WIDTH, f'mmseg_unet_lyft {name}'
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            yield printed
    finally:
        sys.argv[0] = argv0
        os.environ.pop('COLUMNS')
        if columns is not None:
            os.environ['COLUMNS'] = columns


def help_of(name: str) -> str:
    """What a command prints with ``--help``."""
    with _as_command(name) as printed:
        main([name, '--help'])
    return printed.getvalue()


def commands_page() -> str:
    """The page in Markdown."""
    parts = ['# Commands', 'In a clone `python tools/NAME.py`, installed `mmseg_unet_lyft NAME`.']
    for name in find_tools():
        parts += [f'## {name}', f'```text\n{help_of(name).rstrip()}\n```']
    return '\n\n'.join(parts) + '\n'
