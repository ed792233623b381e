"""Answers to a shell that asks how a command line could go on; argcomplete gives them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Container

# argcomplete's: at which word of the line the command starts, from 1.
_VARIABLE = '_ARGCOMPLETE'


def is_asking() -> bool:
    """Whether this process was started by a shell for completion alone."""
    return _VARIABLE in os.environ


def complete(parser: argparse.ArgumentParser) -> None:
    """If a shell asks, answer it by what a parser takes, and end the process."""
    if is_asking():
        _require()
        import argcomplete

        argcomplete.autocomplete(parser, always_complete_options='long')


def find_tool(tools: Container[str]) -> str | None:
    """The tool whose arguments a shell asks about, and which is to answer; None if it asks for the tool."""
    _require()
    from argcomplete.lexers import split_line

    start = int(os.environ[_VARIABLE])
    words = split_line(os.environ['COMP_LINE'], int(os.environ['COMP_POINT']))[3][start:]
    name = words[0].replace('-', '_') if words else None
    if name not in tools:
        return None
    os.environ[_VARIABLE] = str(start + 1)
    return name


def _require() -> None:
    """End the process if argcomplete is not installed: what is to be completed must not run."""
    try:
        import argcomplete  # noqa: F401
    except ModuleNotFoundError:
        sys.exit(1)
