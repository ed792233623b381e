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


def read_object(path: Path, remedy: str, kind: type = dict) -> Any:
    """A JSON file's content.

    Args:
        path: The file.
        remedy: What to do if it is damaged, for the message.
        kind: What it has to hold: ``dict`` or ``list``.

    Raises:
        InputError: If it cannot be read, is no JSON or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror}); {remedy}') from None
    # Deeper than Python nests calls.
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path}: is no JSON ({error}); {remedy}') from None
    if not isinstance(content, kind):
        raise InputError(f'{path}: holds a {type(content).__name__} in place of a {kind.__name__}; {remedy}')
    return content


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
