"""What commands left: every file's content, and whether a video's results can be used."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path there."""
    files = (path for path in sorted(folder.rglob('*')) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def broken_results(folder: Path) -> list[str]:
    """A line on each overlay, label map and JSON below a folder that is there and cannot be used."""
    found = []
    for path in sorted(folder.rglob('*')):
        check = {'.mp4': _play, '.png': _decode, '.json': _parse}.get(path.suffix)
        if check is None:
            continue
        try:
            check(path)
        except (OSError, ValueError, SyntaxError) as error:
            found.append(f'{path}: is there and cannot be used ({error})')
    return found


def _play(path: Path) -> None:
    """Decode every frame of a video; errors of PyAV's are OSErrors and ValueErrors."""
    import av

    with av.open(str(path)) as container:
        if not sum(1 for _ in container.decode(video=0)):
            raise ValueError('has no frames')


def _decode(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def _parse(path: Path) -> None:
    json.loads(path.read_text(encoding='utf-8'))
