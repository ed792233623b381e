"""The console command, and ``python -m mmseg_unet_lyft``: runs a module of ``cli`` by name."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

from . import __version__
from .cli.defects import ask_for_tracebacks, tell_defects_in_one_line
from .cli.parser import CommandParser, did_you_mean
from .cli.shell import complete, find_tool, is_asking

_PACKAGE = Path(__file__).resolve().parent
_CONSOLE_NAMES = ('mmseg-unet-lyft', 'mmseg_unet_lyft')
_EXIT_UNKNOWN_TOOL = 2
_EXIT_CODES = """\
exit codes:
  0      done
  1      a defect of ours, or what was tried or looked at (torture, doctor) did not hold
  2      a mistake in what was given: arguments, files, data, the installation
  75     stopped by a signal, all saved; --resume goes on
  128+n  ended by signal n (130: Ctrl-C)"""


def find_tools() -> dict[str, str]:
    """First docstring line of each tool, a module of ``cli`` that assigns ``main``; none is imported."""
    tools = {}
    for path in sorted((_PACKAGE / 'cli').glob('*.py')):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        if any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'main' for node in tree.body):
            tools[path.stem] = (ast.get_docstring(tree) or '').partition('\n')[0]
    return tools


def _own_name() -> str:
    """What the console command was called as."""
    stem = Path(sys.argv[0]).stem if sys.argv[0:] else ''
    return stem if stem in _CONSOLE_NAMES else _CONSOLE_NAMES[1]


def _overview(tools: dict[str, str]) -> str:
    """What ``--help`` prints."""
    width = max(len(name) for name in tools)
    lines = [f'  {name:{width}}  {line}' for name, line in tools.items()]
    usage = f'usage: {_own_name()} [-h] [--version] [--debug] TOOL ...'
    more = f'"{_own_name()} TOOL --help" tells more; --debug, or LYFT_DEBUG=1, shows tracebacks of errors.'
    return '\n'.join([usage, '', 'tools:', *lines, '', _EXIT_CODES, '', more, ''])


def _answer_shell(tools: dict[str, str]) -> None:
    """Say how the line could go on at which a shell is asking; ends the process."""
    name = find_tool(tools)
    if name is not None:
        importlib.import_module(f'.cli.{name}', __package__).main([])
    parser = CommandParser(prog=_own_name())
    parts = parser.add_subparsers()
    for tool, line in tools.items():
        parts.add_parser(tool, help=line.replace('%', '%%'))
    complete(parser)


def main(argv: list[str] | None = None) -> int:
    """Run the tool that the first argument names with the arguments behind it.

    Args:
        argv: Arguments, those of the process by default.

    Returns:
        The tool's exit code; 2 if it is missing or unknown.
    """
    if argv is None:
        tell_defects_in_one_line()
    name, *rest = (sys.argv[1:] if argv is None else argv) or ['']
    if name == '--debug':
        ask_for_tracebacks()
        name, *rest = rest or ['']
    if name == '--version':
        sys.stdout.write(f'mmseg_unet_lyft {__version__}\n')
        return 0
    tools = find_tools()
    if is_asking():
        _answer_shell(tools)
    if name in ('-h', '--help'):
        sys.stdout.write(_overview(tools))
        return 0
    if not name:
        sys.stderr.write(_overview(tools))
        return _EXIT_UNKNOWN_TOOL
    module = name.replace('-', '_')
    if module not in tools:
        hint = did_you_mean(name, [*tools, '--help', '--version', '--debug'])
        sys.stderr.write(f'error: {name}: no such tool{hint or "."} The tools are: {", ".join(tools)}\n')
        return _EXIT_UNKNOWN_TOOL
    # argparse takes the command's name from here.
    sys.argv[0] = f'{_own_name()} {module}'
    return importlib.import_module(f'.cli.{module}', __package__).main(rest)


if __name__ == '__main__':
    sys.exit(main())
