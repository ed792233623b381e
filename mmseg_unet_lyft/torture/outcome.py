"""What became of one part of the torture."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    tried: int = 0
    held: int = 0
    failures: list[str] = field(default_factory=list)

    def note(self, wrong: list[str]) -> None:
        """Count a case, in which so much was wrong."""
        self.tried += 1
        self.held += not wrong
        self.failures += wrong
