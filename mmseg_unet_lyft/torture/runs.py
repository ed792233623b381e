"""The small training runs that are tortured, and whether two of them ended alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..datasets.scenes import SceneRecipe, write_scenes
from ..engine.checkpoint import read_checkpoint
from ..engine.saving import is_intact, saved_checkpoints
from ..errors import InputError
from .session import Forked, command

STEPS, INTERVAL = 12, 3
_DRIVES = ('F1', 'F62', 'F3', 'F2')  # Of all three parts.
_SIZE = (64, 96)
_OPTIONS = (
    'image_scale_wh=(48,32)',
    'crop_size=(32,32)',
    'base_channels=2',
    'batch_size=2',
    'warmup_iters=2',
    f'max_iters={STEPS}',
    f'val_interval={INTERVAL}',
)
_BEST_SAVED = 'is saved to best_'  # In mmengine's log, behind the save.


def draw_frames(folder: Path) -> Path:
    """A data root of a few small drawn frames below a folder."""
    root = folder / 'frames'
    write_scenes(root, SceneRecipe(_DRIVES, 3, 0, *_SIZE), workers=1)
    return root


@dataclass(frozen=True)
class RunKind:
    """A kind of run.

    Attributes:
        name: For messages.
        config: Of the package.
        options: Knobs beyond those that make it small.
    """

    name: str
    config: str
    options: tuple[str, ...] = ()


RUN_KINDS = (
    RunKind('dropout', 'unet_lyft.py'),
    RunKind('average, accumulation', 'unet_lyft_bn.py', ('ema_momentum=0.25', 'accumulate=2')),
)


def run_arguments(kind: RunKind, root: Path, work_dir: Path, *options: str) -> list[str]:
    """The command line of a run that starts, or goes on where anything was saved."""
    places = ['--data-root', str(root), '--work-dir', str(work_dir), '--device', 'cpu']
    # A run that was killed before its first save has nothing to go on from.
    start = ['--resume'] if saved_checkpoints(work_dir) else ['--seed', '0']
    return ['train', kind.config, *places, *start, '--cfg-options', *_OPTIONS, *kind.options, *options]


def train_undisturbed(kind: RunKind, root: Path, work_dir: Path) -> None:
    """Train a run that nothing disturbs.

    Raises:
        InputError: If it fails all the same; then there is nothing to compare with.
    """
    run = Forked(command(run_arguments(kind, root, work_dir)), log_of(work_dir))
    code = run.finish()
    if code or not saved_checkpoints(work_dir):
        raise InputError(
            f'{work_dir}: an undisturbed run ended with {code}; its output is in {log_of(work_dir)}'
        )


def log_of(work_dir: Path) -> Path:
    """Where the output of the runs in a work dir goes."""
    return work_dir.with_name(f'{work_dir.name}_output') / 'output.txt'


def differences(work_dir: Path, undisturbed: Path) -> list[str]:
    """What an ended run has otherwise than the undisturbed one: weights to the bit, best checkpoint, step."""
    last = f'iter_{STEPS}.pth'
    wanted = [last, *sorted(path.name for path in undisturbed.glob('best_*.pth'))]
    found = []
    for name in wanted:
        if not (work_dir / name).is_file():
            found.append(f'{work_dir / name}: not there')
            continue
        pair = [read_checkpoint(str(folder / name)) for folder in (work_dir, undisturbed)]
        for part in ('state_dict', 'ema_state_dict'):
            found += [
                f'{work_dir / name}: {line}' for line in _unequal(*(one.get(part) or {} for one in pair))
            ]
    return found


def _unequal(found: dict, expected: dict) -> list[str]:
    """A line if weights are not the same, by name and to the bit."""
    if found.keys() != expected.keys():
        return ['has other weights than the undisturbed run']
    other = [name for name, weight in expected.items() if not torch.equal(found[name], weight)]
    return [f'{len(other)} weights differ from the undisturbed run ({other[0]}, ...)'] if other else []


def unsound_files(work_dir: Path) -> list[str]:
    """Checkpoints that are not what was saved, at any moment of a run."""
    found = []
    for path in sorted(work_dir.glob('*.pth')):
        if is_intact(path) is not True:
            found.append(f'{path}: is not what its checksum says')
            continue
        try:
            read_checkpoint(str(path))
        except InputError as error:
            found.append(str(error))
    return found


def had_best(work_dir: Path) -> bool:
    """Whether a best checkpoint was ever saved in a work dir, as its logs say."""
    return any(_BEST_SAVED in log.read_text(errors='replace') for log in work_dir.glob('*/*.log'))
