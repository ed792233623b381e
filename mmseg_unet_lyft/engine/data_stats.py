"""A prepared root's measured values in a config: class weights, mean and deviation, and a record of them.

They take the place of published values only. What a config or a command says otherwise, somebody chose.
The hood is not the config's: `LyftCarlaDataset` takes that of its own root.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from mmengine.config import Config

from ..datasets.labels import Scheme, get_scheme, median_frequency_weights
from ..datasets.statistics import STATS_NAME, Stats, class_weights, load_stats

# ImageNet's, R, G, B; what the configs normalise with where nothing is measured.
PUBLISHED_MEAN, PUBLISHED_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
_FROM_WEIGHTS = '--load-from'
# Configs give weights with two decimals.
_ROUNDED = 0.0051


def apply_stats(config: Config, options: Iterable[str] = (), from_weights: bool = False) -> list[str]:
    """Put the measured values of the training frames into a config.

    They are those of the training drives alone, and stand in ``config.data_stats`` afterwards, so that they
    are in the work dir and in every checkpoint.

    Args:
        config: Changed in place.
        options: ``--cfg-options`` as given: keys named there keep their values, published or not.
        from_weights: Whether training starts from weights, which bring their own mean and deviation.

    Returns:
        One line on what was used and what was kept; none if the root has no ``stats.json``.

    Raises:
        InputError: If there is one that cannot be read, or its tags are not the scheme's.
    """
    dataset = (config.get('train_dataloader') or {}).get('dataset', {})
    stats = load_stats(dataset['data_root']) if dataset.get('type') == 'LyftCarlaDataset' else None
    if stats is None:
        return []
    scheme, drives = get_scheme(dataset.get('scheme', 'carla13')), dataset.get('split', 'train')
    given = {option.partition('=')[0].rpartition('.')[2] for option in options}
    used: dict[str, list] = {}
    kept = [*_apply_weights(config, stats, scheme, drives, given, used)]
    kept += _apply_mean_std(config, stats, drives, given | ({_FROM_WEIGHTS} if from_weights else set()), used)
    path = Path(dataset['data_root']) / STATS_NAME
    config.data_stats = dict(
        path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest(), used=used, kept=kept
    )
    said = f'{path}: measured {", ".join(used) or "nothing"} used'
    return [said + (f'; kept: {"; ".join(kept)}' if kept else '')]


def _apply_weights(
    config: Config, stats: Stats, scheme: Scheme, drives: str | list[str], given: set[str], used: dict
) -> Iterator[str]:
    """Replace published class weights; yields why any others were kept."""
    measured = np.round(class_weights(stats.percent(scheme, drives))['median_frequency'], 4).tolist()
    published = median_frequency_weights(scheme.train_percent)
    for loss in _losses(config):
        weights = loss.get('class_weight')
        if weights is None:
            continue
        if 'class_weight' in given:
            yield 'class_weight of --cfg-options'
        elif len(weights) != len(published) or not np.allclose(weights, published, rtol=0, atol=_ROUNDED):
            yield "class_weight, the config's own"
        else:
            loss['class_weight'] = used['class_weight'] = measured


def _losses(config: Config) -> Iterator[dict]:
    """Every loss of the model's heads."""
    for name in ('decode_head', 'auxiliary_head'):
        heads = config.model.get(name) or []
        for head in [heads] if isinstance(heads, dict) else heads:
            losses = head.get('loss_decode') or []
            yield from [losses] if isinstance(losses, dict) else losses


def _apply_mean_std(
    config: Config, stats: Stats, drives: str | list[str], given: set[str], used: dict
) -> Iterator[str]:
    """Replace ImageNet's mean and deviation; yields why any others were kept."""
    preprocessor = config.model.get('data_preprocessor') or {}
    values = [preprocessor.get('mean'), preprocessor.get('std')]
    if values == [None, None]:
        return
    pretrained = config.model.get('pretrained') or config.model.get('backbone', {}).get('init_cfg')
    if given & {'mean', 'std'}:
        yield 'mean and std of --cfg-options'
    elif values != [PUBLISHED_MEAN, PUBLISHED_STD]:
        yield "mean and std, the config's own"
    elif pretrained or _FROM_WEIGHTS in given:
        yield 'mean and std, those of the loaded weights'
    else:
        mean, std = (np.round(value, 3).tolist() for value in stats.mean_std(drives))
        # A channel that never changes would be divided by 0.
        std = [max(value, 1.0) for value in std]
        preprocessor.update(mean=mean, std=std)
        used.update(mean=mean, std=std)
