"""Checkpoint files: checksums, safe reading (``.pth``, ``.safetensors``), resuming, loading into a model."""

import hashlib
import json
import logging
import re
import struct
import zlib
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.runner import CheckpointLoader
from torch import nn

from ..datasets.files import check_regular, checksum_file, is_intact, read_regular, sync, write_whole
from ..errors import InputError
from ..processes import code_allowed, force_plain_loading, plain_types_only

WRAPPER = 'optim_wrapper'  # In the message hub: the type of the optimizer's wrapper, and so the precision.
TRAINED_WITH = 'Name the config it was trained with: its work dir holds it, the --cfg-options included'
_SHOWN = 10  # Names of weights in an error.
_BLOCK = 1 << 20
_ARCHIVE = b'PK\3\4'
# Of all that a checkpoint holds; those of a long run have 20,000 items, 8 levels deep.
_MOST_ITEMS, _DEEPEST = 1_000_000, 64
_PLAIN = (int, float, bool, str, type(None))

SAFETENSORS = '.safetensors'
SAFETENSORS_FORMAT = 1
# Keys of a checkpoint's ``meta`` that a ``.safetensors`` file keeps, besides the model's description.
KEPT = ('dataset_meta', 'iter', 'validation', 'seed', 'experiment_name', 'time', 'mmengine_version')
# One key holds everything: safetensors writes several keys in an order that varies.
_METADATA_KEY = 'mmseg_unet_lyft'
# Marks a tuple, which JSON lacks and mmcv's Resize needs as its scale. Descriptions have no such key.
_TUPLE = '__tuple__'
# Over the weights and all other fields: the format itself has no checksum.
_CHECKSUM = 'sha256'
_REWRITE = 'write it again from its checkpoint with tools/export.py --format safetensors'

# What zipfile raises for a damaged archive, and what torch, NumPy and the unpickler raise for other bytes.
_DAMAGED = (BadZipFile, zlib.error, struct.error, EOFError, LookupError, OSError, RuntimeError, ValueError)
_OTHER_BYTES = (ArithmeticError, AssertionError, AttributeError, MemoryError, TypeError, UnpicklingError)
# Parts of torch's message about a pickle: the type or function that is not plain, or else the reason.
_FOREIGN = re.compile(r'GLOBAL (.+?)(?: was not | whose |\.?$)', re.MULTILINE)
_REASON = re.compile(r'WeightsUnpickler error:\s*(.+)')
RUN_CARD_SUFFIX = '.run_card.json'  # Appended to a checkpoint's file name.


def card_file(checkpoint: Path) -> Path:
    """Path of a checkpoint's run card."""
    return checkpoint.with_name(checkpoint.name + RUN_CARD_SUFFIX)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without the wrapper that distributed training puts around it."""
    return model.module if is_model_wrapper(model) else model


def write_with_checksum(path: Path, content: bytes) -> None:
    """Write a complete file, with its checksum next to it; an InputError where it cannot be written.

    Even after a kill midway, the file under this name, old or new, has its checksum among those listed.
    """
    checksum = checksum_file(path)
    line = f'{hashlib.sha256(content).hexdigest()}  {path.name}\n'.encode()
    # The old lines may be damaged: not text, or cut within a line.
    before = checksum.read_bytes().splitlines() if checksum.is_file() and path.is_file() else []
    write_whole(checksum, b''.join([*(old + b'\n' for old in before), line]))
    write_whole(path, content)
    sync(path.parent)
    if before:
        write_whole(checksum, line)


def saved_checkpoints(folder: Path, template: str = 'iter_{}.pth') -> dict[int, Path]:
    """Paths of a folder's checkpoints by step, in ascending order, without files still being written."""
    pattern = re.compile(re.escape(template).replace(re.escape('{}'), r'(\d+)'))
    found = {path: pattern.fullmatch(path.name) for path in folder.iterdir()} if folder.is_dir() else {}
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match))


def _newest_first(work_dir: Path) -> list[Path]:
    """A work dir's checkpoints to resume from: the one noted as the last, then the earlier ones.

    By number alone, the end of an older run could be taken for this run's.
    """
    saved, note = list(saved_checkpoints(work_dir).values()), work_dir / 'last_checkpoint'
    # The path is absolute, and a work dir may have been moved.
    text = ''
    with suppress(OSError):
        text = read_regular(note).decode(errors='replace').strip()
    noted = work_dir / Path(text).name
    return saved[: saved.index(noted) + 1 if noted in saved else None][::-1]


