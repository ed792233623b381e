"""Files: written completely or not at all, read only if regular; locks, JSON, checksums, disk space."""

import errno
import hashlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError

try:
    import fcntl
except ImportError:  # On Windows.
    import msvcrt

    fcntl = None

# A file that is still being written: its name, 16 random hex digits, and this suffix.
UNFINISHED = '.part'
_UNFINISHED_NAME = re.compile(r'.+\.[0-9a-f]{16}\.part', re.DOTALL)
LOCK_NAME = '.mmseg_unet_lyft.lock'
_LOCK_BYTES = 1 << 26  # Far more than a lock lists.
# Most bytes that are read, by kind: far more than any real file has, less than what fills a machine.
TEXT_BYTES, JSON_BYTES, MODEL_BYTES = 1 << 20, 1 << 27, 1 << 34
# Folders that this process has locked, each with its lock's open file.
_locked: dict[Path, int] = {}


def create(path: Path) -> int:
    """Descriptor of a new file, open for writing; never of one that is there, nor through a link."""
    # Windows lacks these, and text mode is its default.
    extra = sum(getattr(os, flag, 0) for flag in ('O_NOFOLLOW', 'O_CLOEXEC', 'O_BINARY'))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | extra, 0o666)


@contextmanager
def whole_file(path: Path, durable: bool = True, buffering: int = -1) -> Iterator[BinaryIO]:
    """A new file to write to; it gets the name ``path`` when the block ends without an error.

    Until then it has a random name, which the lock of its folder lists. A missing folder is made; an
    InputError says why a file cannot be written. With ``durable`` the block ends only once the content is on
    disk, which costs milliseconds a file.
    """
    part = unfinished(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _list_in_lock(part)
        with os.fdopen(create(part), 'wb', buffering) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise InputError(
            f'{path}: cannot be written ({error.strerror or error}); make room, or name another folder'
        ) from error
    finally:
        # After an error the unfinished file would only take up disk space.
        with suppress(OSError):
            part.unlink(missing_ok=True)


def unfinished(path: Path) -> Path:
    """A random name for a file until it is complete."""
    return path.with_name(f'{path.name}.{secrets.token_hex(8)}{UNFINISHED}')


def finished(path: Path) -> Path | None:
    """What an unfinished file would have become; None for any other."""
    is_ours = _UNFINISHED_NAME.fullmatch(path.name)
    return path.with_name(path.name[: -17 - len(UNFINISHED)]) if is_ours else None


def write_whole(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a file, complete or not at all; arguments and errors as `whole_file`."""
    with whole_file(path, durable) as file:
        file.write(content)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keep other runs from writing to a folder until the block ends; a new one that stays empty is removed.

    The system locks a file in it, which names process and host and lists unfinished files, and unlocks it
    when the process ends, however it ends: the next run deletes the files that are listed. An InputError
    names the process that writes there.
    """
    folder = Path(folder).resolve()
    path, is_new = folder / LOCK_NAME, not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _locked_file(path)
    except OSError as error:
        raise InputError(f'{folder}: cannot be written ({error.strerror}); name another folder') from error
    try:
        yield
    finally:
        with suppress(OSError):
            del _locked[folder]
            path.unlink()
        os.close(handle)
        if is_new:
            with suppress(OSError):
                folder.rmdir()


def _locked_file(path: Path) -> int:
    """Descriptor of a folder's lock, taken by this process; deletes what an earlier run left unfinished."""
    folder, flags = path.parent, sum(getattr(os, name, 0) for name in ('O_NOFOLLOW', 'O_CLOEXEC'))
    while True:
        # A process could lock its own file again; and closing any descriptor of it would unlock it.
        handle = _locked.get(folder) or os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
        if folder not in _locked and os.fstat(handle).st_nlink > 1:
            os.close(handle)
            raise OSError(errno.EMLINK, f'{path.name} is a link')
        # Only then nobody adds to the list.
        is_ours = folder not in _locked and _lock(handle)
        os.lseek(handle, 0, os.SEEK_SET)
        holder, *left = os.read(handle, _LOCK_BYTES).decode(errors='replace').splitlines() or ['another run']
        if not is_ours:
            if folder not in _locked:
                os.close(handle)
            raise InputError(f'{folder}: {holder[:200]} writes there; wait, or name another folder')
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                break
        # Another run has ended since, and removed it.
        os.close(handle)
    _locked[folder] = handle
    for line in left:
        with suppress(OSError, ValueError, TypeError):
            part = folder / json.loads(line)
            if finished(part) and part.parent.resolve().is_relative_to(folder):
                part.unlink()
    os.truncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, f'process {os.getpid()} on {platform.node()}\n'.encode())
    return handle


def _lock(handle: int) -> bool:
    """Lock an open file for this process; False if another one has."""
    try:
        if fcntl is not None:
            # Unlike with flock, a process that is forked does not keep the lock.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(handle, _LOCK_BYTES, os.SEEK_SET)  # What is locked cannot be read there.
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        # Some network file systems have no locks: then nothing is known of other runs.
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


def _list_in_lock(part: Path) -> None:
    """List an unfinished file in the lock of its folder, or of one above, if this process holds it."""
    for folder, lock in _locked.items():
        if (place := part.parent.resolve() / part.name).is_relative_to(folder):
            os.write(lock, json.dumps(str(place.relative_to(folder))).encode() + b'\n')


def open_regular(path: str | Path, most_bytes: int | None = None) -> BinaryIO:
    """A regular file, opened for reading: the one way in for files that may come from a stranger.

    Raises:
        OSError: As from ``open``, or if it is a pipe, device or folder, also through a link, or larger than
            ``most_bytes``; it never waits for a writer.
    """
    # Without O_NONBLOCK, opening a pipe waits. Windows lacks these, and text mode is its default.
    flags = ('O_NONBLOCK', 'O_NOCTTY', 'O_CLOEXEC', 'O_BINARY')
    handle = os.open(path, sum(getattr(os, flag, 0) for flag in flags) | os.O_RDONLY)
    state = os.fstat(handle)
    reason = None if stat.S_ISREG(state.st_mode) else 'not a regular file'
    if reason is None and most_bytes is not None and state.st_size > most_bytes:
        reason = f'{state.st_size} bytes, more than the {most_bytes} that are read'
    if reason:
        os.close(handle)
        raise OSError(errno.EINVAL, reason, str(path))
    return os.fdopen(handle, 'rb')


def read_regular(path: str | Path, most_bytes: int = TEXT_BYTES) -> bytes:
    """The bytes of a regular file; errors as of `open_regular`."""
    with open_regular(path, most_bytes) as file:
        return file.read(most_bytes)


def check_regular(
    path: str | Path, remedy: str = 'name another file', most_bytes: int | None = MODEL_BYTES
) -> None:
    """Raise an InputError unless a file can be read by other software; arguments as of `open_regular`."""
    try:
        open_regular(path, most_bytes).close()
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror}); {remedy}') from None


