"""The parser of all commands: what each of them takes, what was probably meant."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable
from typing import Any

from .. import __version__
from .defects import ask_for_tracebacks
from .shell import complete


class CommandParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` with ``--version`` and ``--debug`` that names what is near a mistyped word.

    Args:
        **given: As an ``ArgumentParser`` takes; the description is shown as it is written.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**{'formatter_class': argparse.RawDescriptionHelpFormatter, **given})
        self.add_argument('--version', action='version', version=f'mmseg_unet_lyft {__version__}')
        self.add_argument('--debug', action=_AskForTracebacks, nargs=0, help='show tracebacks of errors')

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        """The command line; exits with 2 if it is wrong, and answers a shell that only asks."""
        complete(self)
        return self._all_known(*self.parse_known_args(args, namespace))

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        """As `parse_args`; options may stand between words that belong together."""
        complete(self)
        return self._all_known(*self.parse_known_intermixed_args(args, namespace))

    def _all_known(self, found: argparse.Namespace, unknown: list[str]) -> argparse.Namespace:
        """What was found, if there is nothing else."""
        if unknown:
            known = self._options(found)
            meant = [did_you_mean(word.partition('=')[0], known) for word in unknown if word.startswith('-')]
            self.error(f'unrecognized arguments: {" ".join(unknown)}{"".join(meant)}')
        return found

    def _options(self, found: argparse.Namespace) -> list[str]:
        """Options of this parser and of the part that a command line chose."""
        known = []
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                known += action.choices[getattr(found, action.dest)]._options(found)
            elif action.help is not argparse.SUPPRESS:
                known += action.option_strings
        return known

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), map(str, action.choices))
            raise


class _AskForTracebacks(argparse.Action):
    """``--debug``; leaves nothing in the namespace."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{**given, 'dest': argparse.SUPPRESS, 'default': argparse.SUPPRESS})

    def __call__(self, *_: Any) -> None:
        ask_for_tracebacks()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` for the nearest of the known words, nothing if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f'; did you mean {near[0]}?' if near else ''
