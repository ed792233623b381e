"""Unpacking an archive nobody vouches for: everything is checked before the first byte is written."""

from __future__ import annotations

import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from ..errors import InputError
from . import png
from .files import UNFINISHED, free_bytes, taken_bytes
from .listing import IMAGE_FOLDER
from .packed import BYTES_PER_PIXEL

# The Kaggle archive expands 1.0 times: PNGs are compressed already.
LARGEST_EXPANSION = 40
_BLOCK = 1 << 20
_ENCRYPTED = 0x1
# macOS puts a second, hidden copy of every name there.
_JUNK_FOLDER = '__MACOSX'


def unzip(
    archive: Path,
    out: Path,
    show: Callable[[Iterable, int], Iterable] = lambda members, total: members,
    room_for_packing: bool = False,
) -> None:
    """Unpack an archive into a folder; what is there already and right is kept.

    Args:
        archive: The zip file.
        out: Folder to unpack into: new, or one that an earlier run with this archive left.
        show: Wraps the members while they are unpacked, given them and how many there are.
        room_for_packing: Whether the disk must also hold the packed frames.

    Raises:
        InputError: If the archive is damaged, wants to write outside the folder, holds links or encrypted
            files, expands too far or beyond the free disk, or the folder holds other files. Nothing has
            been written then, but for a member whose content turns out to be damaged.
    """
    archive, out = Path(archive), Path(out)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _checked_members(archive, opened)
            _check_folder(archive, out, members)
            missing = [member for member in members if not _is_there(out / member.filename, member)]
            _check_room(archive, opened, out, missing, members if room_for_packing else [])
            for member in show(missing, len(missing)):
                _extract(archive, opened, member, out / member.filename)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
        raise InputError(f'{archive}: no sound zip archive ({error}); download it again') from None
    except OSError as error:
        place = error.filename or archive
        raise InputError(f'{place}: {error.strerror or error}; check the disk and permissions') from error


def _checked_members(archive: Path, opened: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files of an archive, all of them harmless."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in opened.infolist():
        reason = _refusal(member)
        if reason is None and member.filename in members:
            reason = 'is in it twice'
        if reason:
            raise InputError(f'{archive}: {member.filename!r} {reason}; nothing was unpacked')
        if not member.is_dir() and PurePosixPath(member.filename).parts[0] != _JUNK_FOLDER:
            members[member.filename] = member
    expanded, packed = sum(member.file_size for member in members.values()), archive.stat().st_size
    if expanded > LARGEST_EXPANSION * packed:
        raise InputError(
            f'{archive}: would expand {expanded / packed:.0f} times, to {expanded / 1e9:.2f} GB; more than '
            f'{LARGEST_EXPANSION} times is refused, nothing was unpacked'
        )
    return list(members.values())


def _refusal(member: zipfile.ZipInfo) -> str | None:
    """Why a member must not be unpacked; None if it may."""
    # As the archive has it: `filename` may have been changed to this system's separators.
    name = member.orig_filename
    parts = re.split(r'[/\\]', name)
    if name.startswith(('/', '\\')) or '..' in parts or re.match('[A-Za-z]:', name) or '\0' in name:
        return 'lies outside the folder'
    if '\\' in name:
        return 'has a backslash in its name'
    if not member.is_dir() and (parts[-1] in ('', '.') or name.endswith(UNFINISHED)):
        return 'is no usable file name'
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return 'is a link' if kind == stat.S_IFLNK else 'is no plain file'
    return 'is encrypted' if member.flag_bits & _ENCRYPTED else None


def _check_folder(archive: Path, out: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raise an InputError if the folder holds anything that is not from this archive."""
    if out.exists() and not out.is_dir():
        raise InputError(f'{out}: is a file; name another folder')
    names = {member.filename for member in members}
    names |= {f'{name}{UNFINISHED}' for name in names}
    for folder, subfolders, files in os.walk(out):
        for name in (*files, *(one for one in subfolders if (Path(folder) / one).is_symlink())):
            path = Path(folder) / name
            if path.is_symlink() or path.relative_to(out).as_posix() not in names:
                raise InputError(f'{path}: is not from {archive}; move it away, or name another folder')


def _is_there(path: Path, member: zipfile.ZipInfo) -> bool:
    """Whether a file has the size and checksum of the archive's."""
    # Files are not brought to disk one by one, which takes longer than all else; this finds what was lost.
    if not path.is_file() or path.stat().st_size != member.file_size:
        return False
    checksum = 0
    with path.open('rb') as file:
        while block := file.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum == member.CRC


def _check_room(
    archive: Path,
    opened: zipfile.ZipFile,
    out: Path,
    missing: list[zipfile.ZipInfo],
    to_pack: list[zipfile.ZipInfo],
) -> None:
    """Raise an InputError if the disk is too small for the files, and for packing them."""
    unpacked = sum(member.file_size for member in missing)
    # Of each pair the image alone: its pixels are what packing stores.
    images = [member for member in to_pack if f'/{IMAGE_FOLDER}/' in f'/{member.filename}']
    packed = BYTES_PER_PIXEL * sum(_pixels(opened, member) for member in images)
    # What an earlier run has packed already, whole or in part.
    packed = max(packed - taken_bytes(out.parent.glob('*.npy*')), 0)
    free = free_bytes(out)
    if unpacked + packed > free:
        raise InputError(
            f'{archive}: needs {unpacked / 1e9:.2f} GB unpacked and {packed / 1e9:.2f} GB packed, but '
            f'{free / 1e9:.2f} GB are free at {out}; make room or name another folder, nothing was unpacked'
        )


def _pixels(opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Pixels of a PNG in an archive by its header; 0 if it has none."""
    with opened.open(member) as file:
        header = png.header_of(file.read(png.HEADER_BYTES))
    return 0 if header is None else min(header.size[0] * header.size[1], 2**26)


def _extract(archive: Path, opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """Unpack a file under another name, then give it its name; zipfile checks size and checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + UNFINISHED)
    with opened.open(member) as source, part.open('wb') as target:
        shutil.copyfileobj(source, target, _BLOCK)
    part.replace(path)
