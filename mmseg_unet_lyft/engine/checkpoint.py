"""Checkpoint files: which one, and into which model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from torch import nn

from ..errors import InputError
from .checkpoint_file import read_checkpoint
from .saving import WRAPPER, saved_checkpoints
from .weights_format import SUFFIX

TRAINED_WITH = 'Name the config it was trained with: its work dir holds it, the --cfg-options included'
_SHOWN = 10  # names of weights in an error
_WRAPPED = 'module.'  # before each name, from a model wrapped for several processes


def use_resume(config: Config, resume: str | None, trust: bool = False) -> list[str]:
    """Set what to resume from, and the seed that run had.

    Args:
        config: Changed in place.
        resume: A checkpoint path, ``auto`` for the newest sound one in the work dir, ``if-any`` for that one
            or a new run if nothing is saved yet, or None.
        trust: As in `read_checkpoint`.

    Returns:
        Lines on newer checkpoints that were passed over, since they are damaged.

    Raises:
        InputError: If there is nothing to resume from, or weights alone, or another seed is asked for.
    """
    # A config from the work dir of a resumed run says what that one went on from.
    config.pop('resumed', None)
    if resume == 'if-any':
        resume = 'auto' if saved_checkpoints(Path(config.work_dir)) else None
    source = resume or (config.get('load_from') if config.get('resume') else None)
    if source and str(source).endswith(SUFFIX):
        raise InputError(
            f'{source}: holds weights alone, no optimizer and no step to resume from; name the checkpoint '
            'they are from, or start anew from them with --load-from'
        )
    if resume is None:
        return []
    passed_over: list[str] = []
    content = None
    if resume == 'auto':
        content = newest_sound(Path(config.work_dir), passed_over, trust)
    path = resume if content is None else content.pop('path')
    if content is None:
        content = read_checkpoint(path, trust=trust)
    _require_run(content, path)
    config.load_from, config.resume = path, True
    info = content['message_hub'].get('runtime_info')
    config.resumed = dict(path=path, wrapper=info.get(WRAPPER) if isinstance(info, dict) else None)
    meta = content.get('meta')
    seed = meta.get('seed') if isinstance(meta, dict) else None
    wanted = (config.get('randomness') or {}).get('seed')
    if isinstance(seed, int):
        if wanted not in (None, seed):
            raise InputError(f'--seed {wanted}: the run that is resumed has seed {seed}; leave --seed out')
        config.randomness = dict(config.get('randomness') or {}, seed=seed)
    return passed_over


def _require_run(content: dict[str, Any], path: str) -> None:
    """Raise an InputError for a checkpoint that holds weights, but no run to go on with."""
    meta = content.get('meta')
    kinds = dict(optimizer=dict, param_schedulers=(list, dict), message_hub=dict)
    missing = [key for key, kind in kinds.items() if not isinstance(content.get(key), kind)]
    counts = [meta.get(key) for key in ('epoch', 'iter')] if isinstance(meta, dict) else []
    if missing or not counts or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise InputError(
            f'{path}: holds weights alone, no {" and ".join(missing) or "step"} to go on from; name an '
            'iter_N.pth, or start anew from the weights with --load-from'
        )


def newest_sound(work_dir: Path, passed_over: list[str], trust: bool = False) -> dict[str, Any]:
    """The content of a work dir's newest checkpoint that is what was saved, with its ``path``.

    Raises:
        InputError: If there is none.
    """
    for path in _newest_first(work_dir):
        try:
            content = read_checkpoint(str(path), trust=trust)
            _require_run(content, str(path))
            return dict(content, path=str(path))
        except InputError as error:
            passed_over.append(f'{error}; going on from the one before')
    damaged = ''.join(f'\n  {line}' for line in passed_over)
    raise InputError(f'{work_dir}: holds no sound checkpoint; start without --resume{damaged}')


def _newest_first(work_dir: Path) -> list[Path]:
    """A work dir's checkpoints to resume from: the one that was noted as the last, then those before it.

    By number alone, an older run's end would be taken for this one's.
    """
    saved, note = list(saved_checkpoints(work_dir).values()), work_dir / 'last_checkpoint'
    # The path is absolute, and a work dir may have been moved.
    text = note.read_text(encoding='utf-8', errors='replace').strip() if note.is_file() else ''
    noted = work_dir / Path(text).name
    return saved[: saved.index(noted) + 1 if noted in saved else None][::-1]


def read_weights(path: str, trust: bool = False) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint file by name, on the CPU; arguments and errors as in `read_checkpoint`."""
    return weights_of(read_checkpoint(path, trust=trust), path)


