"""Show a model in the browser: drop an image or a video, see its labels; two models are compared.

python tools/demo.py work_dirs/unet_lyft_bn/best_mIoU_iter_20000.pth
"""

from __future__ import annotations

import argparse
import os
import time

from ..errors import InputError
from ..inference import formats
from .console import guarded, say
from .label_options import check_label_arguments
from .model import model_config, open_segmenter, require_runtime
from .model_options import MODEL_VARIABLE, add_trust
from .parser import CommandParser
from .signals import stop_on_signals

_POLL_SECONDS = 0.2


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    kinds = ', '.join(formats.MODELS)
    what = f'checkpoint or exported file ({kinds}), or {MODEL_VARIABLE} names it; before it'
    add('words', nargs='*', metavar='[CONFIG] MODEL', help=f'{what} its config if needed; two are compared')
    add('--host', default='127.0.0.1', help='address to listen on (127.0.0.1, for this machine alone)')
    add('--port', type=int, help='the first free one from 7860 on by default')
    add('--device', help='cpu, cuda or cuda:N; a GPU by default if there is one')
    add('--max-megapixels', type=float, default=64, help='largest image or frame that is read (64)')
    add_trust(parser)
    parser.set_defaults(cfg_options=[], opacity=0.5)
    return parser.parse_args(argv)


def _models(words: list[str]) -> list[tuple[str | None, str]]:
    """Config (if any) and path of one or two models; raises an InputError for other words."""
    found, config = [], None
    if not any(word.endswith(formats.MODELS) for word in words) and os.environ.get(MODEL_VARIABLE):
        words = [*words, os.environ[MODEL_VARIABLE]]
    for word in words:
        if word.endswith(formats.MODELS):
            found.append((config, word))
        elif config or not word.endswith('.py'):
            raise InputError(f'{word}: is no model ({", ".join(formats.MODELS)}) and no config (.py) of one')
        config = word if word.endswith('.py') else None
    if config or len(found) not in (1, 2):
        raise InputError(f'{" ".join(words) or "no model is named"}: name one model, or two to compare them')
    return found


def _demo(argv: list[str] | None) -> int:
    args = parse_args(argv)
    named = _models(args.words)
    check_label_arguments(args)
    from ..apps.server import LOOPBACK, require_gradio

    require_gradio()
    for config, path in named:
        require_runtime(config, path)
    from ..apps.demo import demo
    from ..apps.labelling import Model, model_names

    opened = [open_segmenter(args, model_config(args, config), path) for config, path in named]
    paths = [path for _, path in named]
    models = list(map(Model, model_names(paths), paths, opened))
    with stop_on_signals() as stop:
        with demo(models, args.host, args.port, int(args.max_megapixels * 1e6)) as url:
            open_to = 'this machine' if args.host in LOOPBACK else 'whoever reaches it, without a password'
            say(f'Ctrl-C ends it; open to {open_to}:\n{url}')
            while not stop.is_set():
                time.sleep(_POLL_SECONDS)
        return stop.exit_code


main = guarded(_demo)
