"""The parts of the torture, one after another, each in a folder of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..bench.rounds import Show
from .outcome import Outcome
from .session import preload, require_forks
from .table import all_held


@dataclass(frozen=True)
class Plan:
    """How much of each part.

    Attributes:
        kills: Of a training run.
        ranks: Kills of one of two ranks.
        inputs: Damaged inputs.
        limits: Disks that fill up, of each kind.
        soak_minutes: Of training watched.
        judges_growth: Whether the soak is long enough to judge memory.
        seed: Of moments and damages.
    """

    kills: int
    ranks: int
    inputs: int
    limits: int
    soak_minutes: float
    judges_growth: bool
    seed: int


def torture(parts: Sequence[str], plan: Plan, out: Path, progress: Show) -> Iterator[list[Outcome]]:
    """Run parts, and yield what each found; the folder of one in which all held goes, others stay.

    Args:
        parts: Of ``kills``, ``ranks``, ``inputs``, ``disk``, ``soak``.
        plan: How much of each.
        out: Made if missing.
        progress: Wraps what is tried.

    Raises:
        InputError: On systems other than Linux, or if even an undisturbed run fails.
    """
    require_forks()
    # The results are of these small runs alone, which a variable of the user's must not change.
    os.environ.pop('LYFT_DATA_ROOT', None)
    preload()
    out.mkdir(parents=True, exist_ok=True)
    with _temporary_files():
        for part in parts:
            folder = Path(tempfile.mkdtemp(prefix=f'{part}_', dir=out)).resolve()
            outcomes = _torture_by(part, plan, folder, progress)
            if all_held(outcomes):
                shutil.rmtree(folder)
            yield outcomes


@contextmanager
def _temporary_files() -> Iterator[None]:
    """Give this process, and those it starts, a place for temporary files that goes: the killed leave some.

    Not below the results: the name of a socket, which workers make there, has but 108 bytes.
    """
    before = tempfile.tempdir, os.environ.get('TMPDIR')
    with tempfile.TemporaryDirectory(prefix='lyft_') as folder:
        tempfile.tempdir = os.environ['TMPDIR'] = folder
        try:
            yield
        finally:
            tempfile.tempdir = before[0]
            os.environ.pop('TMPDIR')
            os.environ.update({} if before[1] is None else dict(TMPDIR=before[1]))


def _torture_by(part: str, plan: Plan, folder: Path, progress: Show) -> list[Outcome]:
    """What one part found."""
    if part == 'kills':
        from .kills import torture_kills

        return torture_kills(folder, plan.kills, plan.seed, progress)
    if part == 'ranks':
        from .ranks import torture_ranks

        return torture_ranks(folder, plan.ranks, plan.seed, progress)
    if part == 'inputs':
        from .inputs import torture_inputs

        return torture_inputs(folder, plan.inputs, plan.seed, progress)
    if part == 'disk':
        from .disk import torture_disk

        return torture_disk(folder, plan.limits, plan.seed, progress)
    from .soak import torture_soak

    return torture_soak(folder, plan.soak_minutes, plan.judges_growth, progress)