def weights_of(content: dict[str, Any], path: str) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint's content by name, as of a model that is not wrapped.

    Raises:
        InputError: If it holds none, or one without a number in each place; the message names the path.
    """
    found = content.get('state_dict', content)
    weights = found.items() if isinstance(found, dict) else ()
    weights = {str(name): weight for name, weight in weights if isinstance(weight, torch.Tensor)}
    if not weights:
        raise InputError(f'{path}: holds no weights of a model; name a checkpoint of a training run')
    for name, weight in weights.items():
        if weight.is_meta or weight.layout != torch.strided:
            sort = 'meta' if weight.is_meta else str(weight.layout).removeprefix('torch.')
            raise InputError(
                f'{path}: its {name} is a {sort} tensor; only plain ones are loaded, with a '
                'number in each place: save it as one, or take another checkpoint'
            )
        # A view that repeats them; a copy of it could fill all memory.
        if weight.numel() > (held := _numbers_held(weight)):
            raise InputError(
                f'{path}: its {name} claims {weight.numel()} numbers and holds {held}; save a copy of it '
                '(clone()), or take another checkpoint'
            )
    return {name.removeprefix(_WRAPPED): weight for name, weight in weights.items()}


def _numbers_held(weight: torch.Tensor) -> int:
    """How many numbers the memory behind a weight has room for."""
    return weight.untyped_storage().nbytes() // weight.element_size()


def check_weights(
    model: nn.Module, weights: dict[str, torch.Tensor], path: str, remedy: str = TRAINED_WITH
) -> None:
    """Raise an InputError unless weights are the model's, name by name and in shape.

    mmengine loads what fits and only logs the rest. The message lists the first of those that do not.

    Args:
        model: The model, wrapped for several processes or not.
        weights: As from `read_weights`.
        path: Where they are from, for the message.
        remedy: What to do about it, for the message.
    """
    wanted = _bare(model).state_dict()
    lines = _describe_misfits(
        wanted, weights, ('another shape', 'not in the file', 'only in the file'), _SHOWN
    )
    if lines:
        raise InputError('\n'.join([f'{path}: its weights are not of this config. {remedy}', *lines]))


def fitting_weights(
    wanted: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], path: str
) -> dict[str, torch.Tensor]:
    """Those of the weights whose name and shape a model's state has.

    Raises:
        InputError: If there are none; the message names the path.
    """
    reshaped = _misfits(wanted, weights)['reshaped']
    fitting = {name: weights[name] for name in (wanted.keys() & weights.keys()) - reshaped}
    if all(_is_statistic(name) for name in fitting):
        raise InputError(
            f'{path}: none of its {len(weights)} weights has a name and shape of this model; name a '
            'checkpoint of this network'
        )
    return fitting


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], path: str) -> str:
    """Start a model from weights: all that fit by name and shape.

    Args:
        model: The model to load into, wrapped for several processes or not.
        weights: As from `read_weights`; of a model with other classes or input channels, say.
        path: Where they are from, for the message.

    Returns:
        What was loaded and, name by name with both shapes, what was left out.

    Raises:
        InputError: If nothing fits.
    """
    bare = _bare(model)
    wanted = bare.state_dict()
    fitting = fitting_weights(wanted, weights, path)
    bare.load_state_dict(fitting, strict=False)
    whats = (
        'another shape, kept as initialised',
        'not in the file, kept as initialised',
        'only in the file, left out',
    )
    said = f'{path}: loaded {len(fitting)} of the {len(wanted)} weights of this model'
    return '\n'.join([said, *_describe_misfits(wanted, weights, whats)])


def _describe_misfits(
    wanted: dict[str, torch.Tensor],
    weights: dict[str, torch.Tensor],
    whats: tuple[str, str, str],
    limit: int | None = None,
) -> list[str]:
    """Lines on weights of another shape, those only in the model, and those only in the file.

    Args:
        wanted: The model's.
        weights: The file's.
        whats: What to say of each of the three.
        limit: How many names of each to list; all by default.
    """
    misfits = _misfits(wanted, weights)
    shapes = {
        name: f'{tuple(weights[name].shape)} in the file, {tuple(wanted[name].shape)} here'
        for name in misfits['reshaped']
    }
    notes = (shapes, dict.fromkeys(misfits['missing'], ''), dict.fromkeys(misfits['unexpected'], ''))
    return [line for what, found in zip(whats, notes, strict=True) for line in _listed(what, found, limit)]


def _listed(what: str, notes: dict[str, str], limit: int | None) -> list[str]:
    """Lines for weights by name, each with its note."""
    if not notes:
        return []
    names = sorted(notes)[:limit]
    more = len(notes) - len(names)
    return [
        f'  {len(notes)} {what}:',
        *(f'    {name} {notes[name]}'.rstrip() for name in names),
        *([f'    and {more} more'] if more else []),
    ]


def _bare(model: nn.Module) -> nn.Module:
    """The model without the wrapper of several processes."""
    return model.module if is_model_wrapper(model) else model


def _misfits(wanted: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> dict[str, set[str]]:
    """Names that are only in the model, only in the file, or in both with another shape."""
    return dict(
        # Weights from elsewhere come without the mean and deviation, and keep the config's.
        missing={name for name in wanted.keys() - weights.keys() if not _is_statistic(name)},
        unexpected=weights.keys() - wanted.keys(),
        reshaped={
            name for name in weights.keys() & wanted.keys() if weights[name].shape != wanted[name].shape
        },
    )


def _is_statistic(name: str) -> bool:
    """Whether a weight is the mean or deviation of the preprocessor."""
    return name.startswith('data_preprocessor.')


def best_checkpoint(work_dir: str) -> Path | None:
    """The best checkpoint of a work dir, else its last, else None."""
    best = sorted(Path(work_dir).glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    if best:
        return best[-1]
    return _last_checkpoint(work_dir)


def _last_checkpoint(work_dir: str) -> Path | None:
    """The checkpoint of the last step saved in a work dir, None if there is none."""
    return next(iter(_newest_first(Path(work_dir))), None)


def describe_best(work_dir: str) -> str:
    """One line that names the best checkpoint, or says that there is only a last one."""
    best = best_checkpoint(work_dir)
    if best is None:
        return 'no checkpoint was written'
    return f'{"best" if best.name.startswith("best_") else "last"} checkpoint: {best}'
