"""Exported files that hold their own checksum, behind all else: a changed bit is found where they are opened.

Neither the runtimes nor their formats have one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import InputError

_KEY = b'mmseg_unet_lyft_sha256'
_DIGITS = 64


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes in protobuf's encoding; short ones alone."""
    return bytes([number << 3 | 2, len(content)]) + content


# A file's last field, an entry of its metadata: ModelProto's field 14 of strings key (1) and value (2).
# Source: the file onnx.proto of the onnx project.
_ENTRY = _field(1, _KEY) + bytes([2 << 3 | 2, _DIGITS])
_ONNX_HEAD = bytes([14 << 3 | 2, len(_ENTRY) + _DIGITS]) + _ENTRY
# The last line: a comment.
_XML_HEAD, _XML_TAIL = b'<!-- ' + _KEY + b' ', b' -->\n'


def seal(path: Path) -> None:
    """Write the checksum of an ``.onnx`` file, or of an ``.xml`` and its ``.bin``, at its end."""
    content = path.read_bytes()
    head, tail = _around(path)
    path.write_bytes(content + head + _digest(path, content) + tail)


def check_seal(path: Path) -> None:
    """Raise an InputError for a file that is not what was sealed, or cannot be read; others pass unsealed."""
    try:
        is_sound = _is_as_sealed(path)
    except OSError as error:
        where = error.filename or path
        raise InputError(f'{where}: cannot be read ({error.strerror}); check its permissions') from error
    if not is_sound:
        raise InputError(
            f'{path}: is not what was exported, its checksum differs; take another copy, or export the model '
            'again with tools/export.py'
        )


def _is_as_sealed(path: Path) -> bool:
    """Whether a file is what was sealed, or has no checksum."""
    content = path.read_bytes()
    head, tail = _around(path)
    length = len(head) + _DIGITS + len(tail)
    end = content[-length:]
    if not (end.startswith(head) and end.endswith(tail)):
        return True
    return end[len(head) : len(head) + _DIGITS] == _digest(path, content[:-length])


def _around(path: Path) -> tuple[bytes, bytes]:
    """What stands before and behind the checksum."""
    return (_XML_HEAD, _XML_TAIL) if path.suffix == '.xml' else (_ONNX_HEAD, b'')


def _digest(path: Path, content: bytes) -> bytes:
    """SHA-256 of a file's content, and of the weights beside an ``.xml``, in hexadecimal digits."""
    found = hashlib.sha256(content)
    if path.suffix == '.xml':
        found.update(path.with_suffix('.bin').read_bytes())
    return found.hexdigest().encode()
