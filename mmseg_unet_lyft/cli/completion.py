"""Print the code by which a shell completes the commands of mmseg-unet-lyft: tools, options, choices, files.

eval "$(mmseg-unet-lyft completion bash)"    # in ~/.bashrc; zsh likewise; fish: ... completion fish | source
"""

from __future__ import annotations

import argparse

from ..errors import InputError
from .console import guarded, say
from .parser import CommandParser

_COMMANDS = ('mmseg-unet-lyft', 'mmseg_unet_lyft')


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    parser.add_argument('shell', choices=['bash', 'zsh', 'fish'])
    return parser.parse_args(argv)


def _completion(argv: list[str] | None) -> None:
    args = parse_args(argv)
    try:
        from argcomplete import shellcode
    except ModuleNotFoundError:
        from ..compat import install_command

        raise InputError(
            f'this command needs argcomplete; install with: {install_command("completion")}'
        ) from None
    say(shellcode(_COMMANDS, shell=args.shell))


main = guarded(_completion)
