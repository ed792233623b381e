"""A disk that fills up during a save, during packing, and while a video is written: nothing good is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..bench.rounds import Show
from ..datasets.files import UNFINISHED
from ..datasets.packed import is_packed
from ..engine.checkpoint import best_checkpoint
from ..engine.saving import saved_checkpoints
from ..errors import InputError
from .outcome import Outcome
from .results import broken_results, contents
from .runs import (
    RUN_KINDS,
    differences,
    draw_frames,
    had_best,
    run_arguments,
    train_undisturbed,
    unsound_files,
)
from .session import PATIENCE_SECONDS, Forked, command
from .small_disk import can_mount, empty, fill, limit_files, mount_small_disk

FULL, LIMIT = 'the disk is full', 'a write fails midway'
_DISK_BYTES = 64 << 20
_FRAMES, _FRAME_SIZE = 24, (128, 192)  # Of the video: noise, so that its file is large.
_LEAST = 0.02  # Share of what a command writes that there is room for, at least; at most all but this.


def torture_disk(folder: Path, count: int, seed: int, progress: Show) -> list[Outcome]:
    """Fill the disk under each command at several places; what was good stays, and it ends well afterwards.

    Args:
        folder: For what is written; that of trials that failed stays, unless it was on the small disk.
        count: Places for each command and each way to fill a disk.
        seed: Of the places.
        progress: Wraps the trials.
    """
    random = np.random.default_rng((seed, 3))
    scene = _set_scene(folder)
    ways = [FULL, LIMIT] if can_mount(folder) else [LIMIT]
    trials = {'a save': _try_save, 'packing': _try_packing, 'a video': _try_video}
    plan = [(what, way) for what in trials for way in ways for _ in range(count)]
    found = {key: Outcome('disk', f'{key[0]}: {key[1]}') for key in plan}
    for number, (what, way) in enumerate(progress(plan, len(plan), 'filling disks')):
        place = folder / f'trial_{number}'
        place.mkdir()
        trial = Trial(scene, place, way, float(random.random()))
        wrong = _in_a_process(trials[what], trial)
        found[what, way].note(wrong)
    return list(found.values())


@dataclass(frozen=True)
class Scene:
    """What all trials start from, and what undisturbed commands made of it.

    Attributes:
        root: Drawn frames.
        frames: Folder of images for a video.
        run: Work dir of a training run.
        prepared: Folder of packed frames.
        labelled: Folder of a video's results.
    """

    root: Path
    frames: Path
    run: Path
    prepared: Path
    labelled: Path

    def packing(self, out: Path) -> list[str]:
        """The command line that packs."""
        return ['prepare_data', str(self.root), str(out), '--workers', '1']

    def labelling(self, out: Path) -> list[str]:
        """The command line that labels a video."""
        model = best_checkpoint(str(self.run))
        kinds = ['--overlay', '--labels', '--json']
        return ['video', str(model), str(self.frames), '--out', str(out), *kinds, '--device', 'cpu']


def _set_scene(folder: Path) -> Scene:
    """Draw frames, and run each command undisturbed."""
    names = ('noise', 'whole run', 'whole prepared', 'whole labelled')
    scene = Scene(draw_frames(folder), *(folder / name for name in names))
    scene.frames.mkdir()
    random = np.random.default_rng(0)
    for number in range(_FRAMES):
        frame = random.integers(0, 256, (*_FRAME_SIZE, 3), dtype=np.uint8)
        cv2.imwrite(str(scene.frames / f'{number}.png'), frame)
    train_undisturbed(RUN_KINDS[0], scene.root, scene.run)
    for arguments in (scene.packing(scene.prepared), scene.labelling(scene.labelled)):
        run = Forked(command(arguments), folder / 'output' / f'{arguments[0]}.txt')
        if run.finish():
            raise InputError(f'{run.log}: an undisturbed {arguments[0]} ended with {run.code}')
    return scene


@dataclass(frozen=True)
class Trial:
    """A command on a disk that fills up.

    Attributes:
        scene: What it works on.
        place: Folder on that disk.
        way: `FULL` or `LIMIT`.
        where: How far the command comes, from 0 to 1.
    """

    scene: Scene
    place: Path
    way: str
    where: float

    @property
    def log(self) -> Path:
        """Where output goes: to another disk."""
        return self.place.with_name(f'{self.place.name}_output') / 'output.txt'

    def share(self, size: int) -> int:
        """That part of a size for which there is room."""
        return int(size * (_LEAST + (1 - 2 * _LEAST) * self.where))

    def run(self, arguments: list[str], prepare: Callable[[], object] = lambda: None) -> Forked:
        """Start a command."""
        return Forked(command(arguments, prepare), self.log)

    def run_short(self, arguments: list[str], undisturbed: Path) -> Forked:
        """Run a command to its end with room for a part of what it writes."""
        sizes = [len(content) for content in contents(undisturbed).values()]
        if self.way == FULL:
            with short_of_room(self.place, self.share(sum(sizes))):
                run = self.run(arguments)
                run.finish()
            return run
        run = self.run(arguments, limit_files(self.share(max(sizes))))
        run.finish()
        return run

    def untold(self, run: Forked) -> list[str]:
        """What an ended command did not tell as it should."""
        if not run.code:
            return []
        output = run.output()
        last = output.strip().rpartition('\n')[2]
        told = run.code == 2 and last.startswith('error: ') and str(self.place) in last
        wrong = [] if told else [f'{run.log}: ended with {run.code}: {last}']
        return wrong + ([f'{run.log}: shows a traceback'] if 'Traceback' in output else [])


@contextmanager
def short_of_room(place: Path, left: int) -> Iterator[None]:
    """Leave so many bytes free on a disk as long as the context is."""
    fill(place, left)
    try:
        yield
    finally:
        empty(place)


def _in_a_process(work: Callable[[Trial], list[str]], trial: Trial) -> list[str]:
    """What is wrong behind a trial, which gets a disk of its own where it is to be full."""
    report = trial.place.with_suffix('.json')

    def run_trial() -> None:
        if trial.way == FULL:
            mount_small_disk(trial.place, _DISK_BYTES)
        report.write_text(json.dumps(work(trial)))

    run = Forked(run_trial, report.with_suffix('.txt'))
    if run.finish():
        return [f'{run.log}: the trial itself ended with {run.code}']
    return json.loads(report.read_text())


def _try_save(trial: Trial) -> list[str]:
    """A training run on a disk that fills up behind its first save."""
    scene, work_dir = trial.scene, trial.place / 'run'
    arguments = run_arguments(RUN_KINDS[0], scene.root, work_dir)
    run = trial.run(arguments)
    end = time.monotonic() + PATIENCE_SECONDS
    while not saved_checkpoints(work_dir) and not run.has_ended() and time.monotonic() < end:
        time.sleep(0.005)
    size = max((path.stat().st_size for path in saved_checkpoints(work_dir).values()), default=0)
    if trial.way == FULL:
        # The log and the figures find no room, either, in one of four.
        with short_of_room(trial.place, int(max(trial.where - 0.25, 0) * 2 * size)):
            run.finish()
    else:
        limit_files(size // 3 + trial.share(size * 2 // 3), run.pid)()
        run.finish()
    wrong = trial.untold(run) + unsound_files(work_dir) + _left(work_dir)
    if not saved_checkpoints(work_dir) or (had_best(work_dir) and not list(work_dir.glob('best_*.pth'))):
        wrong.append(f'{work_dir}: has lost a checkpoint')
    resumed = trial.run(run_arguments(RUN_KINDS[0], scene.root, work_dir))
    if resumed.finish():
        return [*wrong, f'{resumed.log}: resumed, it ended with {resumed.code}']
    return wrong + differences(work_dir, scene.run)


def _left(folder: Path) -> list[str]:
    """Files that were begun and are still there."""
    return [f'{path}: was left' for path in folder.rglob(f'*{UNFINISHED}')]


def _try_packing(trial: Trial) -> list[str]:
    """Packing onto a disk that is too small, then with room, then again where nothing is left to do."""
    scene, out = trial.scene, trial.place / 'prepared'
    whole = contents(scene.prepared)
    wrong = trial.untold(trial.run_short(scene.packing(out), scene.prepared))
    if is_packed(out) and trial.run(['prepare_data', str(out), '--verify']).finish():
        wrong.append(f'{out}: says it is packed, and is not')
    run = trial.run(scene.packing(out))
    if run.finish() or contents(out) != whole:
        return [*wrong, f'{run.log}: with room, packing ended with {run.code} or other bytes']
    again = trial.run_short(scene.packing(out), scene.prepared)
    return wrong + trial.untold(again) + ([] if contents(out) == whole else [f'{out}: was changed'])


def _try_video(trial: Trial) -> list[str]:
    """A video's results on a disk that is too small, then with room."""
    scene, out = trial.scene, trial.place / 'labelled'
    run = trial.run_short(scene.labelling(out), scene.labelled)
    wrong = trial.untold(run) + broken_results(out)
    run = trial.run([*scene.labelling(out), '--overwrite'])
    if run.finish() or contents(out) != contents(scene.labelled):
        wrong.append(f'{run.log}: with room, it ended with {run.code} or other results')
    return wrong
