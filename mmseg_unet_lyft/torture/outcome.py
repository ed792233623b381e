"""What a part of the torture found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Outcome:
    """How often something was tried, and how often what is promised held.

    Attributes:
        part: Of the command, ``kills`` say.
        what: What was done.
        tried: How often.
        held: How often the promise held.
        failures: A line each on those where it did not.
    """

    part: str
    what: str
    tried: int
    held: int
    failures: list[str]
