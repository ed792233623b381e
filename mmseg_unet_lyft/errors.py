"""`InputError`, raised for a user's mistake, the known causes of other errors, and text for messages."""

import difflib
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# Optional packages, each with the extra that installs it.
EXTRAS = dict(onnxruntime='deploy', openvino='openvino', onnx='export', onnxscript='export', h5py='keras')
EXTRAS |= dict(gradio='demo', huggingface_hub='hub')
EXTRAS |= dict.fromkeys(('tensorboard', 'wandb', 'mlflow'), 'trackers')
_MEETING = 'MASTER_ADDR is an address of the node with NODE_RANK=0 that all can reach, PORT a free one there'
_WORKER = 'memory ran out, most often: lower num_workers or batch_size, and go on with --resume'
_SHARED = '/dev/shm is full or too small: docker run --shm-size=1g, a lower num_workers, or num_workers=0'
# What libraries say when memory cannot be allocated; "primitive" is oneDNN's.
SHORTAGE = (
    'MemoryError|out of memory|[Aa]llocate memory|not enough memory|bad_alloc|ALLOC_FAILED'
    '|Insufficient memory|could not create a primitive|failed to map segment'
)
# Errors of libraries and of the system that the input or the machine causes: a pattern of "Type: message",
# one of "file:function" of a frame, and what to do. The first that fits is taken.
_CAUSES = (
    ('/torch_|shared memory|Bus error', '', _SHARED),
    ('No space left', 'multiprocessing/', _SHARED),
    ('Too many open files|ancdata', '', 'raise the limit (ulimit -n 4096), or set num_workers=0'),
    (SHORTAGE, '', 'lower batch_size, crop_size, val_batch_size or window_size, or use fewer workers'),
    ('DataLoader worker', '', _WORKER),
    ('DataLoader timed out', '', 'a loader worker is stopped or hangs; end it, or set num_workers=0'),
    # A batch in shared memory is lost with the worker that made it.
    ('^(Connection.*|EOF|FileNotFound)Error', 'multiprocessing/', _WORKER),
    (
        'gloo|NCCL|closed by peer|reset by peer|pair closure|Socket Timeout|Timed out waiting',
        'torch/(distributed|autograd|nn/parallel)/',
        'another rank is gone; its message is above. All ranks end: go on with --resume',
    ),
    ('BrokenProcessPool', '', 'a worker was killed, most often for lack of memory; try --workers 1'),
    ('No space left|quota exceeded', '', 'make room, or name another folder'),
    ('Permission denied|not permitted|Read-only', '', 'name a place that you may read and write'),
    ('File exists|Not a directory|Is a directory', '', 'a file or folder is in the way; name another path'),
    ('Broken pipe', '', 'the reader of the output has ended'),
    ('[Aa]ddress already in use', '', 'another process has this port; name another one (PORT, or --port)'),
    ('UnicodeEncodeError', '', 'use a locale with UTF-8, or set PYTHONUTF8=1'),
    ('more than 1 value per channel', '', 'batch norm needs them: a larger batch_size or crop_size'),
    ('^(Key|Attribute)Error', r'mmengine/config/config\.py:__\w+__', 'the config lacks this key'),
    ('scontrol', '', 'set MASTER_ADDR to the first host of the job'),
    ('KeyError|loaded state dict', 'torch/optim/', "the checkpoint is of another optimizer; use the run's"),
    ('', 'torch/distributed/(elastic|launcher|run|rendezvous)|:init_process_group', _MEETING),
    # What mmengine builds comes from a config.
    ('Error', r'mmengine/.*:build_|mmengine/runner/runner\.py:\w+\Z', ''),
)


class InputError(ValueError):
    """A mistake in what the user gave: a file, a value, a config.

    The message names it and says what to do. Commands print the message without a traceback, unless
    ``--debug`` is given, and exit with 2. They do so too for errors with a `remedy_of`; others are defects.
    Each argument is a line; what a terminal cannot show as it is, such as line ends in names, is spelt out.
    """

    def __init__(self, *lines: object) -> None:
        # A loader worker's error arrives with its traceback as text, the message last.
        texts = [str(line) for line in lines]
        if len(texts) == 1 and 'Traceback (most recent call last):' in texts[0]:
            texts = re.split(r'^[\w.]*Error: ', texts[0], flags=re.MULTILINE)[-1].rstrip('\n').split('\n')
        super().__init__(*map(printable, texts))

    def __str__(self) -> str:
        return '\n'.join(self.args)


