"""Show what a config or a checkpoint is: network, parameters, GFLOP, classes, training, resolved config.

python tools/info.py configs/unet_lyft_lite.py
python tools/info.py work_dirs/unet_lyft_demo/best_mIoU_iter_750.pth --card
"""

from pathlib import Path

from .. import inference
from ..errors import InputError
from .console import CommandParser, guarded, say
from .options import add_common, check_file_option, check_paths, load_named_config, ranged


def _info(argv: list[str] | None) -> None:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add('subject', metavar='CONFIG_OR_CHECKPOINT', help='a config, or a checkpoint that describes its model')
    add(
        '--size',
        nargs=2,
        type=ranged(int, 1),
        default=(600, 800),
        metavar=('HEIGHT', 'WIDTH'),
        help='of the frame that GFLOP are counted for (600 800)',
    )
    what = 'also write a model card, Markdown as Hugging Face reads it (CHECKPOINT.card.md)'
    add('--card', nargs='?', type=Path, const=Path(), metavar='FILE', help=what)
    what = 'of the test command, for the card (test/scores.json next to the checkpoint, if there)'
    add('--scores', type=Path, metavar='FILE', help=what)
    add('--overwrite', action='store_true', help='replace an existing card')
    add_common(parser, '--trust', '--cfg-options')
    args = parser.parse_args(argv)
    path, is_checkpoint = Path(args.subject), args.subject.endswith(inference.CHECKPOINTS)
    if args.subject.endswith(inference.EXPORTED):
        raise InputError(f'{path}: is an exported file; name the checkpoint or the config that it is from')
    if is_checkpoint:
        check_paths(path, args.scores)
        if args.cfg_options:
            raise InputError('--cfg-options: change a config; name it in place of the checkpoint')
    elif args.card:
        raise InputError(f'--card: is of a checkpoint, and {path} is a config')
    from ..compat import require_stack

    require_stack()
    from ..inference.torch_model import describe_model

    config = None if is_checkpoint else load_named_config(args, args.subject)
    say(*describe_model(config, args.subject, tuple(args.size), args.trust))
    if args.card:
        _write_card(path, args.card, args.scores, args.overwrite)


def _write_card(path: Path, out: Path, scores: Path | None, overwrite: bool) -> None:
    from ..datasets.files import write_whole
    from ..engine.run_card import SCORES_FILE
    from ..report.model_card import CARD_SUFFIX, card_of

    out = path.with_name(path.name + CARD_SUFFIX) if out == Path() else out
    check_file_option('--card', out, overwrite)
    write_whole(out, card_of(path, scores).encode('utf-8', 'backslashreplace'))
    if not (scores or (path.parent / SCORES_FILE).is_file()):
        say('not tested yet: the card says so; tools/test.py writes the scores that it lacks')
    say('left open, for you to fill in: licence of the weights, contact; paths are as the run had them')
    say(f'wrote {out}')


main = guarded(_info)
