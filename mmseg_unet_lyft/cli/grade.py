"""Grade an answer of the Lyft challenge against its truth, by the official formulas.

python tools/grade.py answer.json data/lyft/dataA/dataA/CameraSeg --fps 12.5
"""

from pathlib import Path

from ..errors import InputError
from .console import CommandParser, guarded, progress, say
from .options import add_common, check_paths, ranged


def _grade(argv: list[str] | None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument('answer', type=Path, help='challenge JSON, {"1": [vehicle, road], ...}')
    parser.add_argument('truth', type=Path, help='challenge JSON, folder of CARLA label PNGs, or data root')
    parser.add_argument(
        '--fps', type=ranged(float, 1e-6), metavar='X', help='with loading; gives the final score'
    )
    parser.add_argument(
        '--drop-repeated',
        type=Path,
        metavar='VIDEO',
        help='its frames beyond the number of the truth repeat the one before: leave their answers out',
    )
    add_common(parser, '--hood')
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write the scores as JSON')
    args = parser.parse_args(argv)
    from ..compat import require_opencv

    require_opencv()
    from ..datasets.files import write_json
    from ..evaluation import challenge

    read = [path for path in (args.answer, args.truth, args.drop_repeated) if path and path.exists()]
    if args.json and args.json.exists() and any(map(args.json.samefile, read)):
        raise InputError(f'--json {args.json}: would overwrite an input; name another file')
    answer = challenge.read_submission(args.answer)
    truth = challenge.read_truth(args.truth, args.hood or 'exact')
    repeats = None
    if args.drop_repeated is not None:
        # A number would open a camera.
        check_paths(args.drop_repeated)
        from ..inference.frames import open_frames

        video = str(args.drop_repeated)
        with open_frames(video) as frames:
            shown = progress(frames, frames.total, 'comparing frames')
            repeats = challenge.find_repeats(shown, video, len(answer), len(truth))
    dropped = repeats.frames if repeats else ()
    counts = challenge.grade(answer, truth, dropped, progress)
    notes = challenge.grading_notes(answer, truth, repeats, args.hood)
    say(*challenge.score_table(counts, truth.hood, args.fps).split('\n'))
    for note in notes:
        say(f'note: {note}')
    if args.json is not None:
        graded = dict(answer=str(args.answer), truth=str(args.truth), frames=len(truth), notes=notes)
        write_json(args.json, graded | challenge.score_dict(counts, truth.hood, args.fps))
    wrote = f'; wrote {args.json}' if args.json else ''
    say(f'graded {len(truth)} frames of {args.answer} against {args.truth}{wrote}')


main = guarded(_grade)
