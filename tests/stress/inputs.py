"""Mutated or swapped inputs, fed to the commands one by one: each gives the correct result, or one error."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmseg_unet_lyft.__main__ import main
from mmseg_unet_lyft.cli.console import guarded
from mmseg_unet_lyft.datasets.lyft_carla import LyftCarlaDataset
from mmseg_unet_lyft.engine.checkpoint import read_weights
from mmseg_unet_lyft.errors import printable

from . import mutations as m
from .common import PATIENCE_SECONDS, ROOT, Forked, Outcome, Progress

RIGHT, REFUSED, OTHER, FAILED = 'right', 'refused', 'other', 'failed'
_SWAP_EVERY = 8

_CONFIG = 'unet_lyft_bn.py'
_IMAGES = 'frames/dataA/dataA/CameraRGB'
_CHECKPOINT, _ANSWER = 'run/iter_3.pth', 'answers/answer.json'
_DRIVES = ('F1', 'F2', 'F3', 'F62')
# A network and frames that train a step in a tenth of a second.
_TINY = (
    'image_scale_wh=(96,64) crop_size=(64,64) base_channels=2 batch_size=2 num_workers=0 warmup_iters=1 '
    'train_drives=[F1,F62] val_drives=[F3] test_drives=[F2]'
).split()
_JSON = ('--json', '--device', 'cpu')


class Place(NamedTuple):
    """Where a case happens: ``tree`` has the mutated file, ``sample`` is untouched, ``out`` gets results."""

    sample: Path
    tree: Path
    file: Path
    out: Path


class Consumer(NamedTuple):
    name: str
    feed: Callable[[Place], int]  # Returns the exit code.
    result: Callable[[Place], Any]  # What is compared afterwards.
    files: tuple[str, ...]  # Patterns of what it reads.
    inspects: bool = False  # Lists bad files above its error; accepting a file claims that it is intact.


@dataclass(frozen=True)
class Kind:
    name: str
    tree: str  # The folder of the sample that the files are in.
    formats: dict[str, tuple[dict[str, m.Mutation], Callable[[bytes], Any]]]  # By suffix, with a reader.
    consumers: tuple[Consumer, ...]  # One that is listed twice is taken twice as often.
    # Writes what was read of a valid file with other content; b'' where that is not possible, None where
    # other content is damage.
    rewrite: Callable[[Any], bytes | None]
    harmless: tuple[str, ...] = ()  # Mutations that no consumer may refuse.

    def meaning(self, content: bytes, before: bytes, suffix: str) -> bool | bytes | None:
        """True if content is the same as before, None if it is damaged, else the other content rewritten."""
        read = self.formats[suffix][1]
        try:
            found = read(content)
        except m.DAMAGE:
            return None
        return True if found == read(before) else self.rewrite(found)


class Case(NamedTuple):
    kind: Kind
    number: int
    consumer: Consumer
    file: str
    mutation: str
    content: bytes | None  # None for a swap.


def stress(folder: Path, count: int, seed: int, progress: Progress) -> list[Outcome]:
    """Feed so many mutated files to the commands, each in a process of its own; failed cases stay."""
    oracle = Oracle(make_sample(folder / 'sample'), folder)
    outcomes = {kind.name: Outcome('inputs', kind.name) for kind in KINDS}
    counts: dict[str, Counter] = {kind.name: Counter() for kind in KINDS}
    for number in progress(range(count), count, 'mutated inputs'):
        case = make_case(oracle.sample, KINDS[number % len(KINDS)], seed, number)
        verdict, why = oracle.try_case(case)
        counts[case.kind.name][verdict] += 1
        what = f'case {number}: {case.file} {case.mutation}, fed to {case.consumer.name}: {why}'
        outcomes[case.kind.name].note([what] if verdict == FAILED else [])
    for name, outcome in outcomes.items():
        found = counts[name]
        outcome.what += f': {found[RIGHT]} right, {found[REFUSED]} refused, {found[OTHER]} of other content'
    return list(outcomes.values())


def make_case(sample: Path, kind: Kind, seed: int, number: int) -> Case:
    """A case; seed and number decide all of it."""
    rng = np.random.Generator(np.random.PCG64([seed, number]))
    tree = sample / kind.tree
    consumer = kind.consumers[rng.integers(len(kind.consumers))]
    files = sorted({path for pattern in consumer.files for path in tree.glob(pattern)})
    file = files[rng.integers(len(files))]
    if number % _SWAP_EVERY == 3:
        swap = list(m.SWAPS)[rng.integers(len(m.SWAPS))]
        return Case(kind, number, consumer, str(file.relative_to(tree)), swap, None)
    mutations, before = kind.formats[file.suffix][0], file.read_bytes()
    while True:
        name = list(mutations)[rng.integers(len(mutations))]
        content = mutations[name](before, rng)
        if content != before:
            return Case(kind, number, consumer, str(file.relative_to(tree)), name, content)


class Oracle:
    """Runs cases in a folder and judges them; a command that runs for longer than the limit hangs."""

    def __init__(self, sample: Path, folder: Path, limit_seconds: float = PATIENCE_SECONDS) -> None:
        self.sample, self._folder, self._limit = sample, folder, limit_seconds
        self._results: dict[tuple[str, str, bytes | None], Any] = {}

    def try_case(self, case: Case) -> tuple[str, str]:
        """Run a case: `RIGHT`, `REFUSED`, `OTHER` or `FAILED`, and why; its folder stays if it failed."""
        if case.content is None:
            # A folder may stand where images do, and `stats.json` may be missing.
            meaning = {m.LINK: True, m.NAME: b'', m.FOLDER: b'', m.DEAD: b''}.get(case.mutation)
        else:
            before = (self.sample / case.kind.tree / case.file).read_bytes()
            meaning = case.kind.meaning(case.content, before, Path(case.file).suffix)
        place, code, text = self._run(case, 'mutated', case.content, case.content is None)
        names = [printable(str(place.file)), *([case.file] if case.consumer.inspects else [])]
        if case.content is None:
            # What is not there any more is missing to another file, or to the folder.
            names += [Path(case.file).name, str(place.tree)]
        if isinstance(meaning, bytes):
            # What a valid part of a config breaks may be reported about the config.
            names.append(str(place.tree / _CONFIG))
        verdict, why = judge_end(code, text, names, case.consumer.inspects)
        if verdict == REFUSED and case.mutation in case.kind.harmless:
            verdict, why = FAILED, f'refused a harmless mutation: {why}'
        elif verdict == RIGHT:
            found, expected = case.consumer.result(place), self._result(case, None)
            is_other = isinstance(meaning, bytes) and meaning and found != expected
            clean = self._result(case, meaning) if is_other else None
            verdict, why = judge_result(found, expected, meaning, clean, case.consumer.inspects)
        if verdict != FAILED:
            shutil.rmtree(place.out.parent)
        return verdict, why

    def _result(self, case: Case, content: bytes | None) -> Any:
        """The result of valid bytes in the place of a case's file; None for the untouched bytes."""
        key = case.consumer.name, case.file if case.kind.name == 'videos' else case.kind.name, content
        if key not in self._results:
            place, code, text = self._run(case, 'valid', content)
            if code != 0:
                raise RuntimeError(f'{place.file}: valid, but {case.consumer.name} ended with {code}: {text}')
            self._results[key] = case.consumer.result(place)
            shutil.rmtree(place.out.parent)
        return self._results[key]

    def _run(
        self, case: Case, what: str, content: bytes | None, swaps: bool = False
    ) -> tuple[Place, int | None, str]:
        """Feed links to the sample, but for one file; the place, the exit code and the output."""
        folder = self._folder / f'case_{case.number}_{what}'
        place = Place(self.sample, folder / 'tree', folder / 'tree' / case.file, folder / 'out')
        shutil.copytree(self.sample / case.kind.tree, place.tree, copy_function=os.link)
        place.out.mkdir()
        if content is not None:
            place.file.unlink()
            place.file.write_bytes(content)
        elif swaps:
            place.file.unlink()
            m.SWAPS[case.mutation](place.file, self.sample / case.kind.tree / case.file)
            place = place._replace(file=m.odd_name(place.file)) if case.mutation == m.NAME else place
        run = Forked(lambda: case.consumer.feed(place), folder / 'log.txt')
        return place, run.finish(self._limit), run.log.read_text(errors='replace')


