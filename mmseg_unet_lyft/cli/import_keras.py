"""Convert the tutorial U-Net trained in Keras to a checkpoint, without Keras.

python tools/import_keras.py unet.keras --out unet.pth
"""

from pathlib import Path

from ..errors import InputError
from ..inference import PICKLED
from .console import CommandParser, guarded, say
from .options import check_file_option, check_paths


def _import_keras(argv: list[str] | None) -> None:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add('weights', type=Path, help='what Keras saved: .keras, .weights.h5 or .h5')
    add('--out', type=Path, metavar='F', help='the checkpoint (as the weights, .pth, in this folder)')
    add('--config', default='unet_lyft.py', help='says how the network is applied (unet_lyft.py)')
    add('--scheme', help='label scheme (of 13 outputs carla13, of 3 challenge3, of 1 road)')
    numbers = dict(nargs='+', type=float, metavar='X')
    add('--mean', **numbers, help='subtracted from levels 0 to 255 in the Keras training, 1 or 3 numbers (0)')
    add(
        '--std',
        **numbers,
        help='divided by after that (255: inputs were 0 to 1; 1 for a model with a Rescaling layer)',
    )
    add('--colours', choices=['RGB', 'BGR'], help='order of the channels in the Keras training (RGB)')
    add(
        '--size',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help="frames are resized to it (the model's own if the file has it, else the config's: 600 800)",
    )
    add('--epsilon', type=float, help='of batch norm, for files without it (0.001)')
    add('--overwrite', action='store_true', help='replace the checkpoint')
    args = parser.parse_args(argv)
    name = args.weights.name.removesuffix('.h5').removesuffix('.weights').removesuffix('.keras')
    out = args.out or Path(f'{name}.pth')
    if out.suffix not in PICKLED:
        raise InputError(
            f'--out {out}: a checkpoint ends in {" or ".join(PICKLED)}; tools/export.py makes others'
        )
    check_file_option('--out', out, args.overwrite)
    check_paths(args.weights, config=args.config)
    from ..compat import require_stack

    require_stack()
    from ..engine.config import load_config
    from ..engine.keras_import import import_keras

    options = (args.scheme, args.mean, args.std, args.colours, args.size, args.epsilon)
    say(*import_keras(args.weights, out, load_config(args.config), *options).split('\n'))
    say(f'use it: python tools/predict.py {out} frames/')
    say(f'wrote {out}')


main = guarded(_import_keras)
