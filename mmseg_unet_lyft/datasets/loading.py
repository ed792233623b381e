"""From a PNG file or a packed frame to an image or a checked label: read, verify, decode, map to ids."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.fileio import BaseStorageBackend, register_backend
from mmseg.registry import TRANSFORMS

from ..errors import InputError
from .labels import tags_to_ids
from .packed import PREFIX, is_address, read_packed
from .png import decode, decode_tags, header_of, read_png
from .statistics import scheme_of_root

__all__ = ['LoadLyftLabel', 'LyftPackedBackend', 'read_image', 'read_label', 'read_png', 'read_raw_label']


def read_image(path: str | Path) -> np.ndarray:
    """An image, BGR, uint8 (H, W, 3); read-only where it is a packed frame's.

    Raises:
        InputError: If the file is no sound PNG, or the packed frame is damaged.
    """
    if is_address(path):
        return read_packed(str(path))
    image = decode(read_png(path))
    if image is None:
        raise InputError(f'{path}: damaged image data; restore it from the archive')
    return image


def read_raw_label(path: str | Path) -> np.ndarray:
    """CARLA tags of a label: of a PNG the red channel of RGB or RGBA, the value of L, the index of P.

    Returns:
        Tags as stored, uint8 (H, W); not yet checked against a scheme; read-only where packed.

    Raises:
        InputError: If the file is no sound 8-bit PNG, or the packed frame is damaged.
    """
    if is_address(path):
        return read_packed(str(path))
    content = read_png(path)
    if header_of(content).bit_depth == 16:
        raise InputError(f'{path}: 16 bits a channel; labels have 8. Save it again as an 8-bit PNG')
    raw_label = decode_tags(content)
    if raw_label is None:
        raise InputError(f'{path}: damaged image data; restore it from the archive')
    return raw_label


def require_same_size(
    kind: str, path: str | Path, shape: tuple[int, ...], image_path: str | Path, image_shape: tuple[int, ...]
) -> None:
    """Raise an InputError if a file of that kind, such as a label, is not as large as its image."""
    (height, width), (image_height, image_width) = shape[:2], image_shape[:2]
    if (height, width) != (image_height, image_width):
        raise InputError(
            f'{path}: {kind} of {height}x{width} (height x width), but its image {image_path} is '
            f'{image_height}x{image_width}; they are not of the same frame'
        )


def read_label(path: str | Path, scheme_name: str, stats_root: str | None = None) -> np.ndarray:
    """Train ids of a label, uint8 (H, W), without the hood of the prepared root ``stats_root``.

    Raises:
        InputError: If the file is no sound label, or holds a tag outside 0..12.
    """
    raw_label = read_raw_label(path)
    try:
        return tags_to_ids(raw_label, scheme_of_root(scheme_name, stats_root))
    except InputError as error:
        raise InputError(f'{path}: {error}') from None


class LyftPackedBackend(BaseStorageBackend):
    """Packed frames as image files, for whatever reads by path: mmcv's loaders, mmseg's visualisation."""

    def get(self, filepath: str) -> bytes:
        """An image as BMP, which costs least to make and read, or a label as grey PNG."""
        pixels = read_packed(str(filepath))
        # A grey BMP has a palette, which some readers take for colours.
        return cv2.imencode('.bmp' if pixels.ndim == 3 else '.png', pixels)[1].tobytes()

    def get_text(self, filepath: str) -> str:
        """Nothing: frames are no text."""
        raise InputError(f'{filepath}: is a packed frame and no text')


register_backend(PREFIX, LyftPackedBackend, prefixes=PREFIX, force=True)


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
        paths = results['seg_map_path'], results['img_path']
        require_same_size('label', paths[0], label.shape, paths[1], results['ori_shape'])
        results['gt_seg_map'] = label
        results.setdefault('seg_fields', []).append('gt_seg_map')
        return results
