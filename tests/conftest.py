"""What several test files share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from yapf.yapflib import yapf_api

from mmseg_unet_lyft.compat import stand_in_for_ops

# Tests, and the processes they start, import from mmseg, which mmcv-lite alone does not let them.
stand_in_for_ops()


def _remembered(format_code: Callable[..., tuple[str, bool]]) -> Callable[..., tuple[str, bool]]:
    """The same function, which formats a text once."""
    known: dict[tuple, tuple[str, bool]] = {}

    def format_once(text: str, **style: Any) -> tuple[str, bool]:
        key = (text, repr(style))
        if key not in known:
            known[key] = format_code(text, **style)
        return known[key]

    return format_once


# mmengine lays out the same config ten times a run, a fifth of a small run's time.
yapf_api.FormatCode = _remembered(yapf_api.FormatCode)

THREADS = torch.get_num_threads()
ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCE = shutil.ignore_patterns(
    '.git', '.venv*', '__pycache__', '.*_cache', '*.egg-info', 'build', 'dist', 'data', 'work_dirs'
)

# Of a network and frames that train a step in a tenth of a second, on the fixture `three_drives`.
SMALL = dict(
    base_channels=2,
    data_root='frames',
    batch_size=2,
    num_workers=0,
    crop_size=(32, 32),
    image_scale_wh=(48, 32),
    train_drives=['F1'],
    val_drives=['F3'],
    test_drives=['F2'],
)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """What sets how many threads compute does not change the sums of other tests."""
    # Fixtures of a file set them too, and come before this one.
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture(scope='session')
def source_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the clone, links kept, with nothing built, drawn or trained in it."""
    copy = tmp_path_factory.mktemp('source') / 'clone'
    # Building in the clone itself would leave a build/ folder, and pick up what an earlier build left.
    return Path(shutil.copytree(ROOT, copy, symlinks=True, ignore=NOT_SOURCE))


