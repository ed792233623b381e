"""Files of Keras models, read without Keras: their layers in order, the arrays of each, the config if any.

Keras writes three: ``.h5`` (legacy: attributes state the order), ``.weights.h5`` (a group a layer, named by
class and a running number), and ``.keras`` (a zip of such a file and a JSON config). A file may come from
anywhere: links are not followed, no array is read that is larger than its file, nothing is unpacked or run.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    import h5py

CONV, TRANSPOSED, NORM = 'Conv2D', 'Conv2DTranspose', 'BatchNormalization'
# Of the groups that Keras 3 keeps them in; a number follows.
GROUP_NAMES = {CONV: 'conv2d', TRANSPOSED: 'conv2d_transpose', NORM: 'batch_normalization'}
_WEIGHTS, _CONFIG = 'model.weights.h5', 'config.json'
_HDF5, _ZIP = b'\x89HDF\r\n\x1a\n', b'PK\x03\x04'
# The U-Net of 64 channels with its optimizer is 0.4 GB, its config 0.1 MB.
_MOST_BYTES = {_WEIGHTS: 2 << 30, _CONFIG: 16 << 20}
_MOST_EXPANSION = 200  # JSON of many equal layers packs 30 times.
_MOST_LAYERS = 10_000
WANTED = (
    'only the tutorial U-Net can be imported: levels of two 3x3 convolutions with ReLU, 2x2 max-pools down, '
    'Conv2DTranspose and concatenation up'
)
_AGAIN = 'copy it again, or save it again in Keras'


@dataclass(frozen=True)
class StoredLayer:
    """A layer that has weights.

    Attributes:
        place: Where it is in the file, for messages.
        name: As the model calls it; with `KerasFile.has_names` alone.
        kind: `CONV`, `TRANSPOSED`, `NORM`; '' where the file does not say: a legacy one's kernels.
        arrays: float32, in Keras' order: kernel, bias; or gamma, beta, moving mean, moving variance.
        roles: What each array is called; empty where only their order says.
    """

    place: str
    name: str
    kind: str
    arrays: tuple[np.ndarray, ...]
    roles: tuple[str, ...]


@dataclass(frozen=True)
class KerasFile:
    """What a file holds.

    Attributes:
        path: Of the file.
        layers: Those with weights, in the model's order; of a file without stated order, within each kind.
        has_names: Whether layers go by their names; else by kind and number.
        config: The model's config as plain data, None where the file has none.
    """

    path: str
    layers: tuple[StoredLayer, ...]
    has_names: bool
    config: dict[str, Any] | None


def read_keras_file(path: str | Path) -> KerasFile:
    """Layers and config of a ``.h5``, ``.weights.h5`` or ``.keras`` file, told apart by their content.

    Raises:
        InputError: If h5py is missing, or the file is none of these, damaged, too large, or points outside
            itself.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(
            f'{path}: is a folder (a SavedModel?); in Keras, model.save("unet.keras") makes a file'
        )
    try:
        with path.open('rb') as file:
            start = file.read(len(_HDF5))
            file.seek(0)
            if start == _HDF5:
                return _read_hdf5(path, file, path.stat().st_size, None)
            if start.startswith(_ZIP):
                weights, config = _read_zip(path, file)
                return _read_hdf5(path, io.BytesIO(weights), len(weights), _parse(config, path))
    except FileNotFoundError:
        raise InputError(f'{path}: no such file') from None
    except PermissionError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from None
    raise InputError(
        f'{path}: is neither an HDF5 file nor a .keras archive (it starts with {start!r}); name what '
        'model.save or model.save_weights wrote'
    )


