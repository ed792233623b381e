"""The zip archives that torch writes, held to the sizes and checksums in them; torch itself reads past both.

Importing this loads neither torch nor an mm stack.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError

_BLOCK = 1 << 20


def check_sizes(path: str) -> None:
    """Raise an InputError for an archive that would expand, or that is damaged; other files pass."""
    if not _is_archive(path):
        return
    with _opened(path) as archive:
        content, size = sum(member.file_size for member in archive.infolist()), Path(path).stat().st_size
    # torch never compresses a checkpoint, and reads what others have compressed into memory at once.
    if content > size:
        raise InputError(
            f'{path}: refused, it would expand from {size} to {content} bytes; checkpoints are not '
            'compressed: take another copy, or save it anew with torch.save'
        )


def check_checksums(path: str) -> None:
    """Raise an InputError for an archive whose members are not what was written; other files pass.

    Files of torch before 1.6 are none, and of `torch.serialization.set_crc32_options` without checksums.
    """
    if not _is_archive(path):
        return
    with _opened(path) as archive:
        for member in archive.infolist():
            if member.CRC:
                with archive.open(member) as file:
                    # zipfile compares at the end.
                    while file.read(_BLOCK):
                        pass


def _is_archive(path: str) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except ValueError:
        # Of a broken directory at its end.
        return True


@contextmanager
def _opened(path: str) -> Iterator[zipfile.ZipFile]:
    """The archive; what zipfile raises for damage is an InputError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        LookupError,
        NotImplementedError,
        OSError,
        RuntimeError,
        ValueError,
    ) as error:
        raise InputError(f'{path}: cannot be read, it is damaged ({error}); take another copy') from error
