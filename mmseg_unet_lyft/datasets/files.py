"""Files that are there whole or not at all, whenever the process is killed."""

from __future__ import annotations

import json
import os
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
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise InputError(
            f'{path}: cannot be written ({error.strerror}); make room, or name another folder'
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all; the same content gives the same bytes."""
    write_whole(path, (json.dumps(content, indent=1) + '\n').encode('ascii'))
