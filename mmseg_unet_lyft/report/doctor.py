"""What the doctor found, as lines for people and as JSON; needs neither torch nor a stack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: Its name.
        found: What it is.
        advice: What to do about it, '' if nothing is off.
        stops: Whether no command works before that is done.
    """

    what: str
    found: str
    advice: str = ''
    stops: bool = False


def examine(folder: Path) -> Iterator[Finding]:
    """All findings, software first; those of data and disk are of a folder, the current one."""
    from .doctor_machine import machine_findings
    from .doctor_software import software_findings

    yield from software_findings()
    yield from machine_findings(folder)


def as_text(findings: Iterable[Finding]) -> str:
    """A line a finding, marked ``!`` with the advice below where something is off."""
    findings = list(findings)
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        mark = '!' if finding.advice else ' '
        lines.append(f'{mark} {finding.what:{width}}  {finding.found}'.rstrip())
        if finding.advice:
            lines.append(f'  {"":{width}}  -> {finding.advice}')
    return '\n'.join([*lines, '', verdict(findings)])


def verdict(findings: Iterable[Finding]) -> str:
    """The last line: how many things are off, and whether commands work."""
    off = [finding for finding in findings if finding.advice]
    stopping = [finding.what for finding in off if finding.stops]
    if stopping:
        return f'no command works before this is mended: {", ".join(stopping)}'
    if off:
        return f'worth a look: {", ".join(finding.what for finding in off)}; commands work'
    return 'nothing is off'


def as_json(findings: Iterable[Finding]) -> dict[str, Any]:
    """``findings`` as dicts, and ``usable``: whether commands work."""
    findings = list(findings)
    return dict(
        usable=not any(finding.stops for finding in findings),
        findings=[asdict(finding) for finding in findings],
    )