def best_checkpoint(work_dir: str) -> Path | None:
    """The best checkpoint of a work dir, else its last, else None."""
    best = sorted(Path(work_dir).glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    return next(iter([*reversed(best), *_newest_first(Path(work_dir))]), None)


def describe_best(work_dir: str) -> str:
    """One line that names the best checkpoint, or says that there is only a last one."""
    best = best_checkpoint(work_dir)
    kind = 'best' if best and best.name.startswith('best_') else 'last'
    return f'{kind} checkpoint: {best}' if best else 'no checkpoint was written'


def load_safely(trusted: str | None = None) -> None:
    """Make mmengine load files with `read_checkpoint` from now on; only the trusted one is loaded unsafely.

    OneDL's mmengine falls back to an unsafe load; OpenMMLab's cannot load a training checkpoint safely.
    """
    force_plain_loading()

    # mmengine logs this function's name without its first ten letters.
    def load_from_local(filename: str, map_location: str | torch.device = 'cpu') -> dict[str, Any]:
        return read_checkpoint(filename, map_location, trust=filename == trusted)

    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)


def read_checkpoint(
    path: str, map_location: str | torch.device = 'cpu', trust: bool = False
) -> dict[str, Any]:
    """Read a checkpoint file: plain data and tensors, never code; the stored config text is dropped.

    A ``.safetensors`` file gives ``state_dict`` and ``meta``. With ``trust``, a file that holds more
    than plain data is unpickled completely, which can run any code in it; a warning says so.

    Raises:
        InputError: If the file is damaged, not a checkpoint, or not plain data and not trusted, or if its
            contents would grow beyond the file.
    """
    check_regular(path, 'name a checkpoint')
    intact = is_intact(Path(path))
    if intact is False:
        raise InputError(
            f'{path}: is not what was saved, its checksum differs; take another one, or if you changed it '
            f'yourself, remove {checksum_file(Path(path)).name}'
        )
    if str(path).endswith(SAFETENSORS):
        return _read_safetensors(str(path), map_location)
    check_archive(path, compare=intact is None)
    checkpoint = _load(path, map_location, trust)
    if not isinstance(checkpoint, dict):
        raise InputError(f'{path}: holds a {type(checkpoint).__name__} and not the weights of a model')
    forget_config(checkpoint)
    return checkpoint


def check_archive(path: str, compare: bool = True) -> None:
    """Raise an InputError for a zip archive that is damaged, or would expand in memory; other files pass.

    Torch never compresses a checkpoint, and does not verify the checksums in the archive.
    """
    size, expanded = Path(path).stat().st_size, 0
    try:
        with Path(path).open('rb') as file:
            # What begins like this is an archive to torch, even if zipfile does not find its end.
            is_archive = file.read(len(_ARCHIVE)) == _ARCHIVE or is_zipfile(file)
            with ZipFile(file) if is_archive else nullcontext() as archive:
                members = archive.infolist() if archive else []
                expanded = sum(member.file_size for member in members)
                for member in members if compare and expanded <= size else ():
                    if member.CRC:  # Some have none: torch.serialization.set_crc32_options.
                        with archive.open(member) as content:
                            # zipfile compares at the end.
                            while content.read(_BLOCK):
                                pass
    except _DAMAGED as error:
        raise InputError(f'{path}: cannot be read, it is damaged ({error}); take another copy') from error
    if expanded > size:
        raise InputError(
            f'{path}: refused, it would expand from {size} to {expanded} bytes; save it again with torch.save'
        )


def _load(path: str, map_location: str | torch.device, trust: bool) -> Any:
    """The content of a pickle as torch writes it; errors as in `read_checkpoint`."""
    try:
        with plain_types_only():
            content = torch.load(path, map_location=map_location, weights_only=True)
    except (*_DAMAGED, *_OTHER_BYTES) as error:
        # For some pickles, such as those of another protocol, all that is known is that this load fails.
        is_pickle = isinstance(error, UnpicklingError)
        foreign = _FOREIGN.search(str(error)) if is_pickle else None
        if foreign and not trust:
            raise InputError(
                f'{path}: refused, it holds {foreign[1]}, and loading that could run code; only tensors, '
                'numbers, text and containers of them are loaded. If you know where it comes from, give '
                '--trust (trust=True in Python): reading it can then run whatever it holds'
            ) from error
        if not (is_pickle and trust):
            # torch's own advice, which comes before the reason, is to load it unsafely.
            reason = _REASON.search(str(error)) if is_pickle else None
            raise _unreadable(path, error, reason[1] if reason else str(error)) from error
    else:
        _check_contents(content, path)
        return content
    _warn_of_trust(str(path), foreign[1] if foreign else 'more than plain data')
    try:
        with code_allowed():
            return torch.load(path, map_location=map_location, weights_only=False)
    except (*_DAMAGED, *_OTHER_BYTES, ImportError) as error:
        raise _unreadable(path, error, str(error)) from error