def install_command(extra: str = 'onedl') -> str:
    """The command that installs an extra, from a clone or for an installed package."""
    if (_PACKAGE.parent / 'setup.py').is_file():
        return f"pip install -e '{_PACKAGE.parent}[{extra}]'"
    return f"pip install 'mmseg_unet_lyft[{extra}]'"


def message_of(error: BaseException) -> str:
    """``path: what happened`` for an error about a file, otherwise ``Type: message``, in one line."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f'{error.filename}: {error.strerror}'
    frames, text = traceback.extract_tb(error.__traceback__), str(error).strip()
    if '. Please check' in text:
        text = str(error.args[0]).partition('. Please check')[0]  # mmengine's advice on registries.
    # An assertion without a text is shown by its source line.
    text = text or (frames[-1].line if frames else '')
    # A worker's error arrives with its traceback as text, the message last.
    line = (text.splitlines() or [''])[-1 if 'Traceback (most recent call last):' in text else 0]
    name = type(error).__name__
    return line if line.startswith(name) else f'{name}: {line}' if line else name


def remedy_of(error: BaseException) -> str | None:
    """What to do about an error of the input or the machine, '' if nothing is known; None: a defect."""
    for one in _causes_of(error):
        if isinstance(one, ModuleNotFoundError) and one.name:
            package = one.name.partition('.')[0]
            command = install_command(EXTRAS[package]) if package in EXTRAS else f'pip install {package}'
            return None if package == _PACKAGE.name else f'install with: {command}'
        said = f'{type(one).__name__}: {message_of(one)}'
        frames = traceback.extract_tb(one.__traceback__)
        way = '\n'.join(f'{Path(frame.filename).as_posix()}:{frame.name}' for frame in frames)
        for pattern, places, remedy in _CAUSES:
            if re.search(pattern, said) and re.search(places, way):
                return remedy
    return '' if isinstance(error, (OSError, ImportError)) else None


def _causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, innermost first; of an ImportError also what it was raised for."""
    if error is not None:
        is_import = isinstance(error, ImportError) and not error.__suppress_context__
        yield from _causes_of(error.__cause__ or (error.__context__ if is_import else None))
        yield error


def find_input_error(error: BaseException | None) -> InputError | None:
    """The innermost ``InputError`` among an exception and its causes; registries and workers wrap it.

    An error raised ``from None`` ends the search: it says the same as the one it replaces, with the file.
    """
    found = None
    while error is not None:
        if isinstance(error, InputError):
            found = error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


@contextmanager
def decoration(what: str, warn: Callable[[str], object]) -> Iterator[None]:
    """Work that only decorates a run's results: whatever fails in it is one warning, and the run goes on.

    ``warn`` takes the line, which names ``what`` is missing and why.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001
        said = str(error) if isinstance(error, InputError) else message_of(error)
        warn(printable(f'{what}: left out, and all else goes on: {said}'))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` with the most similar known word, '' if none is similar."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f'; did you mean {near[0]}?' if near else ''


def shorten_list(items: Iterable[object], limit: int = 5) -> str:
    """``a, b, c and 7 more``: the first items of a list, for a message."""
    items = [str(item) for item in items]
    return ', '.join(items[:limit]) + (f' and {len(items) - limit} more' if len(items) > limit else '')


def printable(text: str, keep: str = '') -> str:
    """Text for a terminal: control characters that are not in ``keep``, and surrogates, are spelt out."""
    return ''.join(one if one.isprintable() or one in keep else ascii(one)[1:-1] for one in text)


def short_names(paths: Sequence[str | Path]) -> list[str]:
    """The fewest last parts of paths that tell them apart; numbered names if one path is given twice."""
    parts = [Path(path).resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [f'{one[-1]} ({number})' for number, one in enumerate(parts, 1)]
