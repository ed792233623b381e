"""What a kind of input consists of: files to mutate, ways to mutate them, commands to feed them to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .mutations import Mutation
from .sample import Sample


@dataclass(frozen=True)
class Place:
    """Where a case happens.

    Attributes:
        sample: What is untouched.
        tree: The folder with the mutated file.
        file: That file.
        out: Empty folder for results.
    """

    sample: Sample
    tree: Path
    file: Path
    out: Path


@dataclass(frozen=True)
class Consumer:
    """A command, or a way to read.

    Attributes:
        name: For people.
        feed: Reads the mutated file and writes results; returns the exit code.
        result: What came of it, to be compared with what came of the untouched file.
        files: Patterns, below the tree, of the files it reads.
        lists_files: It is an inspection, which lists bad files above its error.
        proves: That it accepts a file means that the file is sound.
    """

    name: str
    feed: Callable[[Place], int]
    result: Callable[[Place], Any]
    files: tuple[str, ...]
    lists_files: bool = False
    proves: bool = False


@dataclass(frozen=True)
class Other:
    """A sound file of another content.

    Attributes:
        clean: The same content written afresh, whose result must be the same; None where nobody can tell.
    """

    clean: bytes | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        name: For the table.
        tree: The folder of the sample that its files lie in.
        mutations: By the suffix of the file and the name of the mutation.
        consumers: Drawn evenly; one that stands twice is drawn twice as often.
        meaning: What an independent reader makes of mutated bytes, given those before: True if it is the
            same, an `Other`, or None if the file is not sound.
        harmless: Mutations that no consumer may refuse.
        manifest: The consumer that finds files that were exchanged or renamed, if there is one.
        whole: The file that takes in the others: an error about what a sound one lacks names it.
    """

    name: str
    tree: str
    mutations: dict[str, dict[str, Mutation]]
    consumers: tuple[Consumer, ...]
    meaning: Callable[[bytes, bytes, str], bool | Other | None]
    harmless: frozenset[str] = field(default_factory=frozenset)
    manifest: Consumer | None = None
    whole: str | None = None
