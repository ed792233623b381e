"""The commands' shared console: parser, output, progress, errors, signals."""

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, TextIO

from .. import __version__
from ..errors import did_you_mean, find_input_error, message_of, printable, remedy_of
from ..processes import end_rank, is_first, plain_loading, take_place, this_process

EXIT_INPUT_ERROR = 2
EXIT_DEFECT = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130
_PACKAGE = Path(__file__).resolve().parents[1]
_DEBUG = 'LYFT_DEBUG'
_TAB = '\t'
_FIRST_SPEAKS_SECONDS = 30.0
# A progress line after each tenth of the work, but at least 1 s and at most 30 s apart.
_LINE_SECONDS = (1.0, 30.0)
# Next to another busy process, OpenMP's threads would spin while the thread they wait for is not running.
# Torch reads this when it is imported, in child processes too.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')


class CommandParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` with ``--version`` and ``--debug`` that suggests corrections of mistyped options.

    The description keeps its line breaks.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**{'formatter_class': argparse.RawDescriptionHelpFormatter, **given})
        self.add_argument('--version', action='version', version=f'mmseg_unet_lyft {__version__}')
        self.add_argument(
            '--debug', action='store_true', default=argparse.SUPPRESS, help='show tracebacks of errors'
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        """The parsed command line; exits with 2 if it is wrong."""
        return self._all_known(*self.parse_known_args(args, namespace))

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        """As `parse_args`, but options may stand between positional arguments."""
        return self._all_known(*self.parse_known_intermixed_args(args, namespace))

    def _all_known(self, found: argparse.Namespace, unknown: list[str]) -> argparse.Namespace:
        if unknown:
            known = self._options(found)
            meant = [did_you_mean(word.partition('=')[0], known) for word in unknown if word.startswith('-')]
            self.error(f'unrecognized arguments: {" ".join(unknown)}{"".join(meant)}')
        if 'debug' in found:
            show_tracebacks()
        return found

    def error(self, message: str) -> NoReturn:
        """Report a wrong command line, in which names of files may be anything, and exit with 2."""
        super().error(printable(message))

    def _options(self, found: argparse.Namespace) -> list[str]:
        """Options of this parser and of the chosen subcommand."""
        known = []
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                known += action.choices[getattr(found, action.dest)]._options(found)
            elif action.help is not argparse.SUPPRESS:
                known += action.option_strings
        return known


def say(*lines: str) -> None:
    """Write lines to stdout at once, also into a pipe; of several ranks only the first writes."""
    if not is_first():
        return
    try:
        sys.stdout.writelines(f'{printable(line, keep=_TAB)}\n' for line in lines)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would fail again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


@contextmanager
def only_data_on_stdout() -> Iterator[TextIO]:
    """Reserve standard output for data; other output, of libraries too, goes to stderr meanwhile."""
    sys.stdout.flush()
    data = os.fdopen(os.dup(1), 'w', encoding='utf-8')
    data.buffer.raw.name = 'standard output'
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield data
    finally:
        os.dup2(data.fileno(), 1)
        # If the reader has ended, the writer has reported it.
        with suppress(OSError):
            data.close()


@contextmanager
def counting(total: int | None, what: str) -> Iterator[Callable[[], None]]:
    """A function that counts one item, with progress and ETA on stderr: a bar on a terminal, else lines.

    Args:
        total: Number of items, None if unknown.
        what: The work, as the line's first word.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_interactive:
        lines = ProgressLines(total, what)
        phase(lambda: f'{what}, {lines.done} done')
        yield lines.count
        lines.close()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = ('{task.description}', BarColumn(), MofNCompleteColumn(), TextColumn('{task.fields[rate]}'))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(what, total=total, rate='')
        phase(lambda: f'{what}, {progress.tasks[0].completed:.0f} done')

        def count() -> None:
            speed = progress.tasks[0].speed
            progress.update(task, advance=1, rate=f'{speed:.3g} a second' if speed else '')

        yield count


def progress(items: Iterable, total: int | None, what: str) -> Iterator:
    """The items, with progress as in `counting` while they are consumed."""
    with counting(total, what) as count:
        for item in items:
            yield item
            count()


class ProgressLines:
    """Lines on stderr with the items done, the rate and the time left; arguments as in `counting`."""

    def __init__(self, total: int | None, what: str) -> None:
        self._total, self._what = total, what
        self.done = self._shown = 0
        self._start = self._shown_at = time.monotonic()

    def count(self) -> None:
        """Count one item."""
        self.done += 1
        now, total = time.monotonic(), self._total
        is_tenth = total is not None and 10 * (self.done - self._shown) >= total
        if now - self._shown_at >= _LINE_SECONDS[not is_tenth] and self.done != total:
            self._shown, self._shown_at = self.done, now
            rate = self.done / (now - self._start)
            of = f' of {total}, {100 * self.done // total} %' if total else ''
            seconds = round((total - self.done) / rate) if total else -1  # A total may be an estimate.
            left = f', {timedelta(seconds=seconds)} left' if seconds >= 0 else ''
            self._write(f'{self.done}{of}, {rate:.3g} a second{left}')

    def close(self) -> None:
        """Write the last line."""
        seconds = time.monotonic() - self._start
        took, rate = timedelta(seconds=round(seconds)), self.done / max(seconds, 1e-9)
        self._write(f'{self.done} in {took}, {rate:.3g} a second')

    def _write(self, text: str) -> None:
        sys.stderr.write(f'{self._what}: {text}\n')
        sys.stderr.flush()


class Stop(threading.Event):
    """Event set by a signal; ``exit_code`` is then 128 + the signal's number, as shells expect, else 0."""

    exit_code = 0


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """An event set by Ctrl-C or SIGTERM, so that work can finish; a second signal interrupts at once."""
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.exit_code = 128 + number
        stop.set()

    # Only the main thread may handle signals.
    watched = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, handle) for number in watched}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_phase: str | Callable[[], str] = ''


def phase(doing: str | Callable[[], str]) -> None:
    """Note what the command does from now on, as a text or a function that returns it, for `_describe`."""
    global _phase
    _phase = doing


def show_tracebacks() -> None:
    """Show errors with their tracebacks from now on, in child processes too."""
    os.environ[_DEBUG] = '1'


def _shows_tracebacks() -> bool:
    return os.environ.get(_DEBUG, '0') not in ('', '0')


def _place(trace: TracebackType | None) -> str:
    """File, line and function of the innermost frame in this package, else of the innermost frame."""
    frames = traceback.extract_tb(trace)
    inside = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)]
    frame = (inside or frames)[-1]
    path = Path(frame.filename).relative_to(_PACKAGE.parent) if inside else frame.filename
    return f'{path}:{frame.lineno}, {frame.name}'


def _keep(lines: str) -> Path | None:
    """Write a traceback to a temporary file; its path, or None if that failed."""
    try:
        with tempfile.NamedTemporaryFile(
            'w', encoding='utf-8', errors='replace', prefix='mmseg_unet_lyft-', suffix='.txt', delete=False
        ) as file:
            file.write(lines)
    except OSError:
        return None
    return Path(file.name)


def _describe(error: Exception) -> tuple[int, str]:
    """Exit code and message of what ended a command."""
    mistake = find_input_error(error) if isinstance(error, ValueError) else None
    if mistake is not None:
        return EXIT_INPUT_ERROR, f'error: {mistake}'
    remedy, doing = remedy_of(error), _phase() if callable(_phase) else _phase
    said = f'{doing}: {message_of(error)}' if doing else message_of(error)
    kept = None if _shows_tracebacks() else _keep(''.join(traceback.format_exception(error)))
    where = f'; its traceback: {kept}, or with --debug' if kept else ''
    if remedy is not None:
        return EXIT_INPUT_ERROR, printable(f'error: {said}{remedy and f"; {remedy}"}{where}')
    said = f'{said} ({_place(error.__traceback__)}). This is not your mistake; please report it'
    return EXIT_DEFECT, printable(f'defect: {said}{where}')


def guarded(command: Callable[[list[str] | None], int | None]) -> Callable[[list[str] | None], int]:
    """A command's ``main(argv=None)``: returns an exit code, and reports what ended it as one message.

    With an InputError, or an error whose cause is known to be the input or the machine, the code is 2. Others
    are defects: they are raised to a caller with ``argv``; without it, for a process, the code is 70. Before
    the ranks join, an error is reported once per machine; later, by the rank that finds it.
    """

    def main(argv: list[str] | None = None) -> int:
        take_place('none')
        phase('')
        for stream in (sys.stdout, sys.stderr):
            # Terminals and pipes may take ASCII only.
            if hasattr(stream, 'reconfigure'):
                stream.reconfigure(errors='backslashreplace')
        try:
            # Files that libraries load in here cannot run code.
            with plain_loading():
                code = command(argv) or 0
            end_rank(code)
            return code
        except KeyboardInterrupt:
            sys.stderr.write('interrupted\n')
            return EXIT_INTERRUPTED
        except Exception as error:
            code, line = _describe(error)
            if code == EXIT_DEFECT and argv is not None:
                raise
            if this_process.local_rank and not this_process.has_joined():
                # The launcher ends all ranks once one has ended, so this machine's first rank gets time to
                # report; if it has nothing to report, this one does.
                time.sleep(_FIRST_SPEAKS_SECONDS)
            if _shows_tracebacks():
                traceback.print_exception(error)
            rank = '' if is_first() else f'rank {this_process.rank}: '
            sys.stderr.write(f'{rank}{line}\n')
            return code

    main.__doc__ = command.__doc__
    return main
