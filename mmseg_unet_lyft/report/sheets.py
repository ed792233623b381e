"""Sheets of training samples: what the network sees after augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.registry import MODELS

from .. import register  # noqa: F401
from ..datasets.labels import IGNORE_INDEX
from ..errors import InputError
from .figures import captioned, legend, overlay, save_rgb

Show = Callable[[Iterable, int, str], Iterable]


def _require_loader(config: Config) -> None:
    """Raise an InputError if there is nothing to draw samples from."""
    if not config.get('train_dataloader'):
        raise InputError(f'{config.filename}: has no train_dataloader to look into')


def seen_samples(config: Config, count: int, seed: int) -> Iterable[tuple[np.ndarray, np.ndarray, str]]:
    """Training samples as they reach the network: image RGB uint8 (H, W, 3), label (H, W), frame's name.

    They pass through the config's loader and data preprocessor; only the normalisation is taken back.

    Args:
        config: A training config.
        count: How many samples.
        seed: Of order and augmentation.

    Raises:
        InputError: If the config has no training loader.
    """
    _require_loader(config)
    init_default_scope(config.get('default_scope', 'mmseg'))
    settings = dict(config.train_dataloader, num_workers=0, persistent_workers=False)
    loader = Runner.build_dataloader(settings, seed=seed)
    preprocessor = MODELS.build(config.model.data_preprocessor)
    stream = iter(loader)
    found = 0
    while True:
        batch = preprocessor(next(stream), training=True)
        for inputs, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
            if found == count:
                return
            found += 1
            yield (
                _image(inputs, preprocessor, config),
                sample.gt_sem_seg.data[0].numpy().astype(np.uint8),
                Path(sample.img_path).stem,
            )


def _image(inputs, preprocessor, config: Config) -> np.ndarray:
    """The picture behind a normalised input."""
    if preprocessor._enable_normalize:
        inputs = inputs * preprocessor.std + preprocessor.mean
    image = inputs.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return image if config.model.data_preprocessor.get('bgr_to_rgb') else image[..., ::-1]


def sheet(
    samples: Sequence[tuple[np.ndarray, np.ndarray, str]],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> np.ndarray:
    """Rows of image | overlay with the legend below, RGB uint8; ignored pixels are white."""
    rows = []
    for image, label, name in samples:
        laid_over = np.where((label == IGNORE_INDEX)[..., None], 255, overlay(image, label, palette, 0.6))
        rows.append(np.hstack([captioned(image, name), captioned(laid_over.astype(np.uint8), 'label')]))
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.vstack([*rows, legend(classes, palette, width)])


def write_sheets(config: Config, out: Path, sheets: int, rows: int, seed: int, show: Show) -> list[Path]:
    """Write ``sheet_NN.png`` files into a folder, each with some samples; returns their paths."""
    _require_loader(config)
    from mmseg.registry import DATASETS

    init_default_scope(config.get('default_scope', 'mmseg'))
    meta = DATASETS.build(dict(config.train_dataloader.dataset, lazy_init=True)).metainfo
    samples = iter(seen_samples(config, sheets * rows, seed))
    paths = []
    for number in show(range(sheets), sheets, 'drawing sheets'):
        page = [next(samples) for _ in range(rows)]
        paths.append(out / f'sheet_{number:02d}.png')
        save_rgb(paths[-1], sheet(page, meta['classes'], meta['palette']))
    return paths
