"""What became of one part of the torture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Outcome:
    """A row of the table.

    Attributes:
        part: What was tortured.
        what: What was done to it and what came of it, in one line.
        tried: Cases.
        held: Those in which the promise was kept.
        failures: One line for each of the others.
    """

    part: str
    what: str
    tried: int
    held: int
    failures: list[str]
