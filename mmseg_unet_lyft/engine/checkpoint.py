"""Checkpoint files: which one, read without running anything in it, and into which model."""

from __future__ import annotations

import os
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.runner import CheckpointLoader
from torch import nn

from ..compat import plain_types_only
from ..errors import InputError
from .saving import WRAPPER, is_intact, saved_checkpoints
from .weights_format import SUFFIX, read_weights_file

_TRAINED_WITH = 'Name the config it was trained with: its work dir holds it, the --cfg-options included'
_WRAPPED = 'module.'  # before each name, from a model wrapped for several processes


def use_resume(config: Config, resume: str | None) -> list[str]:
    """Set what to resume from, and the seed that run had.

    Args:
        config: Changed in place.
        resume: A checkpoint path, ``auto`` for the newest sound one in the work dir, or None.

    Returns:
        Lines on newer checkpoints that were passed over, since they are damaged.

    Raises:
        InputError: If there is nothing to resume from, or weights alone, or another seed is asked for.
    """
    source = resume or (config.get('load_from') if config.get('resume') else None)
    if source and str(source).endswith(SUFFIX):
        raise InputError(
            f'{source}: holds weights alone, no optimizer and no step to resume from; name the checkpoint '
            'they are from, or start anew from them with --load-from'
        )
    if resume is None:
        return []
    passed_over: list[str] = []
    content = newest_sound(Path(config.work_dir), passed_over) if resume == 'auto' else None
    path = resume if content is None else content.pop('path')
    if content is None:
        if is_intact(Path(path)) is False:
            raise InputError(f'{path}: is not what was saved, its checksum differs; resume from another one')
        content = read_checkpoint(path)
    _require_run(content, path)
    config.load_from, config.resume = path, True
    info = content['message_hub'].get('runtime_info') if isinstance(content['message_hub'], dict) else None
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
    missing = [key for key in ('optimizer', 'param_schedulers', 'message_hub') if key not in content]
    if missing or not isinstance(meta, dict) or not {'epoch', 'iter'} <= meta.keys():
        raise InputError(
            f'{path}: holds weights alone, no {" and ".join(missing) or "step"} to go on from; name an '
            'iter_N.pth, or start anew from the weights with --load-from'
        )


def newest_sound(work_dir: Path, passed_over: list[str]) -> dict[str, Any]:
    """The content of a work dir's newest checkpoint that is what was saved, with its ``path``."""
    for path in _newest_first(work_dir):
        try:
            if is_intact(path) is False:
                raise InputError(f'{path}: is not what was saved, its checksum differs')
            content = read_checkpoint(str(path))
            _require_run(content, str(path))
            return dict(content, path=str(path))
        except InputError as error:
            passed_over.append(f'{error}; going on from the one before')
    damaged = ''.join(f'\n  {line}' for line in passed_over)
    raise InputError(f'--resume: {work_dir} holds no sound checkpoint; start without --resume{damaged}')


def _newest_first(work_dir: Path) -> list[Path]:
    """A work dir's checkpoints to resume from: the one that was noted as the last, then those before it.

    By number alone, an older run's end would be taken for this one's.
    """
    saved, note = list(saved_checkpoints(work_dir).values()), work_dir / 'last_checkpoint'
    # The path is absolute, and a work dir may have been moved.
    noted = work_dir / Path(note.read_text().strip()).name if note.is_file() else None
    return saved[: saved.index(noted) + 1 if noted in saved else None][::-1]


def load_safely() -> None:
    """Have mmengine load files by `read_checkpoint` from now on in this process, and torch never unsafely.

    OneDL's mmengine falls back to an unsafe load; OpenMMLab's cannot load a training checkpoint safely.
    """
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'

    # mmengine logs the name from its eleventh letter on.
    def load_from_local(filename: str, map_location: str | torch.device = 'cpu') -> dict[str, Any]:
        return read_checkpoint(filename, map_location)

    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)