@pytest.fixture(scope='session')
def built_wheel(source_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist and not from the clone."""
    out = tmp_path_factory.mktemp('dist')
    command = [sys.executable, '-m', 'build', '--no-isolation', '--outdir', str(out), str(source_copy)]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob('*.whl'))


@pytest.fixture(scope='session')
def installed_env(built_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed and nothing else, for ``PYTHONPATH`` of a fresh process."""
    target = tmp_path_factory.mktemp('installed')
    command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', '--no-compile']
    done = subprocess.run(
        [*command, '--target', str(target), str(built_wheel)], cwd=target, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def browser(chromium: Any) -> Any:
    """`chromium` on an empty page, and without what earlier pages logged."""
    chromium.get('about:blank')
    chromium.get_log('browser')
    return chromium


@pytest.fixture(scope='session')
def chromium() -> Iterator[Any]:
    """Selenium's driver of the system's Chromium, headless; a test is skipped where there is none.

    With LYFT_REQUIRE_BROWSER in the environment, as in CI, it fails instead.
    """
    program, driver = (shutil.which(name) for name in ('chromium', 'chromedriver'))
    if not (program and driver):
        end = pytest.fail if os.environ.get('LYFT_REQUIRE_BROWSER') else pytest.skip
        end('needs chromium and chromedriver; install with: apt-get install chromium chromium-driver')
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    # Root, as in a container, may not start it otherwise.
    for name in ('headless=new', 'no-sandbox', 'disable-dev-shm-usage', 'force-device-scale-factor=1'):
        options.add_argument(f'--{name}')
    options.set_capability('goog:loggingPrefs', dict(browser='ALL'))
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def tree(folder: Path) -> dict[str, bytes]:
    """Every file's content by its path below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()
    }


def flip_bit(path: Path, position: int) -> None:
    """Damage a byte of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


class KaggleFolder:
    """A folder in the Kaggle layout that a test fills frame by frame."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(
        self,
        stem: str,
        folder: str = 'dataA/dataA',
        tags: np.ndarray | int | None = None,
        size: tuple[int, int] = (24, 32),
    ) -> tuple[Path, Path]:
        """Write a frame; returns its image's and its label's path.

        Args:
            stem: File name without suffix: ``F1-0``.
            folder: Where ``CameraRGB`` and ``CameraSeg`` go, below the root.
            tags: CARLA tags (H, W), or one for all pixels; random ones that follow from the stem by default.
            size: (height, width) where the tags do not say.
        """
        random = np.random.default_rng(list(stem.encode()))
        tags = random.integers(0, 13, size) if tags is None else tags
        tags = np.broadcast_to(np.asarray(tags, np.uint8), np.shape(tags) or size)
        image, label = (self.root / folder / kind / f'{stem}.png' for kind in ('CameraRGB', 'CameraSeg'))
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*tags.shape, 3), dtype=np.uint8)).save(image)
        Image.fromarray(np.dstack([tags, 0 * tags, 0 * tags])).save(label)
        return image, label


@pytest.fixture
def three_drives(kaggle: KaggleFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three frames 32x48 of each of F1, F2 and F3 at ``./frames`` of a folder that is the current one."""
    for drive in ('F1', 'F2', 'F3'):
        for number in range(3):
            kaggle.add(f'{drive}-{number}', size=(32, 48))
    monkeypatch.chdir(tmp_path)
    return kaggle.root.rename(tmp_path / 'frames')


@pytest.fixture
def kaggle(tmp_path: Path) -> KaggleFolder:
    """An empty folder in the Kaggle layout; ``kaggle.add('F1-0')`` writes a frame into it."""
    root = tmp_path / 'kaggle'
    root.mkdir()
    return KaggleFolder(root)


def build_segmentor(
    num_stages: int = 3,
    num_classes: int = 4,
    out_channels: int | None = None,
    dropout: tuple[float, float] = (0.0, 0.0),
    norm_cfg: dict | None = None,
    backbone: dict | None = None,
    head: dict | None = None,
    **kwargs: Any,
) -> torch.nn.Module:
    """A small `LyftSegmentor` with initialised weights, in evaluation mode.

    Args:
        num_stages: Of its `LyftUNet`, whose maps have 4, 8, 16, ... channels.
        num_classes: 2 where ``out_channels`` is 1.
        out_channels: 1 for a sigmoid output.
        dropout: Ratios of the encoder and of the decoder.
        norm_cfg: Of both.
        backbone: Another one.
        head: Another one, or keys of `LyftUNetHead` to change.
        kwargs: As in `LyftSegmentor`.
    """
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    import mmseg_unet_lyft.register  # noqa: F401

    init_default_scope('mmseg')
    single, head = out_channels == 1, head or {}
    unet = dict(
        type='LyftUNet', base_channels=4, num_stages=num_stages, dropout=dropout[0], norm_cfg=norm_cfg
    )
    decoder = dict(
        type='LyftUNetHead',
        in_channels=tuple(4 * 2**stage for stage in range(num_stages)),
        num_classes=2 if single else num_classes,
        out_channels=out_channels,
        dropout=dropout[1],
        norm_cfg=norm_cfg,
        loss_decode=dict(type='LyftCrossEntropyLoss', use_sigmoid=single),
    )
    decoder = head if 'type' in head else decoder | head
    networks = dict(backbone=backbone or unet, decode_head=decoder, train_cfg={})
    model = MODELS.build(dict(type='LyftSegmentor') | networks | kwargs)
    model.init_weights()
    return model.eval()


def labelled(label: torch.Tensor, img_shape: tuple[int, int] | None = None) -> Any:
    """A sample with ground truth (H, W) and the meta information that the pipeline writes."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    size = img_shape or tuple(label.shape)
    meta = dict(img_shape=size, ori_shape=tuple(label.shape), pad_shape=size)
    return SegDataSample(gt_sem_seg=PixelData(data=label[None]), metainfo=meta)