def _read_zip(path: Path, file: BinaryIO) -> tuple[bytes, bytes]:
    """The two members of a .keras archive that count, none larger than it may be."""
    try:
        with zipfile.ZipFile(file) as opened:
            names = opened.namelist()
            for name, most in _MOST_BYTES.items():
                if names.count(name) != 1:
                    held = ', '.join(sorted(names)[:8]) or 'nothing'
                    raise InputError(
                        f'{path}: a zip with {names.count(name)} {name} (it holds {held}), so no .keras '
                        'archive with its weights; in Keras, model.save("unet.keras") makes one'
                    )
                member = opened.getinfo(name)
                if member.file_size > min(most, _MOST_EXPANSION * max(member.compress_size, 1)):
                    raise InputError(
                        f'{path}: {name} would expand from {member.compress_size} to {member.file_size} '
                        f'bytes; refused, no U-Net needs that (limits: {most} bytes, {_MOST_EXPANSION} times)'
                    )
            # `read` stops at the size that was checked, and compares the checksum.
            return opened.read(_WEIGHTS), opened.read(_CONFIG)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, zlib.error) as error:
        raise InputError(f'{path}: no sound .keras archive ({error}); {_AGAIN}') from None


def _parse(text: bytes | str, path: Path) -> dict[str, Any]:
    """A model's config, which is JSON: plain data."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path}: its config is no sound JSON ({error}); {_AGAIN}') from None
    if not isinstance(config, dict):
        raise InputError(f'{path}: its config is a {type(config).__name__} and no model; {_AGAIN}')
    return config


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """Within it, what h5py raises over a damaged file becomes an InputError."""
    try:
        yield
    except InputError:
        raise
    except (OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f'{path}: no sound HDF5 file ({type(error).__name__}: {error}); {_AGAIN}') from None


def _read_hdf5(path: Path, content: BinaryIO, size: int, config: dict[str, Any] | None) -> KerasFile:
    """Layers of an open HDF5 file of so many bytes."""
    try:
        import h5py
    except ImportError:
        raise InputError('reading Keras files needs h5py; install with: pip install h5py') from None

    with _damage_told(path), h5py.File(content, 'r') as root:
        reader = _Reader(path, size)
        if 'layers' in reader.names(root):
            return KerasFile(str(path), reader.numbered(reader.child(root, 'layers')), False, config)
        group = root
        if 'model_weights' in reader.names(root):
            group = reader.child(root, 'model_weights')
            if config is None and 'model_config' in root.attrs:
                config = _parse(root.attrs['model_config'], path)
        if not any(name.startswith('layer_names') for name in group.attrs):
            held = ', '.join(reader.names(root)[:8]) or 'nothing'
            raise InputError(
                f'{path}: holds no Keras layers (neither "layers" nor layer_names; it has {held}); in Keras, '
                'model.save("unet.h5") makes a file that does'
            )
        return KerasFile(str(path), reader.stated(group), True, config)


class _Reader:
    """Reads one HDF5 file, of so many bytes, that need not mean well."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.bytes_left = path, size

    def names(self, group: h5py.Group) -> list[str]:
        """Of what a group holds; nothing is opened."""
        if len(group) > _MOST_LAYERS:
            raise InputError(f'{self.path}: {group.name} holds {len(group)} entries; refused, no U-Net does')
        return list(group)

    def child(self, group: h5py.Group, name: str) -> Any:
        """A group or dataset within a group, by a path that no link is on."""
        from h5py import h5l

        for part in name.split('/'):
            # Asked of the link itself: `in` and `[]` would open the file that it points to.
            kind = group.id.links.get_info(part.encode()).type
            if kind != h5l.TYPE_HARD:
                raise InputError(
                    f'{self.path}: {group.name.rstrip("/")}/{part} is a link to somewhere else; refused, '
                    'Keras writes none. Save the model again in Keras'
                )
            group = group[part]
        return group

    def numbered(self, layers: h5py.Group) -> tuple[StoredLayer, ...]:
        """Layers of a Keras 3 file: ``layers/conv2d_10/vars/0``, numbered within each class."""
        kinds = {name: kind for kind, name in GROUP_NAMES.items()}
        found = []
        for group_name in sorted(self.names(layers), key=_running_number):
            group = self.child(layers, group_name)
            if 'vars' not in self.names(group):
                continue
            variables = self.child(group, 'vars')
            numbers = self.names(variables)
            kind = kinds.get(re.sub(r'_\d+$', '', group_name), '')
            if not numbers:
                continue
            if not kind:
                raise InputError(
                    f'{self.path}: layers/{group_name} has weights, and is no Conv2D, Conv2DTranspose or '
                    f'BatchNormalization; {WANTED}'
                )
            arrays = tuple(self.array(self.child(variables, str(at))) for at in range(len(numbers)))
            found.append(StoredLayer(f'layers/{group_name}', '', kind, arrays, ()))
        return tuple(found)

    def stated(self, group: h5py.Group) -> tuple[StoredLayer, ...]:
        """Layers of a legacy file, whose attributes name them in the model's order."""
        found = []
        for name in _attribute_list(group, 'layer_names'):
            layer = self.child(group, name)
            paths = _attribute_list(layer, 'weight_names')
            roles = tuple(re.sub(r':\d+$', '', path.rpartition('/')[2]) for path in paths)
            if 'seed_generator_state' in roles or not roles:
                continue
            kind = NORM if 'moving_variance' in roles else ''
            if not kind and set(roles) - {'kernel', 'bias'}:
                raise InputError(
                    f'{self.path}: layer {name} has the weights {", ".join(roles)}, and is neither a '
                    f'convolution (kernel, bias) nor a batch norm; {WANTED}'
                )
            arrays = tuple(self.array(self.child(layer, path)) for path in paths)
            found.append(StoredLayer(f'layer {name}', name, kind, arrays, roles))
        return tuple(found)

    def array(self, dataset: h5py.Dataset) -> np.ndarray:
        """A dataset's numbers as float32, if they are finite, stored as Keras does, and within this file."""
        import h5py

        place = f'{self.path}: {dataset.name}'
        if not isinstance(dataset, h5py.Dataset):
            raise InputError(f'{place}: is a group where an array is expected; save the model again in Keras')
        if dataset.dtype.kind != 'f' or dataset.dtype.itemsize > 8:
            raise InputError(
                f'{place}: holds {dataset.dtype}; expected float16, float32 or float64. In Keras, save the '
                'model unquantised, in float32'
            )
        stored = dataset.id.get_create_plist()
        plain = stored.get_layout() in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
        # Storage in other files, made of other datasets, or packed: of a few bytes that can make any number.
        if not plain or stored.get_external_count() or dataset.id.get_storage_size() != dataset.nbytes:
            raise InputError(
                f'{place}: is not stored as plain numbers within the file; refused, Keras writes it so. Save '
                'the model again in Keras'
            )
        self.bytes_left -= dataset.nbytes
        if self.bytes_left < 0:
            raise InputError(f'{place}: with the arrays before it is larger than the file; {_AGAIN}')
        with np.errstate(over='ignore'):
            numbers = dataset[()].astype(np.float32)
        if not np.isfinite(numbers).all():
            bad = int(numbers.size - np.isfinite(numbers).sum())
            raise InputError(
                f'{place}: {bad} of its {numbers.size} numbers are not finite (nan or beyond float32); the '
                'training diverged. Take an earlier save'
            )
        return numbers


def _running_number(name: str) -> tuple[str, int]:
    """``conv2d`` before ``conv2d_2`` before ``conv2d_10``: as text, the last would come second."""
    match = re.fullmatch(r'(.*?)(?:_(\d{1,9}))?', name, re.DOTALL)
    return match[1], int(match[2] or 0)


def _attribute_list(group: h5py.Group, name: str) -> list[str]:
    """A list of names among a group's attributes; long ones lie in pieces, ``layer_names0`` and so on."""
    numbered = takewhile(group.attrs.__contains__, (f'{name}{piece}' for piece in count()))
    pieces = [name] if name in group.attrs else numbered
    items = [item for piece in pieces for item in np.ravel(group.attrs[piece])]
    return [item.decode() if isinstance(item, bytes) else str(item) for item in items]