def _check_contents(content: Any, path: str) -> None:
    """Raise an InputError for contents that would grow in memory, or hold more numbers than the file.

    A container may be in others many times, or in itself: whoever copies or shows it gets all of them.
    """
    room, items, seen = Path(path).stat().st_size, 1, set()
    waiting: list[tuple[Any, Any, int]] = [('content', content, 0)]
    while waiting:
        name, value, depth = waiting.pop()
        if isinstance(value, torch.Tensor):
            # It may be sparse, without data, or a view of a few numbers whose copy could fill all memory.
            is_plain = value.layout == torch.strided and not value.is_meta
            storage = value.untyped_storage() if is_plain else torch.UntypedStorage(0)
            room -= 0 if storage.data_ptr() in seen else storage.nbytes()
            seen.add(storage.data_ptr())
            if room < 0 or value.numel() * value.element_size() > storage.nbytes():
                claim = f'claims {value.numel()} numbers, more than are in the file'
                raise InputError(f'{path}: its {name} {claim}; save a dense copy')
            continue
        if isinstance(value, (list, tuple, set)):
            inside = [(name, one) for one in value]
        else:
            inside = (value if isinstance(value, dict) else getattr(value, '__dict__', {})).items()
        items += len(inside)
        if items > _MOST_ITEMS or depth > _DEEPEST:
            limit = f'{_MOST_ITEMS} items or {_DEEPEST} levels'
            raise InputError(
                f'{path}: refused, its {name} makes it more than {limit}; save the weights alone'
            )
        waiting += [(key, one, depth + 1) for key, one in inside if type(one) not in _PLAIN]


def _unreadable(path: str, error: Exception, reason: str) -> InputError:
    reason = f'{type(error).__name__}: {reason.strip().partition(chr(10))[0]}'
    return InputError(f'{path}: cannot be read as a checkpoint ({reason}); take another copy')


@cache  # Warns once for each process and file.
def _warn_of_trust(path: str, name: str) -> None:
    said = '%s: holds %s and is trusted: reading it can run whatever it holds'
    logging.getLogger(__name__).warning(said, path, name)


def forget_config(checkpoint: dict[str, Any]) -> None:
    """Drop the config text in a checkpoint: mmengine would run it as Python."""
    meta, hub = checkpoint.get('meta'), checkpoint.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, dict) else None
    for holder, names in ((meta, ('config', 'cfg')), (info, ('cfg',))):
        for name in names if isinstance(holder, dict) else ():
            holder.pop(name, None)