def read_checkpoint(path: str, map_location: str | torch.device = 'cpu') -> dict[str, Any]:
    """The content of a checkpoint file: plain data and tensors, never code.

    Args:
        path: The file; weights as ``.safetensors`` have ``state_dict`` and ``meta``.
        map_location: Device that the tensors come to.

    Raises:
        InputError: If there is no such file, it is no checkpoint, or it holds anything but plain data.
    """
    if not Path(path).is_file():
        folder = Path(path).parent
        there = sorted(file.name for kind in ('.pth', SUFFIX) for file in folder.glob(f'*{kind}'))
        raise InputError(f'{path}: no such checkpoint; {folder} holds {", ".join(there) or "no .pth file"}')
    if str(path).endswith(SUFFIX):
        return read_weights_file(str(path), map_location)
    try:
        with plain_types_only():
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except UnpicklingError as error:
        foreign = re.search(r'GLOBAL ([\w.]+)', str(error))
        if foreign:
            raise InputError(
                f'{path}: refused, it holds {foreign[1]}, and loading that could run code; '
                'only tensors, numbers, text and containers of them are loaded'
            ) from error
        raise InputError(f'{path}: cannot be read as a checkpoint ({type(error).__name__})') from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f'{path}: cannot be read as a checkpoint ({type(error).__name__})') from error
    if not isinstance(checkpoint, dict):
        raise InputError(f'{path}: holds a {type(checkpoint).__name__} and not the weights of a model')
    return checkpoint


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint file by name, on the CPU; errors as in `read_checkpoint`."""
    return weights_of(read_checkpoint(path), path)


def weights_of(content: dict[str, Any], path: str) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint's content by name, as of a model that is not wrapped.

    Raises:
        InputError: If it holds none; the message names the path.
    """
    found = content.get('state_dict', content)
    weights = found.items() if isinstance(found, dict) else ()
    weights = {str(name): weight for name, weight in weights if isinstance(weight, torch.Tensor)}
    if not weights:
        raise InputError(f'{path}: holds no weights of a model; name a checkpoint of a training run')
    return {name.removeprefix(_WRAPPED): weight for name, weight in weights.items()}


def check_weights(
    model: nn.Module, weights: dict[str, torch.Tensor], path: str, remedy: str = _TRAINED_WITH
) -> None:
    """Raise an InputError unless weights are the model's, name by name and in shape.

    mmengine loads what fits and only logs the rest.

    Args:
        model: The model, wrapped for several processes or not.
        weights: As from `read_weights`.
        path: Where they are from, for the message.
        remedy: What to do about it, for the message.
    """
    problems = _misfits(_bare(model).state_dict(), weights)
    found = [f'{len(names)} {what} ({min(names)}, ...)' for what, names in problems.items() if names]
    if found:
        raise InputError(f'{path}: its weights are not of this config: {"; ".join(found)}. {remedy}')


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
    misfits = _misfits(wanted, weights)
    fitting = {name: weights[name] for name in (wanted.keys() & weights.keys()) - misfits['reshaped']}
    if all(_is_statistic(name) for name in fitting):
        raise InputError(f'{path}: none of its {len(weights)} weights has a name and shape of this model')
    bare.load_state_dict(fitting, strict=False)
    lines = [f'{path}: loaded {len(fitting)} of the {len(wanted)} weights of this model']
    lines += _listed(
        'another shape, kept as initialised',
        {
            name: f'{tuple(weights[name].shape)} in the file, {tuple(wanted[name].shape)} here'
            for name in misfits['reshaped']
        },
    )
    lines += _listed('not in the file, kept as initialised', dict.fromkeys(misfits['missing'], ''))
    lines += _listed('only in the file, left out', dict.fromkeys(misfits['unexpected'], ''))
    return '\n'.join(lines)


def _listed(what: str, notes: dict[str, str]) -> list[str]:
    """Lines for weights by name, each with its note."""
    if not notes:
        return []
    return [f'  {len(notes)} {what}:', *(f'    {name} {notes[name]}'.rstrip() for name in sorted(notes))]


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
