"""`LyftCarlaDataset`: frames of chosen drives of a data root, with labels in a label scheme."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmseg.registry import DATASETS

from ..compat import quiet_import
from ..errors import InputError
from .carla import CARLA_CLASSES, CARLA_PALETTE, get_scheme, hood_spans
from .dataset_stats import load_stats, scheme_of_root
from .image_io import read_image, read_label
from .layout import find_pairs
from .packed import is_address
from .sampler import StreamIndex

with quiet_import():
    from mmseg.datasets import BaseSegDataset

# What of mmseg's ``BaseSegDataset`` has an effect.
_USED = {'pipeline', 'indices', 'test_mode', 'serialize_data', 'lazy_init', 'max_refetch'}


@DATASETS.register_module()
class LyftCarlaDataset(BaseSegDataset):
    """The Lyft-Udacity (CARLA) frames, split by drive.

    Args:
        data_root: Folder in the Kaggle layout (``dataA/dataA/CameraRGB/*.png``, doubled folder or not), or
            of packed frames, which give the same pixels.
        split: ``'train'``, ``'val'`` or ``'test'`` of the benchmark split, or a list of drives.
        scheme: Label scheme, a key of `carla.SCHEMES`: ``'carla13'``, ``'challenge3'``, ``'road'``, ...
        kwargs: As in mmseg's ``BaseSegDataset``: ``pipeline``, ``indices``, ``test_mode``, and few others.

    Raises:
        InputError: If a file is missing or damaged, or a keyword would have no effect.
    """

    METAINFO = dict(classes=CARLA_CLASSES, palette=[list(colour) for colour in CARLA_PALETTE])

    def __init__(
        self, data_root: str, split: str | Sequence[str] = 'train', scheme: str = 'carla13', **kwargs
    ) -> None:
        unused = [key for key, value in kwargs.items() if value and key not in _USED]
        if unused:
            raise InputError(
                f'LyftCarlaDataset: {", ".join(unused)} would have no effect: frames are found by their '
                'names below data_root, and classes follow from scheme'
            )
        self.split = split
        self._class_ids: dict[int, list[int]] = {}
        self.scheme = get_scheme(scheme)
        self.stats = load_stats(data_root)
        if self.stats is not None:
            self.stats.check_scheme(self.scheme)
        # It may have been written again since another data set read it.
        scheme_of_root.cache_clear()
        super().__init__(data_root=str(data_root), metainfo=self.scheme.metainfo, **kwargs)
        # mmseg's tools read the classes here.
        self.METAINFO = self.scheme.metainfo
        # Not through `metainfo`: mmengine reads a string there as the name of a file.
        self._metainfo['scheme'] = scheme
        if self.stats is not None:
            # For the metric, and recorded with every checkpoint.
            self._metainfo['hood'] = dict(size=list(self.stats.size), spans=hood_spans(self.stats.hood))

    @classmethod
    def get_label_map(cls, new_classes: Sequence[str] | None = None) -> None:
        """None: the scheme turns tags into train ids when a label is loaded."""
        return

    def load_data_list(self) -> list[dict]:
        """One dict per frame: paths, drive, frame number, scheme."""
        stats_root = None if self.stats is None else self.data_root
        shared = dict(scheme=self.scheme.name, stats_root=stats_root, label_map=None, reduce_zero_label=False)
        return [dict(pair, **shared, seg_fields=[]) for pair in find_pairs(Path(self.data_root), self.split)]

    def get_cat_ids(self, idx: int) -> list[int]:
        """Ids of the classes in a frame's label, for mmengine's ``ClassBalancedDataset``."""
        # It asks twice, and reading a label of 600x800 takes milliseconds.
        if idx not in self._class_ids:
            frame = self.get_data_info(idx)
            label = read_label(frame['seg_map_path'], self.scheme.name, frame['stats_root'])
            pixels = np.bincount(label.ravel(), minlength=256)[: len(self.scheme.classes)]
            self._class_ids[idx] = np.flatnonzero(pixels).tolist()
        return self._class_ids[idx]

    def prepare_data(self, idx: int) -> dict:
        """A frame after the pipeline; an InputError names a damaged image file.

        An index from `LyftStreamSampler` also carries the key of the sample's random numbers.
        """
        frame = self.get_data_info(int(idx))
        if isinstance(idx, StreamIndex):
            frame['random_key'] = idx.random_key
        if not is_address(frame['img_path']) and any(
            isinstance(step, LoadImageFromFile) for step in self.pipeline.transforms
        ):
            # mmcv's loader fails at a damaged file with an assertion, and fills a truncated one with grey.
            read_image(frame['img_path'])
        return self.pipeline(frame)
