"""The console command, and ``python -m mmseg_unet_lyft``: runs a module of ``cli`` by name."""

import ast
import importlib
import sys
from pathlib import Path

from . import __version__
from .cli.console import EXIT_INPUT_ERROR, show_tracebacks
from .errors import did_you_mean

_PACKAGE = Path(__file__).resolve().parent
_EXIT_CODES = """\
exit codes:
  0      done
  1      doctor found a fault
  2      a mistake in the input: arguments, files, data, the installation, the machine
  70     a defect of this package
  75     stopped by a signal, all saved; --resume continues
  128+n  ended by signal n (130: Ctrl-C)"""


def find_tools() -> dict[str, str]:
    """First docstring line of each tool: a module of ``cli`` that assigns ``main``."""
    tools = {}
    for path in sorted((_PACKAGE / 'cli').glob('*.py')):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        if any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'main' for node in tree.body):
            tools[path.stem] = ast.get_docstring(tree).partition('\n')[0]
    return tools


def _overview(tools: dict[str, str]) -> str:
    """What ``--help`` prints."""
    width = max(len(name) for name in tools)
    lines = [f'  {name:{width}}  {line}' for name, line in tools.items()]
    usage = 'usage: mmseg_unet_lyft [-h] [--version] [--debug] TOOL ...'
    more = '"mmseg_unet_lyft TOOL --help" shows options; --debug, or LYFT_DEBUG=1, shows tracebacks.'
    return '\n'.join([usage, '', 'tools:', *lines, '', _EXIT_CODES, '', more, ''])


def main(argv: list[str] | None = None) -> int:
    """Run the tool named by the first of these arguments, by default the process's, with those after it.

    Returns the tool's exit code; 2 if it is missing or unknown.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ['']
    if name == '--debug':
        show_tracebacks()
        name, *rest = rest or ['']
    if name == '--version':
        sys.stdout.write(f'mmseg_unet_lyft {__version__}\n')
        return 0
    tools = find_tools()
    if name in ('', '-h', '--help'):
        (sys.stdout if name else sys.stderr).write(_overview(tools))
        return 0 if name else EXIT_INPUT_ERROR
    module = name.replace('-', '_')
    if module not in tools:
        hint = did_you_mean(name, [*tools, '--help', '--version', '--debug'])
        sys.stderr.write(f'error: {name}: no such tool{hint or "."} The tools are: {", ".join(tools)}\n')
        return EXIT_INPUT_ERROR
    # argparse takes the command's name from here.
    sys.argv[0] = f'mmseg_unet_lyft {module}'
    if argv is None:
        sys.argv[1:] = rest
    tool = importlib.import_module(f'.cli.{module}', __package__)
    return tool.main(None if argv is None else rest)


if __name__ == '__main__':
    sys.exit(main())
