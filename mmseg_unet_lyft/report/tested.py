"""What the tests were run on: one table, which the README repeats and the doctor compares a machine with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tested:
    """A row of the table.

    Attributes:
        where: The row's first cell, as the README has it.
        what: Its second cell: what was run there.
        python: Versions of Python, major and minor.
        torch: Of torch, in the same way; '' of a row without.
        stack: ``'onedl'`` or ``'openmmlab'``; '' of a row without.
        system: As ``platform.system`` says it; '' where nothing was run.
        machine: As ``platform.machine`` says it.
    """

    where: str
    what: str
    python: tuple[str, ...] = ()
    torch: str = ''
    stack: str = ''
    system: str = ''
    machine: str = 'x86_64'

    def differences(self, python: str, torch: str, stack: str, system: str, machine: str) -> list[str]:
        """In what a machine differs from this row; empty if in nothing."""
        pairs = (
            (f'Python {python}', python in self.python),
            (f'torch {torch}', torch == self.torch),
            (f'the {stack} stack', stack == self.stack),
            (f'{system} {machine}', (system, machine) == (self.system, self.machine)),
        )
        return [what for what, is_same in pairs if not is_same]


TESTED = (
    Tested(
        'Linux x86-64, Python 3.11, torch 2.13 CPU, OneDL stack',
        'the whole test suite',
        python=('3.11',),
        torch='2.13',
        stack='onedl',
        system='Linux',
    ),
    Tested(
        'Linux x86-64, Python 3.10.13 and 3.12.1, torch 2.13, on the CPU, OneDL stack',
        'the tests marked `stack`',
        python=('3.10', '3.12'),
        torch='2.13',
        stack='onedl',
        system='Linux',
    ),
    Tested('Python 3.13', 'the lock file resolves; not run'),
    Tested(
        'Linux x86-64, Python 3.11, torch 2.13 CPU, OpenMMLab stack (mmseg 1.2.2, mmcv-lite 2.1.0, mmengine '
        '0.10.7)',
        'the tests marked `stack`',
        python=('3.11',),
        torch='2.13',
        stack='openmmlab',
        system='Linux',
    ),
    Tested('OpenMMLab stack with mmcv compiled', 'not run'),
    Tested('a GPU, several GPUs, several machines, Slurm, macOS, Windows', 'not run'),
)


def table() -> str:
    """The table in Markdown, as the README has it."""
    rows = [f'| {row.where} | {row.what} |' for row in TESTED]
    return '\n'.join(['| run on | |', '|---|---|', *rows])


def nearest(python: str, torch: str, stack: str, system: str, machine: str) -> tuple[Tested, list[str]]:
    """The row that is most like a machine, and in what the machine differs from it."""
    rows = [row for row in TESTED if row.system]
    found = [(row, row.differences(python, torch, stack, system, machine)) for row in rows]
    return min(found, key=lambda pair: len(pair[1]))
