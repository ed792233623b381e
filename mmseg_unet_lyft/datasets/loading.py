"""From a PNG file to a checked label: read, verify, decode, map to train ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from ..errors import InputError
from .labels import tags_to_ids
from .png import decode_tags, header_of, read_png
from .statistics import scheme_of_root

__all__ = ['LoadLyftLabel', 'read_label', 'read_png', 'read_raw_label']


def read_raw_label(path: str | Path) -> np.ndarray:
    """CARLA tags of a label PNG: the red channel of RGB or RGBA, the value of L, the index of P.

    Returns:
        Tags as stored, uint8 (H, W); not yet checked against a scheme.

    Raises:
        InputError: If the file is no sound 8-bit PNG.
    """
    content = read_png(path)
    if header_of(content).bit_depth == 16:
        raise InputError(f'{path}: 16 bits a channel; labels have 8. Save it again as an 8-bit PNG')
    raw_label = decode_tags(content)
    if raw_label is None:
        raise InputError(f'{path}: damaged image data; restore it from the archive')
    return raw_label


def read_label(path: str | Path, scheme_name: str, stats_root: str | None = None) -> np.ndarray:
    """Train ids of a label PNG, uint8 (H, W), without the hood of the prepared root ``stats_root``.

    Raises:
        InputError: If the file is no sound label, or holds a tag outside 0..12.
    """
    raw_label = read_raw_label(path)
    try:
        return tags_to_ids(raw_label, scheme_of_root(scheme_name, stats_root))
    except InputError as error:
        raise InputError(f'{path}: {error}') from None


@TRANSFORMS.register_module()
class LoadLyftLabel(BaseTransform):
    """Load a frame's label as train ids of the data set's scheme.

    Takes the place of mmseg's ``LoadAnnotations``, which knows neither the red channel nor the hood.

    Required Keys:
        - seg_map_path (without it, as in ``mmseg.apis.inference_model``, nothing is loaded)
        - scheme
        - ori_shape
        - stats_root (optional)
        - img_path

    Added Keys:
        - gt_seg_map (np.uint8, (H, W))
        - seg_fields
    """

    def transform(self, results: dict) -> dict:
        """The results with ``gt_seg_map``; raises InputError where label and image do not match."""
        if 'seg_map_path' not in results:
            return results
        label = read_label(results['seg_map_path'], results['scheme'], results.get('stats_root'))
        if label.shape != tuple(results['ori_shape'][:2]):
            height, width = results['ori_shape'][:2]
            raise InputError(
                f'{results["seg_map_path"]}: label of {label.shape[0]}x{label.shape[1]} (height x width), '
                f'but its image {results["img_path"]} is {height}x{width}; they are not of the same frame'
            )
        results['gt_seg_map'] = label
        results.setdefault('seg_fields', []).append('gt_seg_map')
        return results
