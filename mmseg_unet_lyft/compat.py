"""Everything that depends on the installed mm stack: OneDL's or OpenMMLab's, which share import names.

Importing this module imports neither torch nor an mm package; only functions that need them do.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import InputError, install_command

# Also read by __init__.py, before anything else is imported.
_OPS_STAND_IN = 'MMSEG_UNET_LYFT_OPS_STAND_IN'
_MODULES = ('torch', 'mmengine', 'mmcv', 'mmseg')
# What OpenMMLab's packages import without declaring it; setuptools 81 has no pkg_resources.
_UNDECLARED = ('ftfy', 'regex', 'pkg_resources')
_ONEDL = ('onedl-mmsegmentation', 'onedl-mmcv', 'onedl-mmengine')
_OPENMMLAB = ('mmsegmentation', 'mmcv', 'mmcv-lite', 'mmengine')
_NO_ONEDL = 'Could not import OneDL'
# The first release that loads a training checkpoint without running code from the file.
_TORCH_MIN = '2.6'


def require_stack() -> None:
    """Check that one complete mm stack is installed; make `mmcv.ops` importable where nothing is compiled.

    Imports neither torch nor an mm package. An InputError names a fault and the command that fixes it.
    """
    for fault in stack_faults():
        raise InputError(fault)
    require_opencv()
    stand_in_for_ops()


def register_classes() -> None:
    """Put the package's classes into mmseg's registries, as `import mmseg_unet_lyft.register` does.

    Imported by name, since the registered modules import this one.
    """
    importlib.import_module('mmseg_unet_lyft.register')


def installed_stack() -> dict[str, str]:
    """Version of each installed distribution of either mm stack, by name."""
    return {name: version for name in (*_ONEDL, *_OPENMMLAB) if (version := installed_version(name))}


def stack_title(found: dict[str, str]) -> str:
    """Name of the stack that distributions belong to; '' for neither or both."""
    names = {'OneDL' if name in _ONEDL else 'OpenMMLab' for name in found}
    return names.pop() if len(names) == 1 else ''


def stack_faults() -> Iterator[str]:
    """Faults of the mm stack, each with the command that fixes it, in the order to fix them."""
    found = installed_stack()
    yield from _doubled(found)
    extra = 'openmmlab' if any(name in _OPENMMLAB for name in found) else 'onedl'
    needed = _MODULES + (_UNDECLARED if extra == 'openmmlab' else ())
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        others = f' (found: {_named(found)})' if found else ''
        yield f'this command needs {", ".join(missing)}{others}; install with: {install_command(extra)}'
        # The other checks read the missing packages.
        return
    yield from _wrong_versions(found)


def require_opencv() -> None:
    """Raise an InputError with the remedy if OpenCV is missing, or lacks a system library."""
    if find_spec('cv2') is None:
        raise InputError('this command needs cv2; install with: pip install opencv-python')
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise InputError(
            f'OpenCV does not load ({error}); the build for machines without a screen needs no '
            'system library: pip uninstall -y opencv-python opencv-contrib-python && '
            'pip install opencv-python-headless'
        ) from error


def stand_in_for_ops() -> None:
    """Let ``mmcv.ops`` be imported where mmcv has no compiled operators (mmcv-lite).

    mmseg 1.2.2 imports two of them unconditionally; the U-Net calls none.
    """
    spec = find_spec('mmcv')
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    compiled = any(True for folder in folders for _ in folder.glob('_ext.*'))
    if folders and not compiled and 'mmcv._ext' not in sys.modules:
        sys.modules['mmcv._ext'] = _MissingOps('mmcv._ext')
        # For processes that this one starts, such as a data loader's spawned workers: see __init__.py.
        os.environ[_OPS_STAND_IN] = '1'


@contextmanager
def quiet_import() -> Iterator[None]:
    """Keep the note that OneDL's mmseg prints about a missing package off standard output."""
    printed = StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        kept = [line for line in printed.getvalue().splitlines(keepends=True) if _NO_ONEDL not in line]
        sys.stdout.write(''.join(kept))


class _MissingOps(ModuleType):
    """Replaces mmcv's compiled operators: any name can be imported; calling it raises InputError."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> None:
            raise InputError(
                f'this model calls mmcv.ops.{name}, a compiled operator, and the installed mmcv has none; '
                'use a stack with it: pip uninstall -y mmcv-lite && pip install mmcv==2.1.0 (compiles)'
            )

        return missing


def installed_version(distribution: str) -> str | None:
    """The installed version of a distribution, None if there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _named(found: dict[str, str]) -> str:
    """``mmcv 2.1.0 and mmengine 0.10.7``."""
    return ' and '.join(f'{name} {version}' for name, version in found.items())


def _doubled(found: dict[str, str]) -> Iterator[str]:
    """Distributions that are installed over each other."""
    onedl = {name: version for name, version in found.items() if name in _ONEDL}
    openmmlab = {name: version for name, version in found.items() if name in _OPENMMLAB}
    if onedl and openmmlab:
        yield (
            f'both mm stacks are installed over each other: {_named(onedl)} and {_named(openmmlab)} '
            f'share their import names. Remove both and install one: pip uninstall -y {" ".join(found)} '
            f'&& {install_command("onedl" if "mmsegmentation" not in openmmlab else "openmmlab")}'
        )
    if 'mmcv' in found and 'mmcv-lite' in found:
        yield (
            f'mmcv {found["mmcv"]} and mmcv-lite {found["mmcv-lite"]} are installed over each other. Remove '
            'both and install one: pip uninstall -y mmcv mmcv-lite && pip install mmcv-lite==2.1.0'
        )


def _wrong_versions(found: dict[str, str]) -> Iterator[str]:
    """A torch that is too old, and an mmcv that mmseg would refuse with an assertion."""
    from packaging.version import Version

    torch = installed_version('torch')
    if torch and Version(torch) < Version(_TORCH_MIN):
        yield (
            f'torch {torch}: checkpoints of a training run load safely from torch {_TORCH_MIN} on; '
            f"upgrade with: pip install 'torch>={_TORCH_MIN}'"
        )
    for name in ('mmcv', 'mmcv-lite'):
        if name in found and not Version('2.0.0rc4') <= Version(found[name]) < Version('2.2'):
            yield (
                f'{name} {found[name]}: mmsegmentation {found.get("mmsegmentation")} takes it below 2.2.0; '
                f'fix it with: pip uninstall -y {name} && pip install mmcv-lite==2.1.0'
            )
