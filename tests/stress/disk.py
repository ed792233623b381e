"""A disk that fills up during a save, during packing and while a video is written: nothing valid is lost."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from mmseg_unet_lyft.datasets.files import UNFINISHED, free_bytes
from mmseg_unet_lyft.datasets.packed import is_packed
from mmseg_unet_lyft.engine.checkpoint import best_checkpoint, saved_checkpoints

from . import common
from .common import Forked, Outcome, Progress

_FULL, _LIMIT = 'the disk is full', 'a write fails midway'
_DISK_BYTES = 64 << 20
_FRAMES, _FRAME_SIZE = 24, (128, 192)  # Of the video: noise, so that its file is large.
_LEAST = 0.02  # Least share of what a command writes that there is room for; the most is all but this.
# Of linux/sched.h and linux/mount.h.
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000


def stress(folder: Path, count: int, seed: int, progress: Progress) -> list[Outcome]:
    """Fill the disk under each command at so many moments; each must keep what was valid and end well later.

    Files of trials that failed stay, unless they were on the small disk.
    """
    random = np.random.default_rng((seed, 3))
    _make_undisturbed(folder)
    mounts = Forked(lambda: _mount_small_disk(folder, 1 << 20), folder / 'mount.txt').finish() == 0
    ways = [_FULL, _LIMIT] if mounts else [_LIMIT]
    tries = {'a save': _Trial.save, 'packing': _Trial.pack, 'a video': _Trial.label_video}
    plan = [(what, way) for what in tries for way in ways for _ in range(count)]
    found = {key: Outcome('disk', f'{key[0]}: {key[1]}') for key in plan}
    for number, (what, way) in enumerate(progress(plan, len(plan), 'filling disks')):
        trial = _Trial(folder, number, way, float(random.random()))
        found[what, way].note(trial.run_forked(tries[what]))
    return list(found.values())


def _make_undisturbed(folder: Path) -> None:
    """Draw frames and a folder of images, and run each command undisturbed."""
    images = folder / 'images'
    images.mkdir()
    random = np.random.default_rng(0)
    for number in range(_FRAMES):
        cv2.imwrite(str(images / f'{number}.png'), random.integers(0, 256, (*_FRAME_SIZE, 3), dtype=np.uint8))
    common.train_undisturbed('dropout', common.draw_frames(folder), folder / 'undisturbed run')
    pack = _pack_command(folder, folder / 'undisturbed packed')
    for arguments in (pack, _video_command(folder, folder / 'undisturbed video')):
        run = Forked(arguments, folder / 'output' / f'{arguments[0]}.txt')
        if run.finish() != 0:
            raise RuntimeError(f'{run.log}: an undisturbed {arguments[0]} ended with {run.code}')


def _pack_command(folder: Path, out: Path) -> list[str]:
    return ['prepare_data', str(folder / 'frames'), str(out), '--workers', '1']


def _video_command(folder: Path, out: Path) -> list[str]:
    model, images = best_checkpoint(str(folder / 'undisturbed run')), str(folder / 'images')
    return ['video', str(model), images, '--out', str(out), *'--overlay --labels --json --device cpu'.split()]


class _Trial:
    """A command on a disk that fills up; ``where``, from 0 to 1, says how far the command gets."""

    def __init__(self, folder: Path, number: int, way: str, where: float) -> None:
        self._folder, self._way, self._where = folder, way, where
        self._place = folder / f'trial_{number}'
        self._log = folder / f'trial_{number}_output' / 'output.txt'  # On another disk.

    def run_forked(self, work: Callable[[_Trial], list[str]]) -> list[str]:
        """All that is wrong after work in a process, which gets a disk of its own where it is to be full."""
        report = self._place.with_suffix('.json')
        self._place.mkdir()

        def run_trial() -> None:
            if self._way == _FULL:
                _mount_small_disk(self._place, _DISK_BYTES)
            report.write_text(json.dumps(work(self)))

        run = Forked(run_trial, report.with_suffix('.txt'))
        code = run.finish(4 * common.PATIENCE_SECONDS)
        return [f'{run.log}: ended with {code}'] if code != 0 else json.loads(report.read_text())

    def save(self) -> list[str]:
        """A training run whose disk fills up after its first save."""
        work_dir = self._place / 'run'
        run = self._train(work_dir)
        common.wait_until(lambda: bool(saved_checkpoints(work_dir)) or run.has_ended(), 120, 0.005)
        size = max((path.stat().st_size for path in saved_checkpoints(work_dir).values()), default=0)
        # In one of four trials the log finds no room, either.
        left = int(max(self._where - 0.25, 0) * 2 * size)
        with self._short(left, size // 3 + self._share(size * 2 // 3), run.pid):
            run.finish()
        wrong = self._unclear_error(run) + common.damaged_checkpoints(work_dir)
        wrong += [f'{path}: was left' for path in work_dir.rglob(f'*{UNFINISHED}')]
        kept = [*saved_checkpoints(work_dir), *work_dir.glob('best_*.pth')]
        if len(kept) < 1 + common.had_best(work_dir):
            wrong.append(f'{work_dir}: has lost a checkpoint')
        resumed = self._train(work_dir)
        if resumed.finish() != 0:
            return [*wrong, f'{resumed.log}: resumed, it ended with {resumed.code}']
        return wrong + common.differences(work_dir, self._folder / 'undisturbed run')

    def _train(self, work_dir: Path) -> Forked:
        return Forked(common.train_command('dropout', self._folder / 'frames', work_dir), self._log)

    def pack(self) -> list[str]:
        """Packing onto a disk that is too small, then with room, then again when nothing is left to do."""
        out, complete = self._place / 'packed', _contents(self._folder / 'undisturbed packed')
        arguments = _pack_command(self._folder, out)
        wrong = self._unclear_error(self._run_short(arguments, complete))
        if is_packed(out) and Forked(['prepare_data', str(out), '--verify'], self._log).finish() != 0:
            wrong.append(f'{out}: is marked as packed, but is not complete')
        run = Forked(arguments, self._log)
        if run.finish() != 0 or _contents(out) != complete:
            return [*wrong, f'{run.log}: with room, packing ended with {run.code} or other bytes']
        wrong += self._unclear_error(self._run_short(arguments, complete))
        return wrong + ([] if _contents(out) == complete else [f'{out}: was changed'])

    def label_video(self) -> list[str]:
        """A video's results on a disk that is too small, then with room."""
        out, complete = self._place / 'labelled', _contents(self._folder / 'undisturbed video')
        arguments = _video_command(self._folder, out)
        run = self._run_short(arguments, complete)
        wrong = self._unclear_error(run)
        if run.code and 'wrote ' in run.log.read_text():
            wrong.append(f'{run.log}: failed and reports results')
        # The video may be cut, and the JSON may have fewer frames.
        for name, content in _contents(out).items():
            if name.endswith('.json'):
                json.loads(content)
            elif name.endswith('.png') and content != complete[name]:
                wrong.append(f'{out / name}: was cut')
        run = Forked([*arguments, '--overwrite'], self._log)
        if run.finish() != 0 or _contents(out) != complete:
            wrong.append(f'{run.log}: with room, it ended with {run.code} or other results')
        return wrong

    def _run_short(self, arguments: list[str], complete: dict[str, bytes]) -> Forked:
        """Run a command to its end with room for a part of what it writes when complete."""
        sizes = [len(content) for content in complete.values()]
        with self._short(self._share(sum(sizes)), self._share(max(sizes))):
            run = Forked(arguments, self._log)
            run.finish()
        return run

    def _share(self, size: int) -> int:
        return int(size * (_LEAST + (1 - 2 * _LEAST) * self._where))

    @contextmanager
    def _short(self, left: int, largest: int, pid: int = 0) -> Iterator[None]:
        """Leave so many bytes free, or limit the size of files that a process (0: this one) writes."""
        if self._way == _LIMIT:
            import resource

            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest, hard))
            yield
            if not pid:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
            return
        ballast, room = self._place / 'ballast', free_bytes(self._place) - left
        with ballast.open('wb') as file:
            os.posix_fallocate(file.fileno(), 0, max(room, 1))
        yield
        ballast.unlink()

    def _unclear_error(self, run: Forked) -> list[str]:
        """What is wrong with the end of a command: a failure is one error that names a place on the disk."""
        if run.code == 0:
            return []
        output = run.log.read_text()
        last = output.strip().rpartition('\n')[2]
        is_clear = run.code == 2 and last.startswith('error: ') and str(self._place) in last
        wrong = [] if is_clear else [f'{run.log}: ended with {run.code}: {last}']
        return wrong + ([f'{run.log}: shows a traceback'] if 'Traceback' in output else [])


def _contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, by its relative path."""
    files = (path for path in sorted(folder.rglob('*')) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _mount_small_disk(folder: Path, size: int) -> None:
    """Mount an empty disk of so many bytes, for this process and those it starts; OSError if not allowed."""
    user, group = os.getuid(), os.getgid()
    _call('unshare', _CLONE_NEWUSER | _CLONE_NEWNS)
    for name, content in (('setgroups', 'deny'), ('uid_map', f'0 {user} 1'), ('gid_map', f'0 {group} 1')):
        Path('/proc/self', name).write_text(content)
    _call('mount', None, b'/', None, _MS_REC | _MS_PRIVATE, None)
    _call('mount', b'tmpfs', os.fsencode(folder), b'tmpfs', 0, f'size={size}'.encode())


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library that returns 0 on success."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        raise OSError(ctypes.get_errno(), name)
