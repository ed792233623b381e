"""What depends on which mm stack is installed: OneDL's or OpenMMLab's, under the same import names.

Today only OneDL's is checked for. What OpenMMLab's needs on top (a stand-in for mmcv's compiled
operators, safe globals for resuming) belongs here too.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from .errors import InputError

_STACK = ('torch', 'mmengine', 'mmcv', 'mmseg')
_PARENT = Path(__file__).resolve().parents[1]


def install_command() -> str:
    """The command that installs the mm stack, from a clone or for an installed package."""
    if (_PARENT / 'setup.py').is_file():
        return f"pip install -e '{_PARENT}[onedl]'"
    return "pip install 'mmseg_unet_lyft[onedl]'"


def require_stack() -> None:
    """Return if torch and an mm stack can be imported; imports neither.

    Raises:
        InputError: If one is missing; the message names it and the command that installs it.
    """
    _require(_STACK, install_command())


def require_opencv() -> None:
    """Return if OpenCV, which drawing and reading images need, can be imported.

    Raises:
        InputError: If it is missing; the message names the command that installs it.
    """
    _require(('cv2',), 'pip install opencv-python')


def _require(modules: tuple[str, ...], command: str) -> None:
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise InputError(f'this command needs {", ".join(missing)}; install with: {command}')