def judge_end(code: int | None, text: str, names: list[str], inspects: bool = False) -> tuple[str, str]:
    """What exit code (None: it hangs) and output say; `RIGHT` if the file was accepted: its result decides.

    An error has to call the file by one of the names; an inspection may do so above the error.
    """
    tail = ' '.join(text.split())[-300:]
    if code is None:
        return FAILED, f'hangs: {tail}'
    # Also one that was kept in a file: nobody foresaw that error.
    if code < 0 or 'traceback' in text.lower():
        return FAILED, f'crashed, code {code}: {tail}'
    if code == 0:
        return RIGHT, ''
    errors = re.split(r'^error: ', text, flags=re.MULTILINE)[1:]
    if code != 2 or len(errors) != 1:
        return FAILED, f'exit code {code}, {len(errors)} errors: {tail}'
    if not any(name in (text if inspects else errors[0]) for name in names):
        return FAILED, f'error that names another file: {tail}'
    return REFUSED, errors[0].strip()


def judge_result(
    found: object,
    expected: object,
    meaning: bool | bytes | None,
    clean: object = None,
    inspects: bool = False,
) -> tuple[str, str]:
    """What the result of an accepted file says, whose `Kind.meaning` is known.

    It is compared with that of the untouched file and, if there is one, of the same content written again.
    """
    if found == expected and not (inspects and meaning is None):
        return RIGHT, ''
    if meaning is None:
        return FAILED, 'accepted silently, though an independent reader finds damage'
    if meaning is True:
        return FAILED, 'another result, though an independent reader finds the same content'
    if clean is not None and found != clean:
        return FAILED, 'another result than of the same content written again'
    return OTHER, ''


