"""What can be known to be wrong before a run starts."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from ..datasets.labels import get_scheme
from ..datasets.lyft_carla import find_pairs
from ..errors import InputError


def check_batches(config: Config) -> None:
    """Raise an InputError if the model's data preprocessor cannot read the training loader's batches."""
    collate = (config.get('train_dataloader') or {}).get('collate_fn') or {}
    preprocessor = config.model.get('data_preprocessor', {}).get('type')
    if collate.get('type') == 'lyft_collate' and preprocessor == 'SegDataPreProcessor':
        raise InputError(
            'train_dataloader.collate_fn is lyft_collate, whose batches SegDataPreProcessor cannot read; set '
            "model.data_preprocessor.type='LyftDataPreProcessor', which takes the same arguments"
        )


def check_data(config: Config, *loaders: str) -> None:
    """Raise an InputError if a loader's Lyft frames are missing, or their classes are not the model's.

    Args:
        config: The whole config; loaders that are None, or of other data sets, are passed over.
        loaders: ``'train_dataloader'`` and the like.
    """
    if 'train_dataloader' in loaders:
        check_batches(config)
    for loader in loaders:
        dataset = (config.get(loader) or {}).get('dataset', {})
        if dataset.get('type') != 'LyftCarlaDataset':
            continue
        find_pairs(Path(dataset['data_root']), dataset.get('split', 'train'))
        scheme = get_scheme(dataset.get('scheme', 'carla13'))
        num_classes = config.model.get('decode_head', {}).get('num_classes', len(scheme.classes))
        if num_classes != len(scheme.classes):
            raise InputError(
                f'scheme {scheme.name} has {len(scheme.classes)} classes, but the decode head {num_classes}; '
                'use unet_lyft_challenge.py for challenge3, unet_lyft_road.py for road, others for carla13'
            )
