"""Look at what is installed, the machine and the data, and say in a line what is off; changes nothing.

python tools/doctor.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .console import guarded, say
from .parser import CommandParser

EXIT_UNUSABLE = 1


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    parser.add_argument('--json', action='store_true', help='print JSON, to send along with a question')
    return parser.parse_args(argv)


def _doctor(argv: list[str] | None) -> int:
    args = parse_args(argv)
    from ..report.doctor import as_json, as_text, examine

    findings = list(examine(Path.cwd()))
    told = as_json(findings)
    say(json.dumps(told, indent=1) if args.json else as_text(findings))
    return 0 if told['usable'] else EXIT_UNUSABLE


main = guarded(_doctor)
