"""Saving a run: checkpoints whole and with their checksums, the old ones gone only once the new are safe."""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from ..datasets.files import UNFINISHED, free_bytes, sync, taken_bytes, write_json, write_whole
from ..errors import InputError
from ..report.run_cards import card_file
from .run_card import describe_run, scores_of

CHECKSUM = '.sha256'  # Suffix behind a checkpoint's name, as `sha256sum -c` reads it.
BACKEND = 'LyftWholeFiles'
WRAPPER = 'optim_wrapper'  # In the message hub: the type of the optimizer's wrapper, and so the precision.
VALIDATED = 'validated_iter'  # In the message hub: behind which step validation was done last.


def checksum_file(path: Path) -> Path:
    """Where a checkpoint's checksum stands."""
    return path.with_name(path.name + CHECKSUM)


def companions(path: Path) -> list[Path]:
    """What stands beside a checkpoint, and goes where it goes: its checksum and its run card."""
    return [checksum_file(path), card_file(path)]


def is_intact(path: Path) -> bool | None:
    """Whether a checkpoint is what was written; None where no checksum is beside it."""
    beside = checksum_file(path)
    if not beside.is_file() or not path.is_file():
        return None
    lines = beside.read_text(encoding='utf-8', errors='replace').splitlines()
    listed = {line.split()[0] for line in lines if line.split()}
    with path.open('rb') as file:
        return hashlib.sha256(file.read()).hexdigest() in listed


def write_with_checksum(path: Path, content: bytes) -> None:
    """Write a file whole, with its checksum beside it.

    At every moment the file under this name, old or new, has its checksum among those listed.

    Raises:
        InputError: If there is no room for it, or it cannot be written; what was there stays.
    """
    room = free_bytes(path.parent)
    if room < len(content):
        raise InputError(
            f'{path}: needs {len(content) / 1e6:.0f} MB, and the disk has {room / 1e6:.0f} MB left; make '
            'room and go on with --resume. The checkpoints saved before are whole'
        )
    beside = checksum_file(path)
    line = f'{hashlib.sha256(content).hexdigest()}  {path.name}\n'.encode()
    # What stands there may be damaged: no text, or cut within its line.
    before = beside.read_bytes().splitlines() if beside.is_file() and path.is_file() else []
    write_whole(beside, b''.join([*(old + b'\n' for old in before), line]))
    write_whole(path, content)
    sync(path.parent)
    if before:
        write_whole(beside, line)


class WholeFiles(LocalBackend):
    """mmengine's local files, but there whole or not at all, each with its checksum beside it."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes; errors as in `write_with_checksum`."""
        write_with_checksum(Path(filepath), obj)

    def remove(self, filepath: str | Path) -> None:
        """Remove a file, then what stands beside it."""
        super().remove(filepath)
        for beside in companions(Path(filepath)):
            beside.unlink(missing_ok=True)


register_backend(BACKEND, WholeFiles, force=True)


def check_room(folder: Path, weights_bytes: int, max_kept: int, num_best: int) -> None:
    """Raise an InputError unless the disk has room for all the checkpoints that will lie there at once.

    Args:
        folder: Where they will lie.
        weights_bytes: Size of the model's weights.
        max_kept: ``max_keep_ckpts`` of the checkpoint hook.
        num_best: How many metrics keep a best checkpoint of their own.
    """
    # Weights and two moments, one more with a moving average; the best, and the one being written, too.
    needed = weights_bytes * (4 * ((max_kept if max_kept > 0 else 2) + 1) + 2 * num_best)
    room = free_bytes(folder) + taken_bytes(path for path in folder.glob('*.pth') if path.is_file())
    if room < needed:
        raise InputError(
            f'{folder}: checkpoints of this model take about {needed / 1e6:.0f} MB, and the disk has '
            f'{room / 1e6:.0f} MB left; make room, or name another --work-dir'
        )


