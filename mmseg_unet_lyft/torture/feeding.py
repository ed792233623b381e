"""The commands that mutated files are fed to, and what is compared of their results."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from ..__main__ import main
from .kind import Consumer, Place
from .sample import CONFIG, DRIVES, IMAGES, TINY, guard, train_arguments

_CPU = ('--device', 'cpu')
_CHECKPOINT = ('run/iter_3.pth',)


def _model(place: Place) -> str:
    """The checkpoint of a case: the mutated one where there is one."""
    mutated = place.tree / place.sample.checkpoint.name
    return str(mutated if mutated.is_file() else place.sample.checkpoint)


def _predict(place: Place) -> int:
    images = place.tree / IMAGES
    inputs = images if images.is_dir() else place.sample.root / IMAGES
    return main(['predict', _model(place), str(inputs), *_CPU, '--out', str(place.out), '--ids'])


def _files(place: Place) -> dict[str, str]:
    """SHA-256 of every label map by name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in place.out.rglob('ids/**/*.png')
    }


def _video(place: Place) -> int:
    results = ['--out', str(place.out), '--json', '--no-compile']
    return main(['video', _model(place), str(place.file), *_CPU, *results])


def _masks(place: Place) -> list[bytes]:
    return [path.read_bytes() for path in sorted(place.out.glob('*.json'))]


def _test(place: Place) -> int:
    root = place.tree if (place.tree / 'dataA').is_dir() else place.sample.root
    config = str(place.sample.folder / 'configs' / CONFIG)
    folders = ['--data-root', str(root), '--work-dir', str(place.out)]
    return main(['test', config, _model(place), *folders, *_CPU, '--cfg-options', *TINY])


def _score(place: Place) -> list[Any]:
    scores = json.loads((place.out / 'scores.json').read_text(encoding='utf-8'))
    return [scores['metrics'], scores['confusion']]


def _read_frames(place: Place) -> int:
    return guard(lambda argv: _save_frames(place))([])


def _save_frames(place: Place) -> None:
    """All frames as training gets them."""
    from ..datasets.lyft_carla import LyftCarlaDataset

    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadLyftLabel')]
    frames = LyftCarlaDataset(str(place.tree), list(DRIVES), pipeline=pipeline)
    read = [frames[index] for index in range(len(frames))]
    # Of one size or of several.
    arrays = {f'{at}_{key}': frame[key] for at, frame in enumerate(read) for key in ('img', 'gt_seg_map')}
    np.savez(place.out / 'frames.npz', **arrays)


def _arrays(place: Place) -> str:
    return hashlib.sha256((place.out / 'frames.npz').read_bytes()).hexdigest()


def _inspect(place: Place) -> int:
    return main(['inspect_data', str(place.tree), '--out', str(place.out), '--workers', '1'])


def _inspect_with_manifest(place: Place) -> int:
    manifest = ['--manifest', str(place.sample.manifest)]
    return main(['inspect_data', str(place.tree), '--out', str(place.out), '--workers', '1', *manifest])


def _measured(place: Place) -> Any:
    return json.loads((place.out / 'inspection.json').read_text(encoding='utf-8'))['problems']


def _verify(place: Place) -> int:
    return main(['prepare_data', str(place.tree), '--verify'])


def _nothing(place: Place) -> None:
    return None


def _grade(place: Place) -> int:
    answers = place.sample.folder / 'answers' / 'answer.json'
    given = (place.file, place.sample.root) if place.file.name == answers.name else (answers, place.tree)
    return main(['grade', *map(str, given), '--json', str(place.out / 'score.json')])


def _grades(place: Place) -> dict:
    score = json.loads((place.out / 'score.json').read_text(encoding='utf-8'))
    return {key: value for key, value in score.items() if key not in ('answer', 'truth', 'hood')}


def _resume(place: Place) -> int:
    return main(['train', *train_arguments(place.sample, place.tree, '--resume', '--seed', '0')])