def write_json(path: Path, content: Any) -> None:
    """Write JSON, complete or not at all; the same content gives the same bytes, and nan is null."""
    write_whole(path, (json.dumps(_finite(content), indent=1, allow_nan=False) + '\n').encode('ascii'))


def _finite(content: Any) -> Any:
    """JSON content with None in place of nan and infinities, which most JSON readers refuse."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_object(path: Path, remedy: str, kind: type = dict) -> Any:
    """A JSON file's content, a ``dict`` or a ``list``.

    Raises:
        InputError: If it cannot be read, is not JSON or is of another kind; ends with the remedy.
    """
    try:
        content = json.loads(read_regular(path, JSON_BYTES))
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror}); {remedy}') from None
    # RecursionError: deeper than Python nests calls.
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path}: is not JSON ({error}); {remedy}') from None
    if not isinstance(content, kind):
        raise InputError(f'{path}: holds a {type(content).__name__} in place of a {kind.__name__}; {remedy}')
    return content


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 of a file's content, hex."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def checksum_file(path: Path) -> Path:
    """Path of a file's checksum, a file for `sha256sum -c`."""
    return path.with_name(f'{path.name}.sha256')


def is_intact(path: Path) -> bool | None:
    """Whether a file matches the checksum next to it; None without one."""
    checksum = checksum_file(path)
    if not checksum.is_file() or not path.is_file():
        return None
    try:
        lines = read_regular(checksum).decode(errors='replace').splitlines()
    except OSError:
        return False
    return sha256_of_file(path) in {line.split()[0] for line in lines if line.split()}


def sync(path: Path) -> None:
    """Wait until a file's or folder's content is on disk."""
    if path.is_dir() and os.name == 'nt':
        return  # Windows cannot open a folder, and keeps renames in order by itself.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def free_bytes(folder: Path) -> int:
    """Free disk space where a folder is or will be."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free


def taken_bytes(paths: Iterable[Path]) -> int:
    """Total size of files, in bytes."""
    return sum(path.stat().st_size for path in paths)
