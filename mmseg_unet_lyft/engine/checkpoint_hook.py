"""Saving a run, and going on with it: complete checkpoints; old ones go once new ones are safe."""

import itertools
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from ..datasets.files import checksum_file, free_bytes, taken_bytes, write_json, write_whole
from ..errors import InputError, decoration
from .checkpoint import WRAPPER, card_file, saved_checkpoints, write_with_checksum

BACKEND = 'LyftWholeFiles'
VALIDATED = 'validated_iter'  # Key in the message hub: the step of the last validation.


class WholeFiles(LocalBackend):
    """mmengine's local files, but complete or not there at all, each with its checksum next to it."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes; errors as in `write_with_checksum`."""
        write_with_checksum(Path(filepath), obj)

    def remove(self, filepath: str | Path) -> None:
        """Remove a file, then its checksum and run card."""
        super().remove(filepath)
        for companion in companions(Path(filepath)):
            companion.unlink(missing_ok=True)


register_backend(BACKEND, WholeFiles, force=True)


def companions(path: Path) -> list[Path]:
    """Files that are moved and removed with a checkpoint: its checksum and its run card."""
    return [checksum_file(path), card_file(path)]


def check_room(folder: Path, weights_bytes: int, max_kept: int, num_best: int, taken: int = 0) -> None:
    """Raise an InputError unless a folder has room for all the checkpoints that will lie there at once.

    ``max_kept`` is the hook's ``max_keep_ckpts``; each of ``num_best`` metrics keeps a best checkpoint. The
    run's present ones take ``taken`` bytes.
    """
    # 4: weights, two moments and a moving average. 1: the one being written. 2: best ones have no moments.
    needed = weights_bytes * (4 * ((max_kept if max_kept > 0 else 2) + 1) + 2 * num_best)
    room = free_bytes(folder) + taken
    if room < needed:
        raise InputError(
            f'{folder}: checkpoints of this model take about {needed / 1e6:.0f} MB, and the disk has '
            f'{room / 1e6:.0f} MB left; make room, or name another --work-dir'
        )


