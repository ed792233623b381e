"""The untouched inputs: drawn frames, a network trained on them, and what it makes of them."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch

from ..__main__ import main

_PACKAGE = __package__.rpartition('.')[0]
DRIVES = ('F1', 'F2', 'F3', 'F62')
# A network and frames of a size that trains a step in a tenth of a second.
TINY = (
    'image_scale_wh=(96,64)',
    'crop_size=(64,64)',
    'base_channels=2',
    'batch_size=2',
    'num_workers=0',
    'warmup_iters=1',
    'train_drives=[F1,F62]',
    'val_drives=[F3]',
    'test_drives=[F2]',
)
STEP_OPTIONS = ('max_iters=3', 'val_interval=1')
CONFIG = 'unet_lyft_demo.py'
IMAGES = 'dataA/dataA/CameraRGB'


@dataclass(frozen=True)
class Sample:
    """Folders of untouched inputs.

    Attributes:
        folder: Holds ``frames`` (a data root), ``packed``, ``run`` (a work dir), ``answers``, ``videos`` and
            ``configs``.
    """

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """Of the network."""
        return self.folder / 'run' / 'iter_3.pth'

    @property
    def manifest(self) -> Path:
        """Of the frames."""
        return self.folder / 'manifest.json'

    @property
    def root(self) -> Path:
        """The data root."""
        return self.folder / 'frames'


@contextmanager
def one_thread() -> Iterator[None]:
    """One computing thread in this process meanwhile, so that it can be forked."""
    threads, opencv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(opencv_threads)


def make_sample(folder: Path) -> Sample:
    """Make all inputs in a folder, in this process, which has then imported whatever a fork will need.

    Raises:
        RuntimeError: If a command refuses to; ``sample.log`` in the folder says why.
    """
    sample, model = Sample(folder), str(folder / 'run' / 'iter_3.pth')
    folder.mkdir(parents=True, exist_ok=True)
    frames, images = str(sample.root), str(sample.root / IMAGES)
    shutil.copytree(
        Path(importlib.import_module(_PACKAGE).__file__).parent / '.mim' / 'configs', folder / 'configs'
    )
    with (
        (folder / 'sample.log').open('w', encoding='utf-8') as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        size = ['--height', '64', '--width', '96', '--frames', '2']
        _run('draw_scenes', frames, *size, '--drives', *DRIVES)
        _run(
            'inspect_data',
            frames,
            '--out',
            str(folder / 'report'),
            '--manifest',
            str(sample.manifest),
            '--workers',
            '1',
        )
        _run('prepare_data', frames, str(folder / 'packed'), '--workers', '1')
        config = [str(folder / 'configs' / CONFIG), '--data-root', frames, '--device', 'cpu']
        _run('train', *train_arguments(sample, folder / 'run', '--seed', '0'))
        _run(
            'test',
            config[0],
            model,
            *config[1:],
            '--work-dir',
            str(folder / 'tested'),
            '--cfg-options',
            *TINY,
        )
        _run('predict', model, images, '--device', 'cpu', '--out', str(folder / 'predicted'), '--ids')
        videos = ['--device', 'cpu', '--no-compile', '--out', str(folder / 'videos')]
        _run('video', model, images, *videos, '--overlay', '--json')
        shutil.rmtree(folder / 'predicted')
    (folder / 'answers').mkdir()
    (folder / 'videos' / 'CameraRGB_challenge.json').rename(folder / 'answers' / 'answer.json')
    return sample


def train_arguments(
    sample: Sample,
    work_dir: Path,
    *others: str,
    config: Path | None = None,
    steps: Sequence[str] = STEP_OPTIONS,
) -> list[str]:
    """The command line of the sample's training, or of one by another config or of other length."""
    places = ['--data-root', str(sample.root), '--work-dir', str(work_dir), '--device', 'cpu']
    config = config or sample.folder / 'configs' / CONFIG
    return [str(config), *places, *others, '--cfg-options', *TINY, *steps]


def _run(name: str, *arguments: str) -> None:
    code = main([name, *arguments])
    if code:
        raise RuntimeError(f'{name} {" ".join(arguments)}: exit code {code}')


def guard(work: Callable[[list[str]], None]) -> Callable[[list[str]], int]:
    """Work that shows a user's mistake as commands do."""
    return importlib.import_module(f'{_PACKAGE}.cli.console').guarded(work)
