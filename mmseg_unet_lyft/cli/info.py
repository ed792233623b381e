"""Show what a config or a checkpoint is: network, parameters, GFLOP, classes, training, resolved config.

python tools/info.py configs/unet_lyft_lite.py
python tools/info.py work_dirs/unet_lyft_demo/best_mIoU_iter_700.pth --card
"""

from pathlib import Path

from .. import inference
from ..errors import InputError
from .console import CommandParser, guarded, say
from .options import add_common, check_file_option, check_paths, model_config, named_model, ranged


def _info(argv: list[str] | None) -> None:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    what = 'a config, a checkpoint, or a checkpoint that does not describe its model after its config'
    add('words', nargs='+', metavar='CONFIG | [CONFIG] CHECKPOINT', help=what)
    add(
        '--size',
        nargs=2,
        type=ranged(int, 1),
        default=(600, 800),
        metavar=('HEIGHT', 'WIDTH'),
        help="of the network's input that GFLOP are counted for (600 800)",
    )
    what = 'also write a model card, Markdown as Hugging Face reads it (CHECKPOINT.card.md)'
    add('--card', nargs='?', type=Path, const=Path(), metavar='FILE', help=what)
    what = 'of the test command, for the card (test/scores.json next to the checkpoint, if there)'
    add('--scores', type=Path, metavar='FILE', help=what)
    add('--overwrite', action='store_true', help='replace an existing card')
    add_common(parser, '--trust', '--cfg-options')
    args = parser.parse_args(argv)
    config, checkpoint = args.words[0], None
    if args.words[-1].endswith(inference.CHECKPOINTS):
        config, checkpoint = named_model(args)
    elif args.words[1:] or config.endswith(inference.EXPORTED):
        raise InputError(
            f'{" ".join(args.words)}: name one config, a checkpoint, or a config and its checkpoint'
        )
    if not checkpoint and (args.card or args.scores):
        raise InputError(f'--card: is of a checkpoint, and {config} is a config')
    check_paths(checkpoint, args.scores)
    from ..compat import require_stack

    require_stack()
    from ..inference.torch_model import describe_model

    config = model_config(args, config)
    if args.card:
        _write_card(Path(checkpoint), args.card, args.scores, args.overwrite)
    say(*describe_model(config, checkpoint, tuple(args.size), args.trust))


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
