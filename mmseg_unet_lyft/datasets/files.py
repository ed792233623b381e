"""Files that are there whole or not at all, whenever the process is killed; and the disk they are on."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import InputError

UNFINISHED = '.part'  # Suffix of files that are still being written.


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name, bring it to disk, then give it its name.

    Raises:
        InputError: If it cannot be written.
    """
    part = path.with_name(path.name + UNFINISHED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open('wb') as file:
            file.write(content)
        sync(part)
        part.replace(path)
    except OSError as error:
        # A part keeps a full disk full.
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise InputError(
            f'{path}: cannot be written ({error.strerror}); make room, or name another folder'
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all; the same content gives the same bytes.

    A float that is no finite number becomes null: JSON has none, and most readers refuse the whole file.
    """
    write_whole(path, (json.dumps(_finite(content), indent=1, allow_nan=False) + '\n').encode('ascii'))


def _finite(content: Any) -> Any:
    """Content of JSON with None for each float that is no finite number."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


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
    """Disk space that files take; what is not yet written of a file that was made larger takes none."""
    states = [path.stat() for path in paths]
    return sum(state.st_blocks * 512 if hasattr(state, 'st_blocks') else state.st_size for state in states)
