"""Grade an answer of the Lyft challenge against its truth, by the official formulas.

python tools/grade.py answer.json data/lyft/dataA/dataA/CameraSeg --fps 12.5
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError
from .console import guarded, say
from .parser import CommandParser
from .progress import progress


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    parser.add_argument('answer', type=Path, help='challenge JSON, {"1": [vehicle, road], ...}')
    parser.add_argument('truth', type=Path, help='challenge JSON, folder of CARLA label PNGs, or data root')
    parser.add_argument('--fps', type=float, metavar='X', help='loading included; gives the final score')
    parser.add_argument(
        '--drop-repeated',
        type=Path,
        metavar='VIDEO',
        help='its frames beyond the number of the truth repeat the one before: leave their answers out',
    )
    parser.add_argument(
        '--hood',
        choices=['exact', 'rows'],
        help="vehicle pixels of labels left out: the hood's own (default), or all from row 496 of 600 on",
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write the scores as JSON')
    return parser.parse_args(argv)


def _grade(argv: list[str] | None) -> None:
    args = parse_args(argv)
    from ..compat import require_opencv

    require_opencv()
    from ..datasets.files import write_json
    from ..evaluation.challenge import score_dict, score_table
    from ..evaluation.grading import drop_repeats, grade, notes_on, read_truth
    from ..evaluation.submission import read_submission

    # Not of nan either, which compares as false.
    if args.fps is not None and not 0 < args.fps < float('inf'):
        raise InputError(f'--fps {args.fps}: give frames a second, more than 0')
    read = [path for path in (args.answer, args.truth, args.drop_repeated) if path and path.exists()]
    # By another path, a link or another letter case it may be one of them too.
    if args.json and args.json.exists() and any(map(args.json.samefile, read)):
        raise InputError(f'--json {args.json}: would be written over what is read; name another file')
    answer, truth = read_submission(args.answer), read_truth(args.truth, args.hood or 'exact')
    repeats = None
    if args.drop_repeated is not None:
        # A number would open a camera.
        if not args.drop_repeated.exists():
            raise InputError(f'{args.drop_repeated}: no such video')
        from ..inference.frames import open_frames

        with open_frames(str(args.drop_repeated)) as frames:
            shown = progress(frames, frames.total, 'comparing frames')
            repeats = drop_repeats(shown, str(args.drop_repeated), answer, truth)
    dropped = repeats.frames if repeats else ()
    counts = grade(answer, truth, dropped, lambda frames, total: progress(frames, total, 'grading'))
    notes = notes_on(answer, truth, repeats, args.hood)
    say(score_table(counts, truth.hood, args.fps))
    for note in notes:
        say(f'note: {note}')
    if args.json is not None:
        graded = dict(answer=str(args.answer), truth=str(args.truth), frames=len(truth), notes=notes)
        write_json(args.json, graded | score_dict(counts, truth.hood, args.fps))
    wrote = f'; wrote {args.json}' if args.json else ''
    say(f'graded {len(truth)} frames of {args.answer} against {args.truth}{wrote}')


main = guarded(_grade)
