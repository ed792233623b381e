"""The console command, and ``python -m mmseg_unet_lyft``: runs a module of ``cli`` by name."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from pathlib import Path

from . import __version__

_CLI = Path(__file__).resolve().parent / 'cli'
_EXIT_UNKNOWN_TOOL = 2


def find_tools() -> dict[str, str]:
    """First docstring line of each tool, a module of ``cli`` that assigns ``main``; none is imported."""
    tools = {}
    for path in sorted(_CLI.glob('*.py')):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        if any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'main' for node in tree.body):
            tools[path.stem] = (ast.get_docstring(tree) or '').partition('\n')[0]
    return tools


def _overview(tools: dict[str, str]) -> str:
    """What ``--help`` prints."""
    width = max(len(name) for name in tools)
    lines = [f'  {name:{width}}  {line}' for name, line in tools.items()]
    usage = 'usage: mmseg_unet_lyft [-h] [--version] TOOL ...'
    return '\n'.join([usage, '', 'tools:', *lines, '', '"mmseg_unet_lyft TOOL --help" tells more.', ''])


def main(argv: list[str] | None = None) -> int:
    """Run the tool that the first argument names with the arguments behind it.

    Args:
        argv: Arguments, those of the process by default.

    Returns:
        The tool's exit code; 2 if it is missing or unknown.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ['']
    if name == '--version':
        sys.stdout.write(f'mmseg_unet_lyft {__version__}\n')
        return 0
    tools = find_tools()
    if name in ('-h', '--help'):
        sys.stdout.write(_overview(tools))
        return 0
    if not name:
        sys.stderr.write(_overview(tools))
        return _EXIT_UNKNOWN_TOOL
    if name not in tools:
        near = difflib.get_close_matches(name, tools, n=1)
        hint = f'did you mean {near[0]}? ' if near else ''
        sys.stderr.write(f'error: {name}: no such tool; {hint}The tools are: {", ".join(tools)}\n')
        return _EXIT_UNKNOWN_TOOL
    # argparse takes the command's name from here.
    sys.argv[0] = f'mmseg_unet_lyft {name}'
    return importlib.import_module(f'.cli.{name}', __package__).main(rest)


if __name__ == '__main__':
    sys.exit(main())