def _read_safetensors(path: str, map_location: str | torch.device | None) -> dict[str, Any]:
    """``dict(state_dict, meta)``; ``meta`` is empty where other software wrote the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework='pt', device='cpu') as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0].removeprefix('Error while deserializing header: ')
        raise InputError(f'{path}: cannot be read as safetensors ({reason}); {_REWRITE}') from error
    meta = {} if text is None else _read_metadata(path, text, weights)
    # None is mmengine's default.
    return dict(state_dict={name: one.to(map_location or 'cpu') for name, one in weights.items()}, meta=meta)


def pack_weights(weights: dict[str, torch.Tensor], fields: Mapping[str, Any], path: str) -> bytes:
    """A safetensors file's content; the same weights and fields give the same bytes.

    ``weights`` are dense. An InputError with ``path`` unless ``fields``, the metadata, are plain data.
    """
    from safetensors.torch import save

    # Copies: safetensors refuses tensors that share memory.
    tensors = {name: weight.detach().cpu().contiguous().clone() for name, weight in weights.items()}
    try:
        tagged = _tag_tuples(fields)
        text = json.dumps(tagged | {_CHECKSUM: _digest(tagged, tensors)})
    except TypeError as error:
        raise InputError(f'{path}: its meta cannot be written as JSON ({error})') from error
    return save(tensors, metadata={_METADATA_KEY: text})


def _digest(fields: dict[str, Any], weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of fields as JSON, and of weights with their names, types and shapes; hexadecimal."""
    found = hashlib.sha256(json.dumps(fields).encode())
    for name in sorted(weights):
        weight = weights[name]
        found.update(f'{name} {weight.dtype} {tuple(weight.shape)}'.encode())
        found.update(weight.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _read_metadata(path: str, text: str, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """A checkpoint's ``meta`` from a file's metadata, after its checksum is verified."""
    text = text[:_MOST_ITEMS]  # What is cut is not JSON any more.
    try:
        tagged, fields = json.loads(text), json.loads(text, object_hook=_untag_tuple)
        checksum, version = tagged.pop(_CHECKSUM, None), fields['format']
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f'{path}: its {_METADATA_KEY} metadata are broken; {_REWRITE}') from error
    if version != SAFETENSORS_FORMAT:
        raise InputError(f'{path}: its {_METADATA_KEY} metadata are of a newer version; upgrade')
    if checksum is not None and checksum != _digest(tagged, weights):
        raise InputError(
            f'{path}: is not what was written, its checksum differs; take another copy, or {_REWRITE}'
        )
    from .model_spec import KEY  # Which registering does not need.

    return {KEY: fields.get('model'), **{key: fields[key] for key in KEPT if key in fields}}


def _tag_tuples(value: Any) -> Any:
    """The value with every tuple as ``{'__tuple__': [...]}``."""
    if isinstance(value, Mapping):
        return {str(key): _tag_tuples(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_tag_tuples(item) for item in value]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    return value


def _untag_tuple(found: dict) -> Any:
    """The tuple that `_tag_tuples` wrote as a dict, or the dict."""
    return tuple(found[_TUPLE]) if found.keys() == {_TUPLE} else found


def use_resume(config: Config, resume: str | None, trust: bool = False) -> list[str]:
    """Make a config resume from a checkpoint with that run's seed; returns a line on each damaged newer one.

    ``resume`` is a checkpoint's path, ``auto`` for the newest intact one in the work dir, ``if-any`` for that
    one or a new run if nothing is saved yet; None follows the config's ``resume`` and ``load_from``. Raises
    an InputError if there is nothing to resume from, the file holds only weights, or the seed differs.
    """
    # A config saved by a resumed run still names what that run resumed from.
    config.pop('resumed', None)
    if resume is None and config.get('resume'):
        resume = config.get('load_from') or 'if-any'
    if resume == 'if-any':
        resume = 'auto' if saved_checkpoints(Path(config.work_dir)) else None
    if resume is None:
        return []
    passed_over: list[str] = []
    if resume == 'auto':
        path, content = newest_intact(Path(config.work_dir), passed_over, trust)
    else:
        path, content = resume, _read_run(resume, trust)
    config.load_from, config.resume = path, True
    info = content['message_hub'].get('runtime_info') or {}
    config.resumed = dict(path=path, wrapper=info.get(WRAPPER))
    seed, randomness = content['meta'].get('seed'), dict(config.get('randomness') or {})
    if seed is not None:
        if randomness.get('seed') not in (None, seed):
            raise InputError(
                f'--seed {randomness["seed"]}: the run that is resumed has seed {seed}; leave --seed out'
            )
        config.randomness = dict(randomness, seed=seed)
    return passed_over


def newest_intact(work_dir: Path, passed_over: list[str], trust: bool = False) -> tuple[str, dict[str, Any]]:
    """Path and content of a work dir's newest intact checkpoint, an InputError if there is none.

    A line on each newer, damaged one is appended to ``passed_over``.
    """
    for path in map(str, _newest_first(work_dir)):
        try:
            return path, _read_run(path, trust)
        except (InputError, OSError) as error:
            passed_over.append(f'{error}; going on from the one before')
    damaged = (f'  {line}' for line in passed_over)
    raise InputError(f'{work_dir}: holds no intact checkpoint; start without --resume', *damaged)


def _read_run(path: str, trust: bool) -> dict[str, Any]:
    """A checkpoint's content; an InputError if it lacks the training state to resume from."""
    content = read_checkpoint(path, trust=trust)
    missing = [key for key in ('optimizer', 'param_schedulers', 'message_hub') if key not in content]
    if missing or 'iter' not in (content.get('meta') or {}):
        raise InputError(
            f'{path}: holds weights alone, no {" and ".join(missing) or "step"} to go on from; name an '
            'iter_N.pth, or start a new run from the weights with --load-from'
        )
    if content.get('state_dict'):
        weights_of(content, path)
    return content


def read_weights(path: str, trust: bool = False) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint file by name, on the CPU; arguments and errors as in `read_checkpoint`."""
    return weights_of(read_checkpoint(path, trust=trust), path)


def weights_of(content: dict[str, Any], path: str) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint's content by name, without a distributed wrapper's prefix.

    An InputError if it holds none, or one that has a nan, an infinity or complex numbers.
    """
    found = content.get('state_dict', content)
    weights = found.items() if isinstance(found, dict) else ()
    weights = {str(name): weight for name, weight in weights if isinstance(weight, torch.Tensor)}
    if not weights:
        raise InputError(f'{path}: holds no weights of a model; name a checkpoint of a training run')
    for name, weight in weights.items():
        numbers = weight.float() if weight.is_floating_point() else torch.zeros(1)
        # A sum is quicker than looking at each number, and finite numbers may have an infinite one.
        if weight.is_complex() or not (numbers.sum().isfinite() or numbers.isfinite().all()):
            remedy = 'take an earlier checkpoint'
            raise InputError(f'{path}: its {name} has numbers that are not finite and real; {remedy}')
    # A distributed wrapper prefixes every name.
    return {name.removeprefix('module.'): weight for name, weight in weights.items()}


def check_weights(
    model: nn.Module, weights: dict[str, torch.Tensor], path: str, remedy: str = TRAINED_WITH
) -> None:
    """Raise an InputError that lists the first misfits unless the weights are exactly the model's.

    mmengine loads what fits and only logs the rest.
    """
    lines = _misfits(unwrapped(model).state_dict(), weights, limit=_SHOWN)
    if lines:
        raise InputError(f'{path}: its weights are not of this config. {remedy}', *lines)


def fitting_weights(
    wanted: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], path: str
) -> dict[str, torch.Tensor]:
    """The weights whose name and shape match a model's state; an InputError if none do."""
    both = [name for name in wanted if name in weights]
    fitting = {name: weights[name] for name in both if weights[name].shape == wanted[name].shape}
    if all(_is_statistic(name) for name in fitting):
        raise InputError(
            f'{path}: none of its {len(weights)} weights has a name and shape of this model; name a '
            'checkpoint of this network'
        )
    return fitting


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], path: str) -> str:
    """Start a model from all the weights that fit by name and shape; an InputError if none does.

    Returns what was loaded and, name by name with both shapes, what was left out.
    """
    bare = unwrapped(model)
    wanted = bare.state_dict()
    fitting = fitting_weights(wanted, weights, path)
    bare.load_state_dict(fitting, strict=False)
    said = f'{path}: loaded {len(fitting)} of the {len(wanted)} weights of this model'
    return '\n'.join([said, *_misfits(wanted, weights, ', kept as initialised')])


