"""Forked commands, the small training runs that are disturbed, and the outcomes of all parts."""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import torch

import mmseg_unet_lyft
from mmseg_unet_lyft.__main__ import main
from mmseg_unet_lyft.compat import require_stack
from mmseg_unet_lyft.engine.checkpoint import is_intact, read_checkpoint, saved_checkpoints
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.synthetic.scenes import SceneRecipe, write_scenes

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 120.0  # For a command that takes three.
STEPS, INTERVAL = 12, 3
RUN_KINDS = {
    'dropout': ('unet_lyft.py', ()),
    'average, accumulation': ('unet_lyft_bn.py', ('ema_momentum=0.25', 'accumulate=2')),
}
Progress = Callable[[Iterable, int, str], Iterable]
Work = list[str] | Callable[[], int | None]

_DRIVES = ('F1', 'F62', 'F3', 'F2')  # Of all three splits.
_SMALL = (
    'image_scale_wh=(48,32) crop_size=(32,32) base_channels=2 batch_size=2 warmup_iters=2 '
    f'max_iters={STEPS} val_interval={INTERVAL}'
).split()


@dataclass
class Outcome:
    """A row of the table: what was tried, how often it held, and a line on each failure."""

    part: str
    what: str
    tried: int = 0
    held: int = 0
    failures: list[str] = field(default_factory=list)

    def note(self, wrong: list[str]) -> None:
        """Count one case, with all that was wrong in it."""
        self.tried += 1
        self.held += not wrong
        self.failures += wrong


def preload() -> None:
    """Import all that commands need and keep to one thread, so that a fork starts at once and is safe."""
    require_stack()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    modules = [module.name for module in pkgutil.walk_packages(mmseg_unet_lyft.__path__, 'mmseg_unet_lyft.')]
    for name in (*modules, 'matplotlib.pyplot', 'torch._dynamo', 'av'):
        importlib.import_module(name)


def tracebacks(log: Path) -> list[str]:
    """A line if a traceback, which no message may be, is in a command's output."""
    is_there = 'Traceback (most recent call last)' in log.read_text(encoding='utf-8', errors='replace')
    return [f'{log}: holds a traceback'] if is_there else []


class Forked:
    """A command line of the package, or a function that returns an exit code, in a forked process.

    The process leads a session; ``code`` is its exit code, -n for signal n, None while it runs.
    """

    def __init__(self, work: Work, log: Path, prepare: Callable[[], object] = lambda: None) -> None:
        self.code: int | None = None
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self.pid = os.fork()
        if not self.pid:
            self._become(work if callable(work) else lambda: main(work), prepare)

    def _become(self, work: Callable[[], int | None], prepare: Callable[[], object]) -> None:
        """In the forked process: work and end; never returns."""
        code = 1
        try:
            os.setsid()
            output = self.log.open('a', encoding='utf-8', buffering=1)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            # A thread of the parent may have held the locks of the parent's stdout and stderr.
            sys.stdout = sys.stderr = output
            prepare()
            code = work() or 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            # Nothing of the parent may run on in this process, so a traceback is printed here.
            if sys.exc_info()[0] is not None:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)

    def has_ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int | None:
        """Its exit code, or None if it runs on after these seconds."""
        wait_until(self.has_ended, seconds, 0.005)
        return self.code

    def kill(self) -> bool:
        """SIGKILL the process, not its workers; whether this ended it."""
        if not self.has_ended():
            os.kill(self.pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def finish(self, seconds: float = PATIENCE_SECONDS) -> int | None:
        """Its exit code; None if it hangs for so long, in which case it is killed with its workers."""
        code = self.wait(seconds)
        if code is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()
        return code


def wait_until(condition: Callable[[], bool], seconds: float, poll_seconds: float = 0.02) -> None:
    """Wait for a condition, at most so long."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(poll_seconds)


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the name, which may hold blanks; empty if the process has ended."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def running_processes(session: int | None = None) -> list[int]:
    """All processes, or those of a session, that have not ended; zombies have."""
    stats = {int(place.name): _stat(int(place.name)) for place in Path('/proc').glob('[0-9]*')}
    return [
        pid
        for pid, fields in stats.items()
        if fields and fields[0] != 'Z' and session in (None, int(fields[3]))
    ]


def draw_frames(folder: Path) -> Path:
    """A data root of a few small synthetic frames in a folder."""
    root = folder / 'frames'
    write_scenes(root, SceneRecipe(_DRIVES, 3, 0, 64, 96), workers=1)
    return root


def train_command(kind: str, root: Path, work_dir: Path, *options: str) -> list[str]:
    """The command line that starts a run of `RUN_KINDS`, or resumes it if it has a checkpoint."""
    config, own_options = RUN_KINDS[kind]
    places = ['--data-root', str(root), '--work-dir', str(work_dir), '--device', 'cpu']
    start = ['--resume'] if saved_checkpoints(work_dir) else ['--seed', '0']
    return ['train', config, *places, *start, '--cfg-options', *_SMALL, *own_options, *options]


def train_undisturbed(kind: str, root: Path, work_dir: Path) -> None:
    """Train the run that others are compared with."""
    run = Forked(train_command(kind, root, work_dir), log_of(work_dir))
    if run.finish() != 0 or not saved_checkpoints(work_dir):
        raise RuntimeError(f'{run.log}: an undisturbed run ended with {run.code}')


def log_of(work_dir: Path) -> Path:
    """Where the output of a work dir's runs goes."""
    return work_dir.with_name(f'{work_dir.name}_output') / 'output.txt'


def differences(work_dir: Path, undisturbed: Path) -> list[str]:
    """A line on each weight file of a finished run that is not, to the bit, that of the undisturbed run."""
    found = []
    for name in (f'iter_{STEPS}.pth', *sorted(path.name for path in undisturbed.glob('best_*.pth'))):
        if not (work_dir / name).is_file():
            found.append(f'{work_dir / name}: missing')
            continue
        run, expected = (read_checkpoint(str(folder / name)) for folder in (work_dir, undisturbed))
        for part in ('state_dict', 'ema_state_dict'):
            weights, wanted = run.get(part) or {}, expected.get(part) or {}
            if weights.keys() != wanted.keys():
                found.append(f'{work_dir / name}: other names in {part} than in the undisturbed run')
            elif other := [key for key in wanted if not torch.equal(weights[key], wanted[key])]:
                found.append(f'{work_dir / name}: {len(other)} weights differ ({other[0]}, ...)')
    return found


def damaged_checkpoints(work_dir: Path) -> list[str]:
    """A line on each checkpoint that is not what was saved; at any moment of a run there must be none."""
    found = []
    for path in sorted(work_dir.glob('*.pth')):
        if is_intact(path) is not True:
            found.append(f'{path}: does not match its checksum')
            continue
        try:
            read_checkpoint(str(path))
        except InputError as error:
            found.append(str(error))
    return found


def had_best(work_dir: Path) -> bool:
    """Whether a best checkpoint was ever saved in a work dir, as its logs say."""
    return any('is saved to best_' in log.read_text(errors='replace') for log in work_dir.glob('*/*.log'))