def make_sample(sample: Path) -> Path:
    """Synthetic frames, packed frames, a trained network, an answer, videos and configs in a folder."""
    shutil.copytree(ROOT / 'configs', sample / 'configs')
    frames, images = str(sample / 'frames'), str(sample / _IMAGES)
    size = ['--height', '64', '--width', '96', '--frames', '2', '--drives', *_DRIVES]
    videos = ['--out', str(sample / 'videos'), '--overlay', *_JSON]
    with (sample / 'log.txt').open('w', encoding='utf-8') as log, redirect_stdout(log), redirect_stderr(log):
        if (
            main(['draw_scenes', frames, *size])
            or main(['prepare_data', frames, str(sample / 'packed'), '--workers', '1'])
            or _train(sample, sample / 'run')
            or main(['video', str(sample / _CHECKPOINT), images, *videos])
        ):
            raise RuntimeError(f'{log.name}: a command failed')
    (sample / 'answers').mkdir()
    (sample / 'videos' / 'CameraRGB_challenge.json').rename(sample / _ANSWER)
    return sample


def _inspect(tree: Path, out: Path) -> int:
    return main(['inspect_data', str(tree), '--out', str(out), '--workers', '1'])


def _train(sample: Path, work_dir: Path, *others: str, config: Path | None = None, steps: int = 3) -> int:
    config = config or sample / 'configs' / _CONFIG
    places = ['--data-root', str(sample / 'frames'), '--work-dir', str(work_dir), '--device', 'cpu']
    options = ['--seed', '0', '--cfg-options', *_TINY, f'max_iters={steps}', 'val_interval=1']
    return main(['train', str(config), *places, *others, *options])


def _model(place: Place) -> str:
    """The mutated checkpoint if there is one, else the untouched one."""
    mutated = place.tree / Path(_CHECKPOINT).name
    return str(mutated if mutated.is_file() else place.sample / _CHECKPOINT)


def _root(place: Place) -> Path:
    """The mutated data root if there is one, else the untouched one."""
    return place.tree if (place.tree / 'dataA').is_dir() else place.sample / 'frames'


def _predict(place: Place) -> int:
    images = str(_root(place) / Path(_IMAGES).relative_to('frames'))
    return main(['predict', _model(place), images, '--device', 'cpu', '--out', str(place.out), '--ids'])


def _grade(place: Place) -> int:
    answer = place.sample / _ANSWER
    given = (place.file, place.sample / 'frames') if place.file.name == answer.name else (answer, place.tree)
    return main(['grade', *map(str, given), '--json', str(place.out / 'score.json')])


def _read_frames(place: Place) -> int:
    """All frames as training gets them."""

    def save_frames(argv: list[str] | None) -> None:
        pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadLyftLabel')]
        frames = LyftCarlaDataset(str(place.tree), list(_DRIVES), pipeline=pipeline)
        read = [frames[index] for index in range(len(frames))]
        # Frames may differ in size.
        arrays = {f'{at}_{key}': frame[key] for at, frame in enumerate(read) for key in ('img', 'gt_seg_map')}
        np.savez(place.out / 'frames.npz', **arrays)

    return guarded(save_frames)([])


