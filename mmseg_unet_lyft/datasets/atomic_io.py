"""Files that stay complete or absent even if the process is killed; JSON, checksums and disk space."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import InputError

UNFINISHED = '.part'  # Suffix of files that are still being written.


@contextmanager
def whole_file(path: Path, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path to write to; the file gets its own name when the block ends without an error.

    A missing folder is made; an InputError says why a file cannot be written. With ``durable`` the block ends
    only once the content is on disk, which costs milliseconds a file.
    """
    part = path.with_name(path.name + UNFINISHED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if durable:
            sync(part)
        part.replace(path)
    except OSError as error:
        raise InputError(
            f'{path}: cannot be written ({error.strerror or error}); make room, or name another folder'
        ) from error
    finally:
        # After an error the unfinished file would only take up disk space.
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a file, complete or not at all; arguments and errors as `whole_file`."""
    with whole_file(path, durable) as part:
        part.write_bytes(content)


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
        content = json.loads(path.read_bytes())
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
    with Path(path).open('rb') as file:
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
    lines = checksum.read_text(encoding='utf-8', errors='replace').splitlines()
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
