"""Name, size and hash of every file, and what became of them since."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from .files import write_json
from .listing import Problem

VERSION = 1
KINDS = {
    'swapped': 'files swapped since the manifest',
    'renamed': 'renamed since the manifest',
    'replaced': 'replaced since the manifest',
    'gone': 'gone since the manifest',
    'new': 'new since the manifest',
}


class Entry(NamedTuple):
    """A file: path relative to the root, size in bytes, SHA-256 as hex."""

    path: str
    size: int
    sha256: str


def write(path: Path, entries: list[Entry]) -> None:
    """Write a manifest, whole or not at all."""
    files = [dict(path=entry.path, bytes=entry.size, sha256=entry.sha256) for entry in entries]
    write_json(path, dict(version=VERSION, files=files))


def read(path: Path) -> list[Entry]:
    """The entries of a manifest.

    Raises:
        InputError: If the file is missing or no manifest.
    """
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
        if content['version'] != VERSION:
            raise ValueError(f'version {content["version"]}, expected {VERSION}')
        entries = [Entry(file['path'], file['bytes'], file['sha256']) for file in content['files']]
        for one in entries:
            known = isinstance(one.size, int | None) and isinstance(one.sha256, str | None)
            if not isinstance(one.path, str) or not known:
                raise ValueError(f'{one} is no entry')
        return entries
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f'{path}: no manifest of inspect_data ({error})') from None


def compare(before: list[Entry], now: list[Entry]) -> Iterator[Problem]:
    """What changed between two manifests of one root, each file named once."""
    old = {entry.path: entry for entry in before}
    new = {entry.path: entry for entry in now}
    # Where each content lay; of several places the first.
    place_before: dict[str, str] = {}
    for entry in before:
        place_before.setdefault(entry.sha256, entry.path)
    gone = {path for path in old if path not in new}
    moved_from = set()
    for path, entry in new.items():
        if path in old and entry.sha256 == old[path].sha256:
            continue
        source = place_before.get(entry.sha256)
        if path in old:
            if source is not None and source != path:
                swapped = source in new and new[source].sha256 == old[path].sha256
                what = 'the two were swapped' if swapped else 'it was copied over this file'
                kind, message = 'swapped', f'now has the content that {source} had; {what}'
            else:
                kind = 'replaced'
                message = f'another content than before ({entry.size} bytes, was {old[path].size})'
        elif source in gone:
            moved_from.add(source)
            kind, message = 'renamed', f'was {source}'
        else:
            kind, message = 'new', 'was not there'
        yield Problem(kind, path, message, Path(path).stem)
    for path in sorted(gone - moved_from):
        yield Problem('gone', path, f'was there ({old[path].size} bytes); restore it', Path(path).stem)