@HOOKS.register_module()
class LyftCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, safe to kill at any moment: what was saved before stays intact.

    - Files are written completely or not at all, with a checksum and a run card next to each.
    - Old checkpoints, and the previous best one, are removed once their successors are safe.
    - After each validation the last checkpoint is saved again, so that it records the validation.
    - A work dir may be moved: the best checkpoint is looked for in it.
    - A new run moves the checkpoints of an earlier one into a folder ``earlier_N``.
    - A resumed run follows its config, as `follow_config` says.

    Its arguments are those of mmengine's hook.

    Attributes:
        saved_step: Step after which the run was last saved; None before the first save.
        card: What `describe_run` says of the run; empty before training and on other ranks.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**dict(backend_args=dict(backend=BACKEND)) | kwargs)
        self._knows_validation = False
        self.saved_step: int | None = None
        self.card: dict[str, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Look for the best checkpoint in the present work dir, and check that the disk has room."""
        super().before_train(runner)
        folder = Path(self.out_dir)
        self.saved_step = runner.iter or None
        runner.message_hub.update_info(WRAPPER, type(runner.optim_wrapper).__name__)
        weights = sum(weight.numel() * weight.element_size() for weight in runner.model.state_dict().values())
        taken = taken_bytes(path for path in folder.glob('*.pth') if path.is_file()) if runner.iter else 0
        check_room(folder, weights, self.max_keep_ckpts, len(self._best()), taken)
        for key, path in self._best().items():
            self._set_best(key, path and str(folder / Path(path).name))
        if is_main_process():
            if not runner.iter:
                _set_aside(folder, runner)
            # Imported late: registering the hook need not load what a run card needs.
            from .run_card import describe_run

            with decoration('run card', runner.logger.warning):
                self.card = describe_run(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Have a resumed run follow its config."""
        follow_config(runner, checkpoint)

    def after_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Save if a save is due."""
        is_time = self.every_n_train_iters(runner, self.interval, self.save_begin)
        if not self.by_epoch and (is_time or (self.save_last and self.is_last_train_iter(runner))):
            runner.logger.info('saving after step %d', runner.iter + 1)
            self.save_after(runner, runner.iter + 1)

    def save_after(self, runner: Runner, step: int) -> None:
        """Save the run as it is after a step: the present one, or that before it where it is not made."""
        self._save_checkpoint_with_step(runner, step, dict(epoch=runner.epoch, iter=step))

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Note that validation was done, keep a new best, and save the run with both."""
        runner.message_hub.update_info(VALIDATED, runner.iter)
        self._knows_validation = False
        super().after_val_epoch(runner, metrics)
        # With a new best, mmengine has saved it again already.
        is_last = self.last_ckpt and Path(self.last_ckpt).name == self.filename_tmpl.format(runner.iter)
        if is_last and not self._knows_validation:
            self.save_after(runner, runner.iter)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        # mmengine would remove the old ones first.
        keep, self.max_keep_ckpts = self.max_keep_ckpts, -1
        self._write_card(runner, Path(self.out_dir) / self.filename_tmpl.format(step), step)
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        except UnicodeEncodeError:
            # mmengine writes the path of what it saved as UTF-8, which a folder's name need not be.
            write_whole(Path(runner.work_dir, 'last_checkpoint'), os.fsencode(self.last_ckpt))
        finally:
            self.max_keep_ckpts = keep
        self._knows_validation = True
        self.saved_step = step
        if keep > 0 and is_main_process():
            saved = saved_checkpoints(Path(self.out_dir), self.filename_tmpl)
            for old in [path for at, path in saved.items() if at <= step][:-keep]:
                if checksum_file(old).is_file():  # Else another program saved it.
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
        if is_main_process():
            from .run_card import scores_of

            with decoration('run card', runner.logger.warning):
                scores = dict(step=runner.message_hub.get_info(VALIDATED, None), **scores_of(runner))
                card = dict(checkpoint=checkpoint.name, step=step, validation=scores, **self.card)
                write_json(card_file(checkpoint), card)

    def _best(self) -> dict[str | None, str | None]:
        """Path of the best checkpoint of each metric, None where there is none yet."""
        if not self.save_best:
            return {}
        is_one = len(self.key_indicators) == 1
        return {None: self.best_ckpt_path} if is_one else dict(self.best_ckpt_path_dict)

    def _set_best(self, key: str | None, path: str | None) -> None:
        if key is None:
            self.best_ckpt_path = path
        else:
            self.best_ckpt_path_dict[key] = path


def saver_of(runner: Runner) -> LyftCheckpointHook | None:
    """The hook that saves a run; None where that is mmengine's own, or there is none."""
    return next((hook for hook in runner.hooks if isinstance(hook, LyftCheckpointHook)), None)


def describe_saved(runner: Runner) -> str:
    """Text for the user on how far a run that ends is saved."""
    saver = saver_of(runner)
    is_saved = saver is not None and saver.saved_step
    return f'saved after step {saver.saved_step}, go on with --resume' if is_saved else 'nothing is saved'


def follow_config(runner: Runner, checkpoint: dict[str, Any]) -> None:
    """Make a run that is resumed follow its config; call it in ``after_load_checkpoint``.

    The optimizer takes only its moments from the checkpoint. Its options are the config's, and the schedules
    are stepped from 0 to the resumed step, which gives an undisturbed run's values to the bit. The
    checkpoint's content, from which mmengine takes both, is changed.

    Raises:
        InputError: If the optimizer, or its groups of weights, are not the run's.
    """
    optimizer, schedulers = getattr(runner.optim_wrapper, 'optimizer', None), runner.param_schedulers or []
    # Weights that a new run starts from, and the state that a run rolls back to, are loaded alike.
    is_resumed = runner._resume and {'optimizer', 'param_schedulers'} <= checkpoint.keys()
    if not is_resumed or not isinstance(optimizer, torch.optim.Optimizer):
        return
    meta, saved = checkpoint['meta'], checkpoint['optimizer']
    groups = saved['param_groups'], optimizer.param_groups
    before, now = (_options(one[0]) for one in groups)
    if not before.keys() <= now.keys() or len({str([len(of['params']) for of in one]) for one in groups}) > 1:
        raise InputError(
            f'optim_wrapper: {type(optimizer).__name__} cannot go on from the state of an optimizer of '
            f'{len(groups[0])} groups of weights with {", ".join(before)}. Resume with the optimizer of the '
            'run, or start a new run from its weights with --load-from'
        )
    if any(getattr(one, 'need_val_args', False) for one in schedulers):
        runner.logger.warning('a schedule follows the validations: it and the optimizer go on as saved')
        return
    by_step, by_epoch = ([one for one in schedulers if one.by_epoch == kind] for kind in (False, True))
    # mmengine's loops by steps count no epochs.
    epoch_length = len(runner.train_dataloader) if meta['epoch'] else meta['iter'] + 1
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # mmengine expects a step of the optimizer before each.
        for step in range(1, meta['iter'] + 1):
            for one in by_step if step % epoch_length else [*by_step, *by_epoch]:
                one.step()
    checkpoint['param_schedulers'] = [one.state_dict() for one in schedulers]
    checkpoint['optimizer'] = with_present_options(runner.optim_wrapper, saved)
    now['max_iters'] = runner.max_iters
    before |= checkpoint['message_hub'].get('runtime_info') or {}
    changed = [f'{key} {before[key]} -> {now[key]}' for key in now if before.get(key, now[key]) != now[key]]
    if changed:
        runner.logger.info('going on with what the config says now: %s', ', '.join(changed))


def _options(group: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's options of a group of weights, as they were before any schedule."""
    names = [name for name in group if name != 'params' and not name.startswith('initial_')]
    return {name: group.get(f'initial_{name}', group[name]) for name in names}


def with_present_options(wrapper: OptimWrapper, saved: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's saved state with the options that it has now: learning rate, weight decay and so on."""
    now = wrapper.state_dict()
    return saved | {key: now[key] for key in ('param_groups', 'base_param_settings') if key in now}


def _set_aside(folder: Path, runner: Runner) -> None:
    """Move an earlier run's checkpoints into a folder, so that none is taken for the new run's."""
    found = [*saved_checkpoints(folder).values(), *sorted(folder.glob('best_*.pth'))]
    if not found:
        return
    place = next(path for n in itertools.count(1) if not (path := folder / f'earlier_{n}').exists())
    place.mkdir()
    for path in found:
        # The checkpoint last: after a kill in between, no companion is left here without it.
        for one in [*(one for one in companions(path) if one.is_file()), path]:
            one.rename(place / one.name)
    said = '%d checkpoints of an earlier run moved to %s; --resume would have gone on with it'
    runner.logger.info(said, len(found), place)
