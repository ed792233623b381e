"""Show a model in the browser: drop an image or a video, see its labels; two models are compared.

python tools/demo.py work_dirs/unet_lyft_bn/best_mIoU_iter_20000.pth
"""

import os
import time

from .. import inference
from ..errors import InputError, short_names
from .console import CommandParser, guarded, say, stop_on_signals
from .options import MODEL_VARIABLE, add_common, check_paths, model_config, open_segmenter, require_runtime

_POLL_SECONDS = 0.2


def _models(words: list[str]) -> list[tuple[str | None, str]]:
    """Config (if any) and path of each of one or two models; an InputError for other words."""
    found, config = [], None
    if not any(word.endswith(inference.MODELS) for word in words) and os.environ.get(MODEL_VARIABLE):
        words = [*words, os.environ[MODEL_VARIABLE]]
    for word in words:
        if word.endswith(inference.MODELS):
            found.append((config, word))
        elif config or not word.endswith('.py'):
            raise InputError(f'{word}: neither a model ({", ".join(inference.MODELS)}) nor its config (.py)')
        config = word if word.endswith('.py') else None
    if config or len(found) not in (1, 2):
        raise InputError(f'{" ".join(words) or "no model is named"}: name one model, or two to compare them')
    return found


def _demo(argv: list[str] | None) -> int:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    kinds = ', '.join(inference.MODELS)
    what = f'checkpoint or exported file ({kinds}), or {MODEL_VARIABLE} names it; before it'
    add('words', nargs='*', metavar='[CONFIG] MODEL', help=f'{what} its config if needed; two are compared')
    add('--host', default='127.0.0.1', help='address to listen on (127.0.0.1, for this machine alone)')
    add('--port', type=int, help='the first free one from 7860 on by default')
    proxy = 'believe the X-Forwarded headers, by which a proxy in front names itself'
    add('--trust-proxy', action='store_true', help=proxy)
    add_common(parser, '--device', '--max-megapixels', '--trust')
    parser.set_defaults(cfg_options=[], opacity=0.5, max_megapixels=16)
    args = parser.parse_args(argv)
    named = _models(args.words)
    from ..demo.server import LOOPBACK, require_gradio

    require_gradio()
    check_paths(*(path for _, path in named))
    for config, path in named:
        require_runtime(config, path)
    from ..demo.app import Model, demo

    opened = [open_segmenter(args, model_config(args, config), path) for config, path in named]
    paths = [path for _, path in named]
    models = list(map(Model, short_names(paths), paths, opened))
    with stop_on_signals() as stop:
        with demo(models, args.host, args.port, int(args.max_megapixels * 1e6), args.trust_proxy) as url:
            open_to = 'this machine' if args.host in LOOPBACK else 'whoever reaches it, without a password'
            say(f'Ctrl-C ends it; open to {open_to}:', url)
            while not stop.is_set():
                time.sleep(_POLL_SECONDS)
        return stop.exit_code


main = guarded(_demo)
