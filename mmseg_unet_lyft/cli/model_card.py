"""Write a model card, Markdown as Hugging Face reads it, from a checkpoint's run card and its test scores.

python tools/model_card.py work_dirs/unet_lyft_demo/best_mIoU_iter_1400.pth
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .console import CommandParser, guarded, say
from .options import check_file_option, check_paths


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
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
    return parser.parse_args(argv)


def _model_card(argv: list[str] | None) -> None:
    args = parse_args(argv)
    from ..datasets.atomic_io import sha256_of_file, write_whole
    from ..engine.run_card import SCORES_FILE, read_card, read_scores
    from ..report.model_card import CARD_SUFFIX, build_card

    path = args.checkpoint
    check_paths(path, args.scores)
    out = args.out or path.with_name(path.name + CARD_SUFFIX)
    check_file_option('--out', out, args.overwrite)
    usual = path.parent / SCORES_FILE
    file = args.scores or (usual if usual.is_file() else None)
    scores = read_scores(file, path) if file else None
    text = build_card(read_card(path), scores, sha256_of_file(path))
    write_whole(out, text.encode('utf-8', 'backslashreplace'))
    if scores is None:
        say('not tested yet: the card says so; tools/test.py writes the scores that it lacks')
    say('left open, for you to fill in: licence of the weights, contact; paths are as the run had them')
    say(f'wrote {out}')


main = guarded(_model_card)
