"""Write a model card, Markdown as Hugging Face reads it, from a checkpoint's run card and its test scores.

python tools/model_card.py work_dirs/unet_lyft_demo/best_mIoU_iter_750.pth
"""

from pathlib import Path

from .console import CommandParser, guarded, say
from .options import check_file_option, check_paths


def _model_card(argv: list[str] | None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument('checkpoint', type=Path, help='with its .run_card.json next to it')
    parser.add_argument(
        '--scores',
        type=Path,
        metavar='FILE',
        help='of the test command (test/scores.json next to it, if there)',
    )
    parser.add_argument('--out', type=Path, metavar='FILE', help='(CHECKPOINT.card.md)')
    parser.add_argument('--overwrite', action='store_true', help='replace an existing card')
    args = parser.parse_args(argv)
    from ..datasets.files import write_whole
    from ..engine.run_card import SCORES_FILE
    from ..report.model_card import CARD_SUFFIX, card_of

    path = args.checkpoint
    check_paths(path, args.scores)
    out = args.out or path.with_name(path.name + CARD_SUFFIX)
    check_file_option('--out', out, args.overwrite)
    write_whole(out, card_of(path, args.scores).encode('utf-8', 'backslashreplace'))
    if not (args.scores or (path.parent / SCORES_FILE).is_file()):
        say('not tested yet: the card says so; tools/test.py writes the scores that it lacks')
    say('left open, for you to fill in: licence of the weights, contact; paths are as the run had them')
    say(f'wrote {out}')


main = guarded(_model_card)
