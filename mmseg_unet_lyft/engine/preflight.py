"""What can be known to be wrong before a run starts."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from ..datasets.lyft_carla import find_pairs


def check_data(config: Config, *loaders: str) -> None:
    """Raise an InputError if a loader's Lyft frames are missing or incomplete.

    Args:
        config: The whole config.
        loaders: ``'train_dataloader'`` and the like.
    """
    for loader in loaders:
        dataset = config.get(loader, {}).get('dataset', {})
        if dataset.get('type') == 'LyftCarlaDataset':
            find_pairs(Path(dataset['data_root']), dataset.get('split', 'train'))
