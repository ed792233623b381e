"""Draw CARLA-like driving scenes with labels, in the layout of the Kaggle Lyft set.

python tools/draw_scenes.py data/scenes --frames 12 --height 300 --width 400
"""

from pathlib import Path

from .console import CommandParser, guarded, progress, say


def _draw_scenes(argv: list[str] | None) -> None:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add('out', type=Path, help='folder to draw into: new, empty, or an earlier drawing')
    add('--frames', type=int, default=12, help='frames of each drive (default: 12)')
    add('--seed', type=int, default=0, help='another seed draws other towns (default: 0)')
    add('--height', type=int, default=600, help='of the frames, 64 or more (default: 600)')
    add('--width', type=int, default=800, help='of the frames, 64 or more (default: 800)')
    add(
        '--drives', nargs='+', metavar='NAME', default=['train', 'val', 'test'], help='splits or drives (all)'
    )
    args = parser.parse_args(argv)
    from ..compat import require_opencv

    require_opencv()
    from ..datasets.carla import SPLITS
    from ..synthetic.scenes import SceneRecipe, write_scenes

    drives = tuple(drive for name in args.drives for drive in SPLITS.get(name, (name,)))
    recipe = SceneRecipe(drives, args.frames, args.seed, args.height, args.width)
    drawn = write_scenes(args.out, recipe, show=progress)
    total = len(drives) * args.frames
    written = f'wrote {drawn} of' if drawn else 'already there: all'
    say(f'{written} {total} frames ({len(drives)} drives) in {args.out}')


main = guarded(_draw_scenes)