@HOOKS.register_module()
class LyftCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, which can be killed at any moment without losing what was good.

    - Files are written whole, with a checksum beside (`WholeFiles`).
    - Old checkpoints, and the best one before, are removed once their successors are safe.
    - Behind each validation the last checkpoint is saved again, so that it knows that it was done.
    - A work dir may be moved: the best checkpoint is looked for in it.
    - Beside each stands its run card. A run that starts anew sets those of an earlier run aside.
    - With accumulated gradients, which are not saved, saves wait for the step that uses them.

    Args:
        kwargs: As in mmengine's ``CheckpointHook``.

    Attributes:
        saved_step: Behind which step the run was saved last, None before.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**dict(backend_args=dict(backend=BACKEND)) | kwargs)
        self._is_owed = False
        self._knows_validation = False
        self.saved_step: int | None = None
        self.card: dict[str, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Look for the best checkpoint in the present work dir, and check that the disk has room."""
        super().before_train(runner)
        self.saved_step = runner.iter or None
        runner.message_hub.update_info(WRAPPER, type(runner.optim_wrapper).__name__)
        if self.save_best is not None:
            for key, path in self._best().items():
                self._set_best(key, path and str(Path(self.out_dir) / Path(path).name))
        if is_main_process():
            remove_unfinished(Path(self.out_dir))
            if not runner.iter:
                for line in set_aside(Path(self.out_dir)):
                    runner.logger.info(line)
            self.card = describe_run(runner)
        self._check_room(runner)

    def _check_room(self, runner: Runner) -> None:
        """Raise an InputError unless the disk has room for what will lie there at once."""
        weights = sum(weight.numel() * weight.element_size() for weight in runner.model.state_dict().values())
        check_room(Path(self.out_dir), weights, self.max_keep_ckpts, len(self._best()))

    def after_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Save where it is time to, and an update of the weights was made."""
        is_time = self.every_n_train_iters(runner, self.interval, self.save_begin)
        is_last = self.save_last and self.is_last_train_iter(runner)
        self._is_owed |= is_time or is_last
        if not self.by_epoch and self._is_owed and (is_update(runner) or is_last):
            runner.logger.info('saving behind step %d', runner.iter + 1)
            self.save_now(runner)

    def save_now(self, runner: Runner) -> None:
        """Save the run as it stands behind the present step; to be called in ``after_train_iter``."""
        self._is_owed = False
        self._save_checkpoint(runner)

    def save_before_step(self, runner: Runner) -> None:
        """Save the run as it stands before the present step, which is not made."""
        self._save_checkpoint_with_step(runner, runner.iter, dict(epoch=runner.epoch, iter=runner.iter))

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Note that validation was done, keep a new best, and save the run with both."""
        runner.message_hub.update_info(VALIDATED, runner.iter)
        self._knows_validation = False
        super().after_val_epoch(runner, metrics)
        # With a new best, mmengine has saved it again already.
        is_last = self.last_ckpt and Path(self.last_ckpt).name == self.filename_tmpl.format(runner.iter)
        if self._knows_validation or not is_last:
            return
        self.save_before_step(runner)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        if not is_update(runner):
            # A new best between two updates: the save that uses the gradients will know of it.
            self._is_owed = True
            return
        # mmengine would remove the old ones first.
        keep, self.max_keep_ckpts = self.max_keep_ckpts, -1
        self._write_card(runner, Path(self.out_dir) / self.filename_tmpl.format(step), step)
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        finally:
            self.max_keep_ckpts = keep
        self._knows_validation = True
        self.saved_step = step
        if keep > 0 and is_main_process():
            saved = saved_checkpoints(Path(self.out_dir), self.filename_tmpl)
            for old in [path for at, path in saved.items() if at <= step][:-keep]:
                self.file_backend.remove(str(old))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        # mmengine would remove the old best first, if it knew of it.
        before = self._best()
        for key in before:
            self._set_best(key, None)
        super()._save_best_checkpoint(runner, metrics)
        for key, path in before.items():
            now = self._best()[key]
            if now is None:
                self._set_best(key, path)
                continue
            self._write_card(runner, Path(now), runner.iter)
            if path and path != now and is_main_process() and Path(path).is_file():
                self.file_backend.remove(path)

    def _write_card(self, runner: Runner, checkpoint: Path, step: int) -> None:
        """Say beside a checkpoint what it is of."""
        if is_main_process():
            scores = dict(step=runner.message_hub.get_info(VALIDATED, None), **scores_of(runner))
            card = dict(checkpoint=checkpoint.name, step=step, validation=scores, **self.card)
            write_json(card_file(checkpoint), card)

    def _best(self) -> dict[str | None, str | None]:
        """Path of the best checkpoint of each metric, None where there is none yet."""
        if not self.save_best:
            return {}
        if len(self.key_indicators) == 1:
            return {None: self.best_ckpt_path}
        return dict(self.best_ckpt_path_dict)

    def _set_best(self, key: str | None, path: str | None) -> None:
        if key is None:
            self.best_ckpt_path = path
        else:
            self.best_ckpt_path_dict[key] = path


def saver_of(runner: Runner) -> LyftCheckpointHook | None:
    """What saves a run; None where that is mmengine's own, or nothing."""
    return next((hook for hook in runner.hooks if isinstance(hook, LyftCheckpointHook)), None)


def is_update(runner: Runner) -> bool:
    """Whether the present step changed the weights, rather than only added to their gradients."""
    return runner.optim_wrapper.should_update()


def saved_checkpoints(folder: Path, template: str = 'iter_{}.pth') -> dict[int, Path]:
    """The checkpoints in a folder by step, least first; files that are still being written do not count."""
    pattern = re.compile(re.escape(template).replace(re.escape('{}'), r'(\d+)'))
    found = {path: pattern.fullmatch(path.name) for path in folder.iterdir()} if folder.is_dir() else {}
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match))


def set_aside(folder: Path) -> list[str]:
    """Move an earlier run's checkpoints into a folder beside, so that none is taken for the new run's.

    Returns:
        One line that says so, if there were any.
    """
    found = [*saved_checkpoints(folder).values(), *sorted(folder.glob('best_*.pth'))]
    if not found:
        return []
    number = next(number for number in itertools.count(1) if not (folder / f'earlier_{number}').exists())
    place = folder / f'earlier_{number}'
    place.mkdir()
    for path in found:
        for beside in companions(path):
            if beside.is_file():
                beside.rename(place / beside.name)
        path.rename(place / path.name)
    return [
        f'{len(found)} checkpoints of an earlier run moved to {place}; --resume would have gone on with it'
    ]


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed run was about to write."""
    for path in folder.glob(f'*{UNFINISHED}'):
        path.unlink()
