"""A disk that fills up: a small one, where the system lets us have one, or a limit on the size of files."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable
from pathlib import Path

from ..datasets.files import free_bytes
from .session import Forked

# Of linux/sched.h and linux/mount.h.
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_BALLAST = 'ballast'


def mount_small_disk(folder: Path, size: int) -> None:
    """Put a small empty disk at a folder, for this process and those it starts, and until they end.

    Args:
        folder: Is there; what it holds is hidden.
        size: Bytes.

    Raises:
        OSError: If the system does not let us.
    """
    user, group = os.getuid(), os.getgid()
    _call('unshare', _CLONE_NEWUSER | _CLONE_NEWNS)
    for name, content in (('setgroups', 'deny'), ('uid_map', f'0 {user} 1'), ('gid_map', f'0 {group} 1')):
        Path('/proc/self', name).write_text(content)
    _call('mount', None, b'/', None, _MS_REC | _MS_PRIVATE, None)
    _call('mount', b'tmpfs', os.fsencode(folder), b'tmpfs', 0, f'size={size}'.encode())


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library that says 0 where it succeeded."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f'{name}: {os.strerror(number)}')


def can_mount(folder: Path) -> bool:
    """Whether the system lets us have a small disk."""
    trial = Forked(lambda: mount_small_disk(folder, 1 << 20), folder / 'mount.txt')
    return trial.finish() == 0


def fill(folder: Path, left: int) -> None:
    """Leave only so many bytes free on the disk a folder is on; a second time, what is taken changes."""
    ballast = folder / _BALLAST
    ballast.unlink(missing_ok=True)
    room = free_bytes(folder) - left
    if room > 0:
        with ballast.open('wb') as file:
            os.posix_fallocate(file.fileno(), 0, room)


def empty(folder: Path) -> None:
    """Give back what `fill` took."""
    (folder / _BALLAST).unlink(missing_ok=True)


def limit_files(size: int, pid: int = 0) -> Callable[[], None]:
    """What keeps a process, and those it starts, from writing any file beyond a size.

    Python ignores the signal that comes with it, so that writes fail as on a full disk.

    Args:
        size: Bytes.
        pid: The process; 0 is the one that calls.
    """

    def limit() -> None:
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))

    return limit