def _misfits(
    wanted: dict[str, torch.Tensor],
    weights: dict[str, torch.Tensor],
    kept: str = '',
    limit: int | None = None,
) -> list[str]:
    """Lines on weights of another shape, only in the model, and only in the file; ``limit`` names of each."""
    reshaped = {
        name: f' {tuple(weight.shape)} in the file, {tuple(wanted[name].shape)} here'
        for name, weight in weights.items()
        if name in wanted and weight.shape != wanted[name].shape
    }
    # Weights from elsewhere lack the mean and deviation; the model keeps the config's.
    missing = [name for name in wanted if name not in weights and not _is_statistic(name)]
    unexpected = [name for name in weights if name not in wanted]
    kinds = {
        f'another shape{kept}': reshaped,
        f'not in the file{kept}': dict.fromkeys(missing, ''),
        'only in the file': dict.fromkeys(unexpected, ''),
    }
    lines = []
    for what, notes in kinds.items():
        names = sorted(notes)[:limit]
        if names:
            lines.append(f'  {len(notes)} {what}:')
            lines.extend(f'    {name}{notes[name]}' for name in names)
        if len(names) < len(notes):
            lines.append(f'    and {len(notes) - len(names)} more')
    return lines


def _is_statistic(name: str) -> bool:
    """Whether a weight is the mean or deviation of the preprocessor."""
    return name.startswith('data_preprocessor.')