def _files(pattern: str) -> Callable[[Place], dict[str, bytes]]:
    return lambda place: {path.name: path.read_bytes() for path in place.out.glob(pattern)}


def _grades(place: Place) -> dict:
    score = json.loads((place.out / 'score.json').read_text(encoding='utf-8'))
    return {key: value for key, value in score.items() if key not in ('answer', 'truth', 'hood')}


def _problems(place: Place) -> Any:
    return json.loads((place.out / 'inspection.json').read_text(encoding='utf-8'))['problems']


def _weights(folder: Path) -> dict[str, bytes]:
    """The weights of the last checkpoint in a folder."""
    weights = read_weights(str(max(folder.glob('iter_*.pth'))))
    return {name: weight.numpy().tobytes() for name, weight in weights.items()}


_RGB, _SEG = '**/CameraRGB/*.png', '**/CameraSeg/*.png'
_PACKED = ('*.npy', 'packed.json', 'stats.json')
_PREDICT = Consumer('predict', _predict, _files('ids/**/*.png'), ('iter_3.pth',))
_READ = Consumer('the data set', _read_frames, _files('frames.npz'), (_SEG,))
_GRADE = Consumer('grade', _grade, _grades, ('answer.json',))
_INSPECT = Consumer(
    'inspect_data', lambda place: _inspect(place.tree, place.out), _problems, (_SEG,), inspects=True
)
_VERIFY = Consumer(
    'prepare_data --verify',
    lambda place: main(['prepare_data', str(place.tree), '--verify']),
    lambda place: None,
    _PACKED,
    inspects=True,
)
_RESUME = Consumer(
    'train --resume',
    lambda place: _train(place.sample, place.tree, '--resume'),
    lambda place: _weights(place.tree),
    ('iter_3.pth', 'iter_3.pth.sha256', 'last_checkpoint'),
)
_RESUME_FROM = Consumer(
    'train --resume PATH',
    lambda place: _train(place.sample, place.out, '--resume', str(place.file)),
    lambda place: _weights(place.out),
    ('iter_2.pth',),
)
_TRAIN = Consumer(
    'train',
    lambda place: _train(place.sample, place.out, config=place.tree / _CONFIG, steps=1),
    lambda place: _weights(place.out),
    ('unet_lyft*.py', '_base_/**/*.py'),
)
_VIDEO = Consumer(
    'video',
    lambda place: main(['video', _model(place), str(place.file), '--out', str(place.out), *_JSON]),
    _files('*.json'),
    ('*.mp4',),
)

KINDS = (
    Kind(
        'images',
        'frames',
        {'.png': (m.IMAGE, m.read_image)},
        tuple(one._replace(files=(_RGB,)) for one in (_PREDICT, _READ, _INSPECT)),
        m.write_image,
        ('recompressed', 'with alpha'),
    ),
    Kind(
        'labels',
        'frames',
        {'.png': (m.LABEL, m.read_tags)},
        (*(_READ, _INSPECT) * 2, _GRADE._replace(files=(_SEG,))),
        m.write_label,
        ('recompressed', 'with alpha'),
    ),
    Kind(
        'packed files',
        'packed',
        {'.npy': (m.ARRAY, m.read_array), '.json': (m.JSON, json.loads)},
        (
            _VERIFY,
            _READ._replace(files=_PACKED),
            _GRADE._replace(files=('label_*.npy', *_PACKED[1:])),
        ),
        lambda content: None,
    ),
    Kind(
        'checkpoints',
        'run',
        {'.pth': (m.ZIP, m.read_zip), '.sha256': (m.TEXT, bytes.split), '': (m.TEXT, bytes.split)},
        (*(_PREDICT,) * 3, _RESUME, _RESUME_FROM),
        lambda content: None,
    ),
    Kind(
        'JSON answers',
        'answers',
        {'.json': (m.ANSWER, m.read_answer)},
        (_GRADE,),
        m.write_answer,
        ('indented', 'a mask recompressed'),
    ),
    Kind(
        'videos',
        'videos',
        {'.mp4': (m.VIDEO, m.read_video)},
        (_VIDEO,),
        lambda content: b'',
    ),
    Kind(
        'configs',
        'configs',
        {'.py': (m.PROGRAM, lambda content: ast.dump(ast.parse(content)))},
        (_TRAIN,),
        lambda content: b'',
        ('reformatted',),
    ),
)
