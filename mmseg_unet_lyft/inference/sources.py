"""Which image each result in a folder was made from, so that a result is never taken for another image's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

SOURCES_NAME = 'sources.jsonl'


@dataclass(frozen=True)
class Source:
    """An image file as it was when it was read.

    Attributes:
        path: Absolute, without links.
        size: Bytes.
        mtime_ns: When it was changed last, nanoseconds since 1970.
    """

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Source:
        """A file as it is now.

        Raises:
            InputError: If it cannot be looked at.
        """
        try:
            state = path.stat()
        except OSError as error:
            raise InputError(f'{path}: cannot be read ({error.strerror}); was it removed?') from error
        return cls(str(path.resolve()), state.st_size, state.st_mtime_ns)


class Sources:
    """The sources of a folder's results: a line of JSON each time an image's results are finished.

    Lines are only ever added, so that it costs little and a killed run keeps them; the last one of a result
    counts. One that a kill cut short is left out, and its results are made again.

    Args:
        folder: Of the results, which lie at ``folder/KIND/PLACE``.

    Raises:
        InputError: If what is there cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / SOURCES_NAME
        self._made: dict[str, dict[str, Source]] = {}  # By place, then kind.
        try:
            text = self._path.read_text(encoding='ascii') if self._path.exists() else ''
        except (OSError, UnicodeError) as error:
            raise InputError(f'{self._path}: cannot be read ({error}); name another --out') from error
        self._is_cut = bool(text) and not text.endswith('\n')
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self._note(entry['place'], map(str, entry['kinds']), Source(**entry['source']))
            except (ValueError, TypeError, LookupError, RecursionError):
                continue

    def _note(self, place: str, kinds: Iterable[str], source: Source) -> None:
        self._made.setdefault(place, {}).update(dict.fromkeys(kinds, source))

    def made(self, place: Path, kinds: Iterable[str], source: Source) -> bool:
        """Whether all these kinds of results are there, made from exactly this source."""
        known = self._made.get(place.as_posix(), {})
        return all(known.get(kind) == source and (self._folder / kind / place).is_file() for kind in kinds)

    def of_others(self, images: Iterable[tuple[Path, Path]]) -> Iterator[tuple[Path, Path, str]]:
        """``(result, image, other image)`` for each result in an image's place that is another image's."""
        for path, place in images:
            for kind, source in self._made.get(place.as_posix(), {}).items():
                result = self._folder / kind / place
                if source.path != str(path.resolve()) and result.is_file():
                    yield result, path, source.path

    def add(self, place: Path, kinds: Iterable[str], source: Source) -> None:
        """Note that the results of these kinds are finished.

        Raises:
            InputError: If it cannot be written.
        """
        entry = dict(place=place.as_posix(), kinds=list(kinds), source=vars(source))
        try:
            with self._path.open('a', encoding='ascii') as file:
                file.write('\n' * self._is_cut + json.dumps(entry) + '\n')
        except OSError as error:
            raise InputError(f'{self._path}: cannot be written ({error.strerror}); make room') from error
        self._is_cut = False
        self._note(place.as_posix(), entry['kinds'], source)