def _resume_from(place: Place) -> int:
    return main(['train', *train_arguments(place.sample, place.out, '--resume', str(place.file))])


def _train(place: Place) -> int:
    other = dict(config=place.tree / CONFIG, steps=('max_iters=1', 'val_interval=1'))
    return main(['train', *train_arguments(place.sample, place.out, '--seed', '0', **other)])


def _weights(folder: str) -> Any:
    """Reads the weights of the last checkpoint in a folder of the place."""

    def read(place: Place) -> dict[str, bytes]:
        from ..engine.checkpoint import read_weights

        last = max(getattr(place, folder).glob('iter_*.pth'))
        return {name: weight.numpy().tobytes() for name, weight in read_weights(str(last)).items()}

    return read


def _read_config(place: Place) -> int:
    return guard(lambda argv: _save_config(place))([])


def _save_config(place: Place) -> None:
    from ..engine.config import load_config

    config = load_config(str(place.tree / CONFIG), dict(data_root='frames', max_iters=3))
    (place.out / 'config.txt').write_text(repr(config.to_dict()), encoding='utf-8')


def _config(place: Place) -> str:
    return (place.out / 'config.txt').read_text(encoding='utf-8')


_IMAGES, _LABELS = ('**/CameraRGB/*.png',), ('**/CameraSeg/*.png',)
_BOTH = _IMAGES + _LABELS

PREDICT_IMAGES = Consumer('predict', _predict, _files, _IMAGES)
READ_IMAGES = Consumer('the data set', _read_frames, _arrays, _IMAGES)
INSPECT_IMAGES = Consumer('inspect_data', _inspect, _measured, _IMAGES, lists_files=True, proves=True)
READ_LABELS = Consumer('the data set', _read_frames, _arrays, _LABELS)
INSPECT_LABELS = Consumer('inspect_data', _inspect, _measured, _LABELS, lists_files=True, proves=True)
TEST_LABELS = Consumer('test', _test, _score, ('**/CameraSeg/F2-*.png',))
GRADE_LABELS = Consumer('grade, as truth', _grade, _grades, _LABELS)
COMPARE = Consumer(
    'inspect_data --manifest', _inspect_with_manifest, _measured, _BOTH, lists_files=True, proves=True
)

_ARRAYS, _INDEX = ('*.npy', 'packed.json'), ('stats.json',)
VERIFY = Consumer('prepare_data --verify', _verify, _nothing, _ARRAYS + _INDEX, lists_files=True, proves=True)
READ_PACKED = Consumer('the data set', _read_frames, _arrays, _ARRAYS + _INDEX)
GRADE_PACKED = Consumer('grade, as truth', _grade, _grades, ('label_*.npy', 'packed.json', 'stats.json'))

PREDICT_MODEL = Consumer('predict', _predict, _files, ('iter_3.pth',))
TEST_MODEL = Consumer('test', _test, _score, ('iter_3.pth',))
RESUME = Consumer(
    'train --resume', _resume, _weights('tree'), ('iter_3.pth', 'iter_3.pth.sha256', 'last_checkpoint')
)
RESUME_FROM = Consumer('train --resume PATH', _resume_from, _weights('out'), ('iter_2.pth',))

GRADE_ANSWER = Consumer('grade', _grade, _grades, ('answer.json',))
LABEL_VIDEO = Consumer('video', _video, _masks, ('*.mp4',))

_CONFIGS = (CONFIG, 'unet_lyft_bn.py', 'unet_lyft.py', '_base_/**/lyft_unet.py', '_base_/**/applying.py')
_CONFIGS += ('_base_/**/lyft_carla.py', '_base_/**/adam.py', '_base_/default_runtime.py')
READ_CONFIG = Consumer('reading the config', _read_config, _config, _CONFIGS)
TRAIN_CONFIG = Consumer('train', _train, _weights('out'), _CONFIGS)
